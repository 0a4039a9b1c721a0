"""The host killed at random moments; the long form is `python -m benchmarks kill`."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from sizes import FULL

from benchmarks.kill.run import run
from benchmarks.kill.stage import Repository, left_over
from benchmarks.report import Report

TIMES = 40 if FULL else 2


@pytest.mark.timeout(240)
def test_after_a_kill_at_any_moment_the_next_start_is_clean_and_answers_right() -> None:
    lines = io.StringIO()
    report = Report("kill", {}, lines)
    run(report, times=TIMES, seed=5, cache=None)
    assert report.violations == []
    total = json.loads(lines.getvalue().splitlines()[-1])
    assert total["kills"] == TIMES
    assert total["checked_answers"] >= TIMES, "no start was looked at"


def test_halves_of_artifacts_and_leftovers_are_seen(tmp_path: Path) -> None:
    artifact = tmp_path / ".modelhost" / ("a" * 32)
    artifact.mkdir(parents=True)
    (artifact / "manifest.json").write_text(json.dumps({"files": {"model.bin": [3, 0, "0" * 64]}}))
    (artifact / "model.bin").write_bytes(b"abc")
    (tmp_path / ".modelhost" / "tmp-1").mkdir()
    assert Repository(tmp_path, {}, {}).broken() == [
        "tmp-1 was left over",
        f"{'a' * 32}/model.bin is not what was written",
    ]


def test_what_is_being_written_is_no_leftover_until_nobody_has_it_open(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    with (state / "tmp-2").open("wb"):
        assert left_over(tmp_path) == []
    assert left_over(tmp_path) == [state / "tmp-2"]
