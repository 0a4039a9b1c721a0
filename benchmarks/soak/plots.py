"""The plots of a soak, from the rows of its report: idle memory, which has to be flat, and residents' times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.report import Report
from benchmarks.soak.verdict import MAX_DRIFT

#: Of a window: a percentile of fewer says nothing.
_LEAST_ANSWERS: Final = 50


def add(report: Report) -> None:
    """Adds a row for each plot that there are readings for."""
    for plot in (*_idle(report), *_times(report)):
        report.add("plot", **plot)


def _idle(report: Report) -> Iterator[dict[str, Any]]:
    rows = [row for row in report.rows if row["kind"] == "idle"]
    if len(rows) < 2:
        return
    middle = statistics.median(row["committed_bytes"] for row in rows)
    yield {
        "title": "idle memory: nothing loaded, nobody asks",
        "note": f"Committed memory; the levels are {MAX_DRIFT:.0%} from the median. Flat is what it has to be.",
        "x": {"label": "time", "unit": "s"},
        "y": {"label": "committed", "unit": "bytes", "low": 0.9 * middle},
        "series": [{"name": "idle", "points": [[row["at_s"], row["committed_bytes"]] for row in rows]}],
        "levels": [
            {"at": middle * (1 + sign * MAX_DRIFT), "name": f"{sign * MAX_DRIFT:+.0%}", "style": "warning"}
            for sign in (1, -1)
        ],
    }


def _times(report: Report) -> Iterator[dict[str, Any]]:
    rows = [row for row in report.rows if row["kind"] == "window" and row["answers"] >= _LEAST_ANSWERS]
    if len(rows) < 2:
        return
    yield {
        "title": "times of the models that are always in use",
        "note": "Over ten seconds each. The calm phase comes first.",
        "x": {"label": "time", "unit": "s"},
        "y": {"label": "time of a request", "unit": "ms", "log": True},
        "series": [
            {"name": name, "points": [[row["at_s"], row[key]] for row in rows], "dashed": key == "p99_ms"}
            for name, key in (("median", "p50_ms"), ("99 %", "p99_ms"))
        ],
    }
