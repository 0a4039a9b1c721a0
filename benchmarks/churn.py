"""Load, ask, unload, hundreds and thousands of times; usage may not drift away from where it began.

Some of the models may be prepared: their sessions map files, the others' weights lie on the heap.

Before each reading the model files leave the page cache. The kernel's index of cached pages counts
as usage on cgroup v1, which has no figure to take it out by: 46 KB for each file of 20 MB, given
back with the pages, or when memory gets short. It is no memory of the host's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Final

from benchmarks.artifacts import prepare
from benchmarks.client import Client
from benchmarks.models import ModelSet
from benchmarks.process import HostProcess, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.recovery import BACK_BYTES
from benchmarks.report import Report
from benchmarks.smaps import read_process

_MB: Final = 1 << 20
DRIFT_BYTES: Final = 2 * _MB
_PROGRESS_EVERY: Final = 25
#: A reading is the median of this many cycles: kernel memory (sockets, page tables) sways a little.
_WINDOW: Final = 9


def run(report: Report, models: ModelSet, *, limit_bytes: int, cycles: int, is_prepared: Sequence[bool]) -> None:
    """Runs `cycles` cycles over all models in turn, against one host; prepares those that `is_prepared` says."""
    if any(is_prepared):
        names = [case.name for case, wanted in zip(models.cases, is_prepared, strict=True) if wanted]
        prepare(models.directory, names=names, progress=report.progress)
    models.forget_pages()
    with (
        running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host,
        Recording(report, host, f"{cycles} cycles of load, ask, unload"),
        Client(host.url) as client,
    ):
        baseline_bytes = client.memory()["baseline_bytes"]
        usages, started = [], time.monotonic()
        for cycle in range(1, cycles + 1):
            case = models.cases[cycle % len(models.cases)]
            client.load(case.name)
            right = case.is_right(client.infer(case.name, case.question))
            client.unload(case.name)
            report.require(right, f"cycle {cycle}: a wrong answer")
            models.forget_pages()
            usages.append(host.usage_bytes())
            if cycle == 1 or cycle % _PROGRESS_EVERY == 0 or cycle == cycles:
                _note(report, host, cycle, usages, baseline_bytes)
                report.progress(f"{cycle} of {cycles} cycles")
        took_s = time.monotonic() - started
        figures, metrics = host.group_figures(), client.metrics()
    first, last = statistics.median(usages[:_WINDOW]), statistics.median(usages[-_WINDOW:])
    noted = [row for row in report.rows if row["kind"] == "cycle"]
    report.add(
        "total",
        cycles=cycles,
        models=len(models.cases),
        prepared=sum(is_prepared),
        baseline_bytes=baseline_bytes,
        first_bytes=first,
        last_bytes=last,
        drift_bytes=last - first,
        above_baseline_bytes=last - baseline_bytes,
        most_above_baseline_bytes=max(usages) - baseline_bytes,
        committed_drift_bytes=noted[-1]["committed_bytes"] - noted[0]["committed_bytes"],
        shortfall_bytes=metrics.get("memory_shortfall_bytes", 0),
        cycle_ms=round(took_s / cycles * 1e3, 2),
        oom_kills=figures.oom_kills if figures else None,
    )
    report.require(last - first <= DRIFT_BYTES, f"usage drifted by {(last - first) / _MB:.1f} MB in {cycles} cycles")
    report.require(
        last - baseline_bytes <= BACK_BYTES,
        f"usage is {(last - baseline_bytes) / _MB:.1f} MB above the baseline with nothing loaded",
    )
    report.table(
        "cycle",
        {
            "cycle": "after cycle",
            "usage_bytes": "usage",
            "above_baseline_bytes": "above baseline",
            "committed_bytes": "committed",
        },
    )
    report.summary("total")


def _note(report: Report, host: HostProcess, cycle: int, usages: list[int], baseline_bytes: int) -> None:
    report.add(
        "cycle",
        cycle=cycle,
        usage_bytes=usages[-1],
        above_baseline_bytes=usages[-1] - baseline_bytes,
        committed_bytes=read_process(host.pid).committed_bytes,
    )
