"""The benchmarks of memory in their short forms, all at once since most of their time is waiting; and one page of all.

What they need to say anything about figures is minutes: `python -m benchmarks`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sizes import FULL

from benchmarks import records
from benchmarks.artifacts import prepare
from benchmarks.models import conv_nets
from benchmarks.places import ROOT
from benchmarks.plots import page
from benchmarks.records import Record
from modelhost.testing import cgroup

_REASON = cgroup.available()
# Not marked as one that has to run alone: what measures are processes of its own, and nothing here looks at times.
pytestmark = [pytest.mark.timeout(500), pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]

#: Others that are short have more models than fit, and are held at critical and let go, too; test_memory_limit.py has
#: what comes back, test_on_load.py starts hosts with prepared models.
_ONLY_IN_FULL = {
    "sequential": ["--models", "2", "--rounds", "1"],
    "cold-start": ["--runs", "1"],
    "recovery": ["--short"],
    "folders": ["--folders", "40", "--rounds", "1"],
}
_SHORT = {
    "pressure": ["--short", "--models", "2", "--requests", "6", "--hold", "0.5"],
    "leaks": ["--iterations", "40", "--only", "infer"],
    "fragmentation": ["--short", "--cycles", "15"],
    "stress": ["--short", "--models", "3", "--seconds", "1"],
    "density": ["--models", "3", "--limits", "112MB"],
    "adaptive": ["--short", "--load", "thrash"],
    **(_ONLY_IN_FULL if FULL else {}),
}
_RECORDED = ("sequential", "pressure", "recovery", "fragmentation", "stress", "density")
_PATIENCE_S = 400
_AT_ONCE = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Record]]:
    """Runs all of them; each has to end with status 0."""
    folder = tmp_path_factory.mktemp("short")
    cache = folder / "cache"
    for label in ("prepared-all", ""):
        made = conv_nets(3, cache=cache, label=label)
        if label:
            prepare(made.directory, progress=lambda text: None)

    def run(name: str) -> tuple[str, Record]:
        out = folder / f"{name}.jsonl"
        command = [sys.executable, "-m", "benchmarks", name, *_SHORT[name], "--out", str(out)]
        if name not in ("leaks", "folders"):
            command += ["--cache", str(cache)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-3000:]}"
        (record,) = records.read([out])
        return name, record

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        yield dict(threads.map(run, _SHORT))


@pytest.mark.parametrize("name", _SHORT)
def test_it_holds_and_says_so(runs: dict[str, Record], name: str) -> None:
    assert runs[name].verdict == "holds"
    assert list(runs[name].tables())


@pytest.mark.parametrize("name", [name for name in _RECORDED if name in _SHORT])
def test_memory_was_recorded_over_time(runs: dict[str, Record], name: str) -> None:
    for recorded in runs[name].of_kind("recorded"):
        assert recorded["bounds"]["baseline"] < max(recorded["usage"]["high_bytes"]) <= recorded["bounds"]["limit"]
        assert recorded["usage"]["at_s"][-1] <= recorded["took_s"]


def test_a_host_that_is_held_at_critical_refuses_and_serves_again_when_it_is_let_go(runs: dict[str, Record]) -> None:
    phases = {row["phase"]: row for row in runs["pressure"].of_kind("held")}
    assert phases["at critical"]["others_refused"] > 0
    assert phases["let go"]["others_right"] > 0
    assert phases["let go"]["others_refused"] == 0


def test_one_page_has_all(runs: dict[str, Record]) -> None:
    text = page.render(list(runs.values()))
    assert text.count("<h2>") == len(_SHORT)
    assert "<h3>held against needed</h3>" in text
    assert "<h3>models held at once, for each limit</h3>" in text


@pytest.mark.full
@pytest.mark.skipif(not FULL, reason="takes ten seconds; MODELHOST_TEST_FULL=1")
def test_a_host_lives_through_phases(tmp_path: Path) -> None:
    out, page_file = tmp_path / "phases.jsonl", tmp_path / "phases.html"
    command = [sys.executable, "-m", "benchmarks", "adaptive", "--short", "--minutes", "0.1"]
    command += ["--cache", str(tmp_path), "--out", str(out), "--html", str(page_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (record,) = records.read([out])
    assert [row["shape"] for row in record.of_kind("phase")] == ["thrash", "heavy", "bursts", "diurnal"]
    assert "<h3>adaptive thresholds, phase by phase</h3>" in page_file.read_text()
