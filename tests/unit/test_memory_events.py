"""Levels have hysteresis, recoveries know what did not come back, the history is bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.memory import Level, Recovery
from modelhost.memory.events import History, next_level

MB = 1 << 20
NORMAL, WARNING, CRITICAL = Level


@pytest.mark.parametrize(
    ("current", "usage", "expected"),
    [
        (NORMAL, 171, NORMAL),
        (NORMAL, 172, WARNING),
        (NORMAL, 191, WARNING),
        (NORMAL, 192, CRITICAL),
        (WARNING, 172, WARNING),
        (WARNING, 171, WARNING),
        (WARNING, 168, WARNING),
        (WARNING, 167, NORMAL),
        (WARNING, 191, WARNING),
        (WARNING, 192, CRITICAL),
        (CRITICAL, 192, CRITICAL),
        (CRITICAL, 188, CRITICAL),
        (CRITICAL, 187, WARNING),
        (CRITICAL, 168, WARNING),
        (CRITICAL, 167, NORMAL),
        (CRITICAL, 0, NORMAL),
    ],
)
def test_a_level_begins_at_its_threshold_and_ends_some_way_below_it(
    current: Level, usage: int, expected: Level
) -> None:
    assert next_level(current, usage, warning=172, critical=192, hysteresis=4) is expected


@given(st.sampled_from(Level), st.integers(0, 300), st.integers(0, 60))
def test_the_same_usage_seen_twice_changes_the_level_at_most_once(current: Level, usage: int, hysteresis: int) -> None:
    def following(level: Level) -> Level:
        return next_level(level, usage, warning=172, critical=192, hysteresis=hysteresis)

    assert following(following(current)) is following(current)


def recovery(*, expected: int, freed: int) -> Recovery:
    return Recovery("test", ("a:1",), 1000 * MB, 1000 * MB - freed, expected, 0.25, False)


@pytest.mark.parametrize(
    ("expected_mb", "freed_mb", "shortfall_mb"),
    [
        (100, 100, 0),
        (100, 120, 0),
        (100, 90, 0),  # 90 % is enough
        (100, 89, 11),
        (10, 8, 0),  # 2 MB of noise are more than 10 % here
        (10, 7, 3),
        (1, 0, 0),
        (0, 0, 0),
        (0, -2, 0),
        (0, -3, 3),
        (20, -5, 25),
    ],
)
def test_the_shortfall_is_what_was_expected_and_did_not_come(
    expected_mb: int, freed_mb: int, shortfall_mb: int
) -> None:
    found = recovery(expected=expected_mb * MB, freed=freed_mb * MB)
    assert found.freed_bytes == freed_mb * MB
    assert found.shortfall_bytes == shortfall_mb * MB


def test_a_recovery_is_told_with_all_its_figures() -> None:
    found = recovery(expected=100 * MB, freed=50 * MB).as_dict()
    assert found == {
        "victims": ["a:1"],
        "before_bytes": 1000 * MB,
        "after_bytes": 950 * MB,
        "freed_bytes": 50 * MB,
        "expected_bytes": 100 * MB,
        "shortfall_bytes": 50 * MB,
        "trimmed": False,
        "duration_s": 0.25,
    }


def test_the_history_keeps_the_last_events_and_counts_them_all() -> None:
    now = iter(range(100))
    history = History(3, wall_clock=lambda: next(now))
    for number in range(5):
        history.add("level" if number % 2 else "recovery", level=WARNING, usage_bytes=number, cause="test")
    assert [(event.at, event.usage_bytes) for event in history.snapshot()] == [(2, 2), (3, 3), (4, 4)]
    assert history.counts == {"recovery": 3, "level": 2}


def test_an_event_is_plain_json() -> None:
    event = History(1).add("level", level=CRITICAL, usage_bytes=7, cause="sample", details={"from": "normal"})
    found = json.loads(json.dumps(event.as_dict()))
    assert found.pop("at") > 1.6e9
    assert found == {"kind": "level", "level": "critical", "usage_bytes": 7, "cause": "sample", "from": "normal"}
