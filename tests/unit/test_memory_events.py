"""Levels have hysteresis, recoveries know what did not come back, the history is bounded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.memory import Level, Recovery
from modelhost.memory.events import History, excess_bytes, next_level

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


@pytest.mark.parametrize(
    ("usage", "reusable", "excess"),
    [
        (180, 0, 13),
        (170, 0, 3),  # to where the level ends
        (168, 0, 1),
        (167, 0, 0),
        (100, 0, 0),
        # Free inside the heap: above warning for that alone nobody leaves …
        (180, 20, 0),
        (191, 20, 0),
        (180, 9, 0),
        (180, 300, 0),
        # … else what is in use goes to where the level would end without it
        (180, 8, 5),
        (191, 10, 14),
        # … and a little of it changes little
        (171, 1, 3),
        (170, 2, 0),
        (170, 1, 2),
    ],
)
def test_what_is_free_in_the_heap_is_no_reason_to_evict(usage: int, reusable: int, excess: int) -> None:
    assert excess_bytes(usage, reusable_bytes=reusable, warning=172, hysteresis=4) == excess


@given(st.integers(0, 300), st.integers(0, 100), st.integers(0, 60), st.integers(0, 60))
def test_more_that_is_free_never_means_that_more_has_to_leave(
    usage: int, reusable: int, more: int, hysteresis: int
) -> None:
    def excess(reusable: int) -> int:
        return excess_bytes(usage, reusable_bytes=reusable, warning=172, hysteresis=hysteresis)

    assert 0 <= excess(reusable + more) <= excess(reusable)
    assert excess(0) == max(0, usage - (172 - hysteresis) + 1)
    if usage - reusable >= 172:
        assert usage - excess(reusable) - reusable == 172 - hysteresis - 1


def recovery(*, expected: int, freed: int, kept_free: int = 0) -> Recovery:
    return Recovery("test", ("a:1",), 1000 * MB, 1000 * MB - freed, expected, 0.25, False, kept_free_bytes=kept_free)


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


@pytest.mark.parametrize(
    ("freed_mb", "kept_free_mb", "unreturned_mb", "shortfall_mb"),
    [
        (40, 60, 60, 0),
        (40, 50, 60, 0),
        (40, 49, 60, 11),  # neither here nor there
        (0, 100, 100, 0),
        (95, 5, 0, 0),
        (50, 0, 50, 50),
    ],
)
def test_what_the_heap_keeps_free_is_no_shortfall(
    freed_mb: int, kept_free_mb: int, unreturned_mb: int, shortfall_mb: int
) -> None:
    found = recovery(expected=100 * MB, freed=freed_mb * MB, kept_free=kept_free_mb * MB)
    assert found.freed_bytes == freed_mb * MB
    assert found.unreturned_bytes == unreturned_mb * MB
    assert found.shortfall_bytes == shortfall_mb * MB


def test_a_recovery_is_told_with_all_its_figures() -> None:
    found = recovery(expected=100 * MB, freed=50 * MB, kept_free=10 * MB).as_dict()
    assert found == {
        "victims": ["a:1"],
        "before_bytes": 1000 * MB,
        "after_bytes": 950 * MB,
        "freed_bytes": 50 * MB,
        "expected_bytes": 100 * MB,
        "kept_free_bytes": 10 * MB,
        "shortfall_bytes": 40 * MB,
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


def test_ids_of_events_grow_and_say_what_came_after() -> None:
    history = History(3)
    for number in range(5):
        history.add("level", level=WARNING, usage_bytes=number, cause="test")
    assert [event.id for event in history.snapshot()] == [3, 4, 5]
    assert [event.id for event in history.after(4)] == [5]
    assert [event.id for event in history.after(0)] == [3, 4, 5]
    assert (history.last_id, history.after(5)) == (5, ())


def test_an_event_is_plain_json() -> None:
    event = History(1).add("level", level=CRITICAL, usage_bytes=7, cause="sample", details={"from": "normal"})
    found = json.loads(json.dumps(event.as_dict()))
    assert found.pop("at") > 1.6e9
    rest = {"kind": "level", "level": "critical", "usage_bytes": 7, "cause": "sample", "from": "normal"}
    assert found == {"id": 1, **rest}
