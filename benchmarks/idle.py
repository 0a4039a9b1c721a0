"""Must show 5: how long a start takes, and what the host holds that has loaded nothing yet."""

from __future__ import annotations

import contextlib
import statistics
import time
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


#: All that watches memory by itself and is off by default; the forecast is on in any host.
EVERYTHING: Final = {"MEMORY_POLICY": "adaptive", "POOL_PREDICTIVE": "true", "STATE_KEEP_LEARNT": "false"}
KINDS: Final = ("default", "everything on")
CPU_PERCENT: Final = 0.5
MORE_BYTES: Final = 4 * _MB
_SETTLED_S: Final = 2.0


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


def watch(report: Report, models: Path, *, limit_bytes: int | None, runs: int, seconds: float) -> None:
    """Has hosts idle as they are by default and with all that looks at memory by itself on, in turns."""
    for number in range(1, runs + 1):
        for kind, settings in (("default", {}), ("everything on", EVERYTHING)):
            report.progress(f"{kind}, {number} of {runs}: {seconds:g} s")
            with running_host(models, limit_bytes=limit_bytes, settings=settings) as host:
                time.sleep(_SETTLED_S)
                before_s, began = cpu_s(host.pid), time.monotonic()
                time.sleep(seconds)
                share = (cpu_s(host.pid) - before_s) / (time.monotonic() - began)
                committed_bytes = read_process(host.pid).committed_bytes
            report.add(
                "idle", host=kind, run=number, cpu_percent=round(share * 100, 3), committed_bytes=committed_bytes
            )
    rows = {kind: [row for row in report.rows if row["kind"] == "idle" and row["host"] == kind] for kind in KINDS}
    median = {
        kind: {key: statistics.median(row[key] for row in found) for key in ("cpu_percent", "committed_bytes")}
        for kind, found in rows.items()
    }
    more_bytes = median[KINDS[1]]["committed_bytes"] - median[KINDS[0]]["committed_bytes"]
    report.add(
        "everything",
        **median[KINDS[1]],
        more_percent=round(median[KINDS[1]]["cpu_percent"] - median[KINDS[0]]["cpu_percent"], 3),
        more_bytes=more_bytes,
    )
    report.table("idle", {"host": "host", "run": "run", "cpu_percent": "% of a core", "committed_bytes": "committed"})
    report.summary("everything")
    report.require(median[KINDS[1]]["cpu_percent"] < CPU_PERCENT, "it takes more of a core than it may")
    report.require(more_bytes < MORE_BYTES, f"it takes {more_bytes} bytes more than a host without")


def cpu_s(pid: int) -> float:
    """Returns the time that all threads of a process have had of a core."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9
