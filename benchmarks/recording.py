"""What happened to one host, for its picture: usage over time from outside, its own events, loads, requests.

A recording becomes one row of the report, of kind `recorded`, however long it was: usage is kept as the least and the
most of each of at most two thousand stretches, requests as percentiles, over time and over all.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.client import Client, RequestFailed
from benchmarks.percentiles import percentile
from benchmarks.process import HostProcess
from benchmarks.report import Report

#: Settings of a host that is recorded: its log can be read. A longer history of its events would grow for as long.
RECORDED: Final[Mapping[str, str]] = {"LOGGING_FORMAT": "json"}

#: Seldom enough to cost a fortieth of a core (a reading of a cgroup takes up to 0.7 ms), often enough to see a load.
_INTERVAL_S: Final = 0.02
#: The host is asked for its events so often; it keeps the last 256, and some milliseconds go into an answer.
_EVENTS_S: Final = 5.0
_STRETCHES: Final = 2000
_WINDOWS: Final = 200
_LOADED: Final = re.compile(r"^loaded (\S+) in (\d+) ms")
_PREPARED: Final = re.compile(r"^prepared (\S+) in ([\d.]+) s")
_LEAVE: Final = re.compile(r"^(.+?) leave\b")
#: Of a change of thresholds.
_CHANGED: Final = (
    "rule",
    "reason",
    "from_warning_bytes",
    "warning_bytes",
    "from_critical_bytes",
    "critical_bytes",
    "usage_bytes",
)
#: Of the percentile curve: dense where the tail is.
_SHARES: Final = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1)


@dataclass(slots=True)
class Series:
    """Least and most of each stretch of time; stretches get longer as there are more. One thread."""

    stretch_s: float = _INTERVAL_S
    at_s: list[float] = field(default_factory=list)
    low: list[int] = field(default_factory=list)
    high: list[int] = field(default_factory=list)

    def add(self, at_s: float, value: int) -> None:
        """Takes a reading in."""
        if self.at_s and at_s < self.at_s[-1] + self.stretch_s:
            self.low[-1], self.high[-1] = min(self.low[-1], value), max(self.high[-1], value)
            return
        self.at_s.append(at_s)
        self.low.append(value)
        self.high.append(value)
        if len(self.at_s) > _STRETCHES:
            self._halve()

    def _halve(self) -> None:
        self.stretch_s *= 2
        self.low = [min(self.low[at : at + 2]) for at in range(0, len(self.low), 2)]
        self.high = [max(self.high[at : at + 2]) for at in range(0, len(self.high), 2)]
        self.at_s = self.at_s[::2]


class Recording:
    """Watches a host for the scope of the context, then adds the row; the host runs with the settings `RECORDED`.

    `requests` and `mark` are for whoever drives the host, from any thread.
    """

    def __init__(self, report: Report, host: HostProcess, name: str) -> None:
        self._report, self._host, self._name = report, host, name
        self.began = time.time()
        """Unix time from which all other moments count."""
        self._usage = Series()
        self._marks: list[tuple[float, str]] = []
        self._requests: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._memory: dict[str, Any] = {}
        self._levels: dict[float, str] = {}
        self._changes: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        self._look()
        self._levels.clear()
        self._changes.clear()
        self.began = time.time()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        took_s = time.time() - self.began
        self._look()
        self._report.add(
            "recorded",
            run=self._name,
            took_s=round(took_s, 3),
            bounds={name: self._memory.get(f"{name}_bytes") for name in ("baseline", "warning", "critical", "limit")},
            usage={
                "at_s": [round(at_s, 3) for at_s in self._usage.at_s],
                "low_bytes": self._usage.low,
                "high_bytes": self._usage.high,
            },
            levels=[[self._since(at), level] for at, level in sorted(self._levels.items()) if at >= self.began],
            thresholds=[self._changed(event) for _, event in sorted(self._changes.items())],
            marks=[[self._since(at), text] for at, text in self._marks],
            requests={name: _summed(asked, took_s) for name, asked in self._requests.items()},
            **_log(self._host.log, self.began),
        )

    def mark(self, text: str) -> None:
        """Notes a moment that the picture shows: a phase begins, something is done to the host."""
        self._marks.append((time.time(), text))

    def request(self, phase: str, latency_ms: float, result: str = "ok") -> None:
        """Notes a request that has just ended: ok, or in a word what became of it."""
        self._requests[phase].append((time.time() - self.began, latency_ms, result))

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._stop.wait(_INTERVAL_S):
            with contextlib.suppress(OSError, RequestFailed):  # it is gone; whoever drives it will notice
                self._usage.add(time.time() - self.began, self._host.usage_bytes())
            if time.monotonic() - looked > _EVENTS_S:
                self._look()
                looked = time.monotonic()

    def _look(self) -> None:
        """Takes in the host's bounds, and the levels that it went through."""
        with contextlib.suppress(RequestFailed), Client(self._host.url, timeout_s=_EVENTS_S) as client:
            self._memory = client.memory()
            self._levels |= {
                float(event["at"]): event["level"] for event in self._memory["events"] if event["kind"] == "level"
            }
            self._changes |= {
                event["id"]: event
                for event in self._memory["events"]
                if event["kind"] == "policy" and event["at"] >= self.began
            }

    def _changed(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a change of thresholds as it is recorded."""
        return {"at_s": self._since(event["at"]), **{key: event[key] for key in _CHANGED}}

    def _since(self, at: float) -> float:
        return round(at - self.began, 3)


def _summed(asked: list[tuple[float, float, str]], took_s: float) -> dict[str, Any]:
    """Returns percentiles of what was answered, over all and in windows of time, and when the others ended."""
    good = sorted(latency_ms for _, latency_ms, result in asked if result == "ok")
    window_s = max(0.1, took_s / _WINDOWS)
    windows: dict[int, list[float]] = defaultdict(list)
    others: dict[str, list[float]] = defaultdict(list)
    for at_s, latency_ms, result in asked:
        if result == "ok":
            windows[int(at_s / window_s)].append(latency_ms)
        else:
            others[result].append(round(at_s, 3))
    rows = [(number, sorted(found)) for number, found in sorted(windows.items())]
    return {
        "count": len(asked),
        "ok": len(good),
        "percentiles": [[share, round(percentile(good, share), 3)] for share in _SHARES] if good else [],
        "window_s": round(window_s, 3),
        "over_time": {
            "at_s": [round((number + 0.5) * window_s, 3) for number, _ in rows],
            "p50_ms": [round(percentile(found, 0.5), 3) for _, found in rows],
            "most_ms": [round(found[-1], 3) for _, found in rows],
        },
        "others": dict(others),
    }


def _log(file: Path, began: float) -> dict[str, Any]:
    """Reads what the host says of loads, preparing, leaving and refusals; seconds since `began`."""
    loads, preparations, leaves, refusals = [], [], [], []
    for line in file.read_text(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # what the interpreter itself says, or the line that is being written
        at_s = round(datetime.fromisoformat(entry["time"]).timestamp() - began, 3)
        text = entry["message"]
        if at_s < 0:
            continue
        if found := _LOADED.match(text):
            loads.append([round(at_s - float(found[2]) / 1e3, 3), at_s, found[1]])
        elif found := _PREPARED.match(text):
            preparations.append([round(at_s - float(found[2]), 3), at_s, found[1]])
        elif text.startswith("refused"):
            refusals.append(at_s)
        elif found := _LEAVE.match(text):
            leaves.append([at_s, found[1].count(",") + 1])
    return {"loads": loads, "preparations": preparations, "leaves": leaves, "refusals": refusals}
