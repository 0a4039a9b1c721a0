"""Records read again: what runs of benchmarks left as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Report, environment, lines_of

#: The last row of a run: whether what must hold did, how long it took, and which tables its results make.
OUTCOME: Final = "outcome"
_SHARED: Final = ("benchmark", "parameters", "commit", "machine", "versions")


@dataclass(slots=True)
class Record:
    """One run of one benchmark."""

    benchmark: str
    parameters: Mapping[str, Any]
    environment: Mapping[str, Any]
    at: float
    """Unix time of its beginning; of its first row where it has ended early."""
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def outcome(self) -> Mapping[str, Any] | None:
        """The last row; None where the run ended before it, or is of a benchmark that writes none."""
        return next((row for row in self.rows if row["kind"] == OUTCOME), None)

    @property
    def verdict(self) -> str:
        """What became of the run, in a few words."""
        if self.outcome is None:
            return "ended early"
        count = len(self.outcome["violations"])
        return f"{count} violated" if count else "holds"

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Returns the rows of one kind, in their order."""
        return [row for row in self.rows if row["kind"] == kind]

    def tables(self) -> Iterator[str]:
        """Yields the run's tables as text."""
        for table in (self.outcome or {}).get("tables", ()):
            yield from lines_of(self.of_kind(table["of"]), table["columns"], table["of"])


def of_report(report: Report) -> Record:
    """Returns the record of a run that has just ended."""
    rows = [{key: value for key, value in row.items() if key != "benchmark"} for row in report.rows]
    began = time.time() - (time.monotonic() - report.started)
    return Record(report.benchmark, report.parameters, environment(), began, rows)


def read(files: Iterable[Path]) -> list[Record]:
    """Returns the runs in the files, in their order. Raises ValueError, with file and line, for what is no record."""
    found: list[Record] = []
    for file in files:
        is_open = False
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                shared = {key: row.pop(key) for key in _SHARED}
                at, kind = row["at"], row["kind"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{file}, line {number}: expected a row of a benchmark's record: {error!r}") from None
            benchmark, parameters = shared.pop("benchmark"), shared.pop("parameters")
            last = found[-1] if is_open else None
            if last is None or (last.benchmark, last.parameters) != (benchmark, parameters):
                found.append(Record(benchmark, parameters, shared, at))
            found[-1].rows.append(row)
            is_open = kind != OUTCOME
            if kind == OUTCOME:
                found[-1].at = at - row["took_s"]
    return found
