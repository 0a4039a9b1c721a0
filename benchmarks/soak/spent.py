"""Where the time of a phase went: of requests by the host's own statistics, of the cores by the kernel's.

What the host does not count of a request is beside it: how long it was on its way, and in line for the event loop.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

#: Of V2's statistics, in the order of a request's life.
PARTS: Final = ("compute_input", "queue", "compute_infer", "compute_output")

_SHARES: Final = ("host", "children", "waited", "clients", "others")

_TICKS: Final = os.sysconf("SC_CLK_TCK")

#: By model: how many requests were answered, what they took in all, and each of PARTS; nanoseconds.
Taken = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Cores:
    """Seconds of a core at one moment, since some moment before."""

    at: float
    host: float
    children: float
    """Of the host's that have ended."""
    waited: float
    """In which a thread of the host's could have run, and had no core."""
    clients: float
    others: float
    """Of whoever else is at work on the machine, and what its host has kept for itself: nobody's who is measured."""

    @classmethod
    def read(cls, host: int, clients: Sequence[int]) -> Cores:
        """Reads them; `clients` are processes beside this one."""
        own, *children = _seconds(host)
        used = resource.getrusage(resource.RUSAGE_SELF)
        asking = used.ru_utime + used.ru_stime + sum(_seconds(pid)[0] for pid in clients)
        others = _busy_s() - own - sum(children) - asking
        return cls(time.monotonic(), own, sum(children), _waited_s(host), asking, others)


@dataclass(slots=True)
class Spent:
    """What a phase has taken, over all its stretches. One thread's."""

    seconds: float = 0.0
    host: float = 0.0
    children: float = 0.0
    waited: float = 0.0
    clients: float = 0.0
    others: float = 0.0
    taken: dict[str, list[int]] = field(default_factory=dict)

    def add(self, before: Cores, after: Cores, taken_before: Taken, taken_after: Taken) -> Self:
        """Adds one stretch."""
        self.seconds += after.at - before.at
        for name in _SHARES:
            setattr(self, name, getattr(self, name) + getattr(after, name) - getattr(before, name))
        for model, now in taken_after.items():
            then = taken_before.get(model, (0,) * len(now))
            sums = self.taken.setdefault(model, [0] * len(now))
            for index, (one, other) in enumerate(zip(now, then, strict=True)):
                sums[index] += one - other
        return self

    def cores(self) -> dict[str, float]:
        """Returns how many cores each had, on the average."""
        return {f"{name}_cores": round(getattr(self, name) / max(self.seconds, 1e-9), 3) for name in _SHARES}

    def parts(self, model: str) -> dict[str, float]:
        """Returns what a request for a model took on the average, in all and by parts, in milliseconds."""
        answered, *taken = self.taken.get(model, [0, 0, *(0 for _ in PARTS)])
        names = ("request", *PARTS)
        return {f"{name}_ms": round(ns / max(answered, 1) / 1e6, 3) for name, ns in zip(names, taken, strict=True)}


def taken_of(stats: Mapping[str, Any], models: Sequence[str]) -> Taken:
    """Returns of `GET /v2/models/stats` what is told of some models."""
    found = {}
    for model in stats["model_stats"]:
        if model["name"] in models:
            took = model["inference_stats"]
            total = took["success"]
            found[model["name"]] = (total["count"], total["ns"], *(took[part]["ns"] for part in PARTS))
    return found


def _seconds(pid: int) -> tuple[float, float]:
    """Returns what a process has had of the cores, and its children that have ended; zeros where it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, childrens_user, childrens_system = map(int, fields[11:15])
        return (user + system) / _TICKS, (childrens_user + childrens_system) / _TICKS
    return 0.0, 0.0


def _busy_s() -> float:
    """Returns what all processes of the machine have had of its cores, with what was stolen from it."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
        return (user + nice + system + sum(others)) / _TICKS
    return 0.0


def _waited_s(pid: int) -> float:
    """Returns how long the threads of a process have waited for a core; 0 where the kernel does not say."""
    waited_ns = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                waited_ns += int((thread / "schedstat").read_text().split()[1])
    return waited_ns / 1e9
