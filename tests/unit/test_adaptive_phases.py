"""Phases of a load that changes: what is asked when, and the verdict on what became of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.adaptive import Fleet
from benchmarks.adaptive_phases import MOST_TURNS, SHAPES, judge, plan, told
from benchmarks.models import Case, ModelSet
from benchmarks.plots import timeline
from benchmarks.report import Report

_MB = 1 << 20


@pytest.fixture
def models() -> Fleet:
    one = np.zeros(1, np.float32)
    small, hot, heap = (tuple(Case(f"{kind}{number}", one, one) for number in range(9)) for kind in "swh")
    return Fleet(Path(), small, hot, heap, ModelSet(Path(), (*heap, *hot, *small)))


def test_each_shape_comes_again_and_asks_at_its_rate_whatever_is_answered(models: Fleet) -> None:
    phases = plan(models, minutes=60, rate=5, seed=1)
    assert [phase.name for phase in phases] == [*SHAPES] * 3
    assert {phase.length_s for phase in phases} == {300}
    for phase in phases:
        moments = [at_s for at_s, _ in phase.due]
        assert moments == sorted(moments)
        assert 0 <= moments[0] <= moments[-1] < 300
        assert len(moments) == (750 if phase.name in ("heavy", "bursts") else 1500)
    assert plan(models, minutes=60, rate=5, seed=1) == phases
    assert phases[0].due != phases[4].due


def test_a_burst_comes_at_once(models: Fleet) -> None:
    (bursts,) = (phase for phase in plan(models, minutes=4, rate=5, seed=1) if phase.name == "bursts")
    moments = [at_s for at_s, (_, rows) in bursts.due if rows > 1]
    assert len(moments) > 3 * len(set(moments)) - 3


def _change(at_s: float, from_mb: int, to_mb: int, rule: str = "more") -> dict[str, Any]:
    return {
        "at_s": at_s,
        "rule": rule,
        "from_warning_bytes": from_mb * _MB,
        "warning_bytes": to_mb * _MB,
        "from_critical_bytes": 192 * _MB,
        "critical_bytes": 192 * _MB,
    }


def _judged(*changes: dict[str, Any], shape: str = "heavy", **figures: int) -> Report:
    report = Report("adaptive", {}, io.StringIO())
    row = {"phase": f"1 {shape}", "shape": shape, "began_at": 1000.5, "took_s": 60.0, "core_host": 0.1}
    row |= {"requests": 10, "served": 10, "refused": 0, "wrong": 0, "failed": 0, "core_clients": 0.1, **figures}
    found = [row, {**row, "phase": "2 thrash", "shape": "thrash", "began_at": 1060.5}]
    usage = {"at_s": [0.0, 30.0, 70.0], "high_bytes": [90 * _MB, 100 * _MB, 80 * _MB]}
    for one in told(found, changes, usage, began=1000.0):
        report.add("phase", **one)
    judge(report, oom_kills=0)
    return report


def test_changes_and_usage_are_told_of_the_phase_that_they_fall_into() -> None:
    report = _judged(_change(10, 172, 180), _change(19, 180, 172, "undone"), _change(62, 172, 150, "cache"))
    first, second, verdict = report.rows
    assert (first["changes"], first["rules"], first["turns"]) == (2, "1 more, 1 undone", 1)
    assert (first["warning_least_bytes"], first["warning_most_bytes"]) == (172 * _MB, 180 * _MB)
    assert (second["changes"], second["rules"], second["turns"]) == (1, "1 cache", 0)
    assert [row["usage_peak_bytes"] for row in (first, second)] == [100 * _MB, 80 * _MB]
    assert (verdict["changes"], verdict["turns"], verdict["turns_most_steady"]) == (3, 1, 1)
    assert verdict["core"] == 0.2
    assert not report.violations


def test_a_threshold_that_swings_while_the_load_is_steady_is_a_violation() -> None:
    swings = [_change(10 + at, *((172, 180) if at % 2 == 0 else (180, 172))) for at in range(MOST_TURNS + 2)]
    assert _judged(*swings[:-1]).violations == []
    assert _judged(*swings).violations == ["1 heavy: warning turned 4 times while the load was steady"]
    assert _judged(*swings, shape="diurnal").violations == []


def test_what_is_wrong_or_lost_is_a_violation_and_a_refusal_is_none() -> None:
    assert _judged(refused=1, served=9).violations == []
    assert _judged(wrong=1, failed=1).violations == ["2 answers are wrong", "2 requests were lost"]


def test_the_picture_has_warning_where_it_was_moved() -> None:
    recorded = {
        "run": "a run",
        "took_s": 100.0,
        "bounds": {"warning": 180 * _MB, "limit": 256 * _MB},
        "usage": {"at_s": [0.0], "low_bytes": [_MB], "high_bytes": [_MB]},
        "thresholds": [_change(50, 172, 180)],
        **{key: [] for key in ("levels", "marks", "loads", "preparations", "leaves", "refusals")},
        "requests": {},
    }
    assert list(timeline._steps(recorded, "warning", 180 * _MB)) == [
        (0.0, 172 * _MB),
        (50, 172 * _MB),
        (50, 180 * _MB),
        (100.0, 180 * _MB),
    ]
    assert 'class="warning"' in timeline.draw(recorded)
