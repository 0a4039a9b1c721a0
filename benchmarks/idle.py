"""Must show 5: how long a start takes, and what the host holds that has loaded nothing yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.process import running_host
from benchmarks.report import Report
from benchmarks.smaps import read_process

_MB: Final = 1 << 20
START_S: Final = 1.5
COMMITTED_BYTES: Final = 60 * _MB
RSS_BYTES: Final = 100 * _MB


def run(report: Report, models: Path, *, limit_bytes: int | None, runs: int) -> None:
    """Starts `runs` hosts, one after another; the bounds are on the medians."""
    with running_host(models, limit_bytes=limit_bytes):
        pass  # the first start reads the libraries from disk and compiles what has no bytecode yet
    for number in range(1, runs + 1):
        report.progress(f"start {number} of {runs}")
        with running_host(models, limit_bytes=limit_bytes) as host:
            figures = read_process(host.pid)
            report.add(
                "start",
                run=number,
                announced_ms=round(host.announced_s * 1e3, 1),
                ready_ms=round(host.ready_s * 1e3, 1),
                committed_bytes=figures.committed_bytes,
                rss_bytes=figures.rss_bytes,
                pss_bytes=figures.pss_bytes,
                usage_bytes=host.usage_bytes(),
            )
    starts = list(report.rows)
    shares: dict[str, Callable[[list[Any]], Any]] = {"min": min, "median": statistics.median, "max": max}
    keys = [key for key in starts[0] if key.endswith(("_ms", "_bytes"))]
    for name, pick in shares.items():
        report.add("summary", of=name, **{key: pick([row[key] for row in starts]) for key in keys})
    report.table("summary", {"of": "", **{key: key.rsplit("_", 1)[0] for key in keys}})
    median = report.rows[-2]
    for key, bound in (("ready_ms", START_S * 1e3), ("committed_bytes", COMMITTED_BYTES), ("rss_bytes", RSS_BYTES)):
        report.require(median[key] <= bound, f"{key} is {median[key]}, more than {bound}")
