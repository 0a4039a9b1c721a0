"""The soak in short: everything at once for some seconds, with every kind of fault; in a real memory cgroup.

Drift and times take minutes to say anything about: `python -m benchmarks soak`.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from benchmarks.report import Report
from benchmarks.soak import run as soak
from modelhost.testing import cgroup

_REASON = cgroup.available()
pytestmark = [pytest.mark.cgroup, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]


def test_nothing_is_killed_lost_or_wrong_while_everything_goes_wrong(tmp_path: Path) -> None:
    out = io.StringIO()
    report = Report("soak", {}, out)
    soak.run(report, soak.Plan(seconds=4, models=8, limit_bytes=256 << 20, seed=1, least_faults=8), cache=tmp_path)
    assert report.violations == []
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    (verdict,) = [row for row in rows if row["kind"] == "verdict"]
    assert verdict["passed"]
    assert verdict["oom_kills"] == 0
    assert verdict["right"] > 300
    assert len(verdict["faults"]) >= 8
    assert {row["phase"] for row in rows if row["kind"] == "window"} == {"calm", "rough"}
