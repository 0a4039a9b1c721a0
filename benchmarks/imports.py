"""What importing each runtime dependency adds to a process: committed memory and time, in order.

Each library is charged with what it brings and nobody before it has brought. The comments in
`pyproject.toml` cite these figures.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Final

from benchmarks.places import ROOT
from benchmarks.report import Report

#: From what others need to what needs others; the last ones are ours, in the order of a start.
ORDER: Final = (
    "click",
    "numpy",
    "onnxruntime",
    "psutil",
    "cachetools",
    "orjson",
    "fastapi",
    "pydantic_settings",
    "uvicorn",
    "uvloop",
    "httptools",
    "modelhost.cli.serve",
    "modelhost.api.app",
    "modelhost.runtime.ort",
)

#: The allocator's settings (modelhost/memory/allocator.py), said to glibc before the process begins.
_ENVIRON: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(64 << 10),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "MALLOC_ARENA_MAX": "2",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONPATH": str(ROOT),
}


def run(report: Report, *, runs: int) -> None:
    """Imports everything in `runs` fresh processes; reports the medians."""
    measured = []
    for number in range(runs + 1):
        report.progress(f"process {number} of {runs}")
        lines = subprocess.run(
            [sys.executable, "-m", "benchmarks.importer", *ORDER],
            env={**os.environ, **_ENVIRON},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        if number:  # the first one warms the page cache
            measured.append([_read(line) for line in lines.splitlines()])
    total_bytes = 0.0
    for rows in zip(*measured, strict=True):
        added_bytes = statistics.median(row[1] for row in rows)
        total_bytes += added_bytes
        report.add(
            "import",
            library=rows[0][0],
            committed_bytes=added_bytes,
            took_ms=round(statistics.median(row[3] for row in rows) * 1e3, 2),
            rss_bytes=statistics.median(row[2] for row in rows),
            total_committed_bytes=total_bytes,
        )
    report.table(
        "import",
        {
            "library": "import",
            "committed_bytes": "adds committed",
            "rss_bytes": "adds RSS",
            "took_ms": "takes",
            "total_committed_bytes": "committed so far",
        },
    )


def _read(line: str) -> tuple[str, int, int, float]:
    library, committed, rss, took = line.split()
    return library, int(committed), int(rss), float(took)
