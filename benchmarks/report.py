"""Results: JSON lines that say where they were measured, a table for people, progress on long work."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TextIO

from benchmarks.places import ROOT

_LIBRARIES: Final = ("onnxruntime", "numpy", "fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools")
_MB: Final = 1 << 20


@dataclass(slots=True)
class Report:
    """Takes one benchmark's results: a JSON line each, to `out`; `table` prints to standard error."""

    benchmark: str
    parameters: Mapping[str, Any]
    out: TextIO
    rows: list[dict[str, Any]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    """Which tables were printed: those that a record shows again."""
    started: float = field(default_factory=time.monotonic)

    def add(self, kind: str, **figures: Any) -> None:
        """Writes one result."""
        row = {"benchmark": self.benchmark, "kind": kind, **figures}
        self.rows.append(row)
        self.out.write(
            json.dumps({**row, "at": round(time.time(), 3), "parameters": self.parameters, **environment()}) + "\n"
        )
        self.out.flush()

    def require(self, holds: bool, text: str) -> None:
        """Notes a violation where `holds` is false; the exit status tells of it."""
        if not holds:
            self.violations.append(text)

    def progress(self, text: str) -> None:
        """Says how far it is; overwrites itself on a terminal."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{self.benchmark}: {text}")
        else:
            sys.stderr.write(f"{self.benchmark}: {text}\n")
        sys.stderr.flush()

    def table(self, kind: str, columns: Mapping[str, str]) -> None:
        """Prints the results of one kind; `columns` maps figures to headings."""
        self._print(kind, dict(columns))

    def summary(self, kind: str) -> None:
        """Prints one result as a list of its figures."""
        self._print(kind, None)

    def close(self) -> None:
        """Writes the last row: whether everything held that must, and what it takes to print the tables again."""
        took_s = round(time.monotonic() - self.started, 3)
        self.add("outcome", holds=not self.violations, violations=self.violations, took_s=took_s, tables=self.tables)

    def _print(self, kind: str, columns: dict[str, str] | None) -> None:
        self.tables.append({"of": kind, "columns": columns})
        if sys.stderr.isatty():
            sys.stderr.write("\r\033[K")
        for text in lines_of([row for row in self.rows if row["kind"] == kind], columns, kind):
            sys.stderr.write(f"\n{text}\n")


def lines_of(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None, kind: str) -> Iterator[str]:
    """Yields the tables of some rows as text; without columns a list of figures for each row."""
    yield from (align(cells) for cells in cells_of(rows, columns, kind))


def cells_of(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None, kind: str
) -> Iterator[list[list[str]]]:
    """Yields the same as cells, the headings first."""
    if columns is not None:
        yield [list(columns.values()), *([shown(key, row.get(key)) for key in columns] for row in rows)]
        return
    for row in rows:
        yield [[kind, ""], *([key, shown(key, row[key])] for key in row if key not in ("benchmark", "kind", "at"))]


def align(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as columns, the first to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def shown(key: str, value: Any) -> str:
    """Prints a figure by its unit, which is the end of its name."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, (int, float)):
        if key.endswith("_bytes"):
            if 0 < abs(value) < _MB:
                return f"{value / 1024:.0f} KB"
            return f"{value / _MB:.1f} MB" if abs(value) < 10_000 * _MB else f"{value / _MB / 1024:,.0f} GB"
        if key.endswith(("_ms", "_us")):
            return f"{value:.1f} {key[-2:]}"
        if key.endswith("_s"):
            return f"{value:.2f} s"
        if isinstance(value, float):
            return f"{value:.2f}"
    return str(value)


@cache
def environment() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "commit": _commit(),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
    }


def _commit() -> str:
    """The commit, with `-dirty` where files differ from it. Takes no lock: a benchmark changes nothing."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return answer.stdout.strip() or "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
