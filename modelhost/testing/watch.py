"""Looks at another process, and what it has started, time and again; what they say of its growth.

Linux tells everything; elsewhere psutil tells resident and private memory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from modelhost.slope import Slope, theil_sen

#: Looks that are kept; of more than these every second one goes, and the next ones are kept less often.
_MAX_LOOKS: Final = 2000
_MIN_FOR_SLOPE: Final = 8


class Figures(NamedTuple):
    """One process at one moment, in bytes; None is what is not told."""

    committed_bytes: int
    """Anonymous memory; elsewhere than on Linux what is private to the process."""
    rss_bytes: int
    pss_bytes: int | None
    threads: int
    kinds: Mapping[str, int] | None
    """Resident bytes by kind of mapping."""


class Reader(Protocol):
    """Where figures come from. All raise ProcessLookupError where there is no such process."""

    def read(self, pid: int, *, kinds: bool) -> Figures:
        """Reads one process."""

    def started(self, pid: int) -> object:
        """Returns when it began, in whatever unit: a PID may be given again."""

    def children(self, pids: Iterable[int]) -> list[int]:
        """Returns the processes that those have started, and theirs."""


@dataclass(frozen=True, slots=True)
class Look:
    """All watched processes together at one moment, in bytes."""

    at_s: float
    """Since the first look."""
    processes: int
    committed_bytes: int
    rss_bytes: int
    """Shared pages count in each process that maps them."""
    pss_bytes: int | None
    threads: int
    kinds: Mapping[str, int] | None
    group_bytes: int | None = None
    """What the kernel cannot take back from the control group that is watched."""


@dataclass(slots=True)
class Watch:
    """The looks at a process. One thread."""

    pid: int
    with_children: bool = False
    with_kinds: bool = False
    reader: Reader = field(default_factory=lambda: reader_here())
    looks: list[Look] = field(default_factory=list)
    """At most 2,000, evenly over time."""
    _began_s: float = field(default_factory=time.monotonic)
    _stride: int = 1
    _count: int = 0
    _started: object = None

    def look(self, *, group_bytes: int | None = None) -> Look:
        """Looks now. Raises ProcessLookupError where the process has ended, also where its PID is another's now."""
        started = self.reader.started(self.pid)
        if self._started is None:
            self._started = started
        elif self._started != started:
            raise ProcessLookupError(f"process {self.pid} has ended, its PID was given again")
        read = [self.reader.read(self.pid, kinds=self.with_kinds)]
        for child in self.reader.children([self.pid]) if self.with_children else ():
            try:
                read.append(self.reader.read(child, kinds=self.with_kinds))
            except ProcessLookupError:  # it has just ended
                continue
        found = _together(read, time.monotonic() - self._began_s, group_bytes)
        if self._count % self._stride == 0:
            self.looks.append(found)
            if len(self.looks) > _MAX_LOOKS:
                del self.looks[1::2]
                self._stride *= 2
        self._count += 1
        return found

    def growth(self, name: str = "committed_bytes") -> Slope | None:
        """Returns the growth of a figure in bytes a second, with its 99.9 % interval; None for fewer than 8 looks."""
        return self._slope([getattr(look, name) for look in self.looks])

    def growth_by_kind(self) -> dict[str, Slope]:
        """Returns the growth of each kind of mapping in bytes a second; empty where kinds are not told."""
        series = [look.kinds for look in self.looks]
        if not series or series[0] is None:
            return {}
        slopes = {kind: self._slope([kinds[kind] for kinds in series if kinds]) for kind in series[0]}
        return {kind: slope for kind, slope in slopes.items() if slope is not None}

    def _slope(self, values: list[int]) -> Slope | None:
        if len(values) < _MIN_FOR_SLOPE or len(values) != len(self.looks):
            return None
        return theil_sen(values, at=[look.at_s for look in self.looks])


def _together(read: list[Figures], at_s: float, group_bytes: int | None) -> Look:
    pss = [figures.pss_bytes for figures in read if figures.pss_bytes is not None]
    kinds = [figures.kinds for figures in read if figures.kinds is not None]
    return Look(
        at_s=at_s,
        processes=len(read),
        committed_bytes=sum(figures.committed_bytes for figures in read),
        rss_bytes=sum(figures.rss_bytes for figures in read),
        pss_bytes=sum(pss) if len(pss) == len(read) else None,
        threads=sum(figures.threads for figures in read),
        kinds={kind: sum(each[kind] for each in kinds) for kind in kinds[0]} if len(kinds) == len(read) else None,
        group_bytes=group_bytes,
    )


def reader_here() -> Reader:
    """Returns what reads processes on this system."""
    return ProcReader() if sys.platform == "linux" else PsutilReader()


class ProcReader:
    """Reads /proc."""

    def read(self, pid: int, *, kinds: bool) -> Figures:
        """Reads one process; without the right to see its mappings, what everybody may see."""
        from modelhost.testing.mappings import read_kinds
        from modelhost.testing.snapshot import take_snapshot

        found = take_snapshot(pid, exact=True)
        by_kind = None
        if kinds and found.is_exact:
            try:
                by_kind = read_kinds(pid)
            except OSError:  # it has just ended
                raise ProcessLookupError(f"process {pid} has ended") from None
        return Figures(found.committed_bytes, found.rss_bytes, found.pss_bytes, found.threads, by_kind)

    def started(self, pid: int) -> object:
        """Returns the clock ticks since the machine started."""
        return self._stat(pid)[19]

    def children(self, pids: Iterable[int]) -> list[int]:
        """Reads the parents of all processes."""
        families: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    families.setdefault(int(self._stat(int(name))[1]), []).append(int(name))
                except ProcessLookupError:
                    continue
        return _below(pids, families)

    @staticmethod
    def _stat(pid: int) -> list[str]:
        """Returns the fields of proc(5) `stat` from the third on. One that waits to be reaped has ended."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessLookupError(f"there is no process {pid}") from None
        if fields[0] in "ZX":
            raise ProcessLookupError(f"process {pid} has ended")
        return fields


class PsutilReader:
    """Asks psutil, where there is no /proc of Linux's."""

    def read(self, pid: int, *, kinds: bool) -> Figures:
        """Reads one process; kinds of mappings are not told."""
        import psutil

        try:
            process = psutil.Process(pid)
            with process.oneshot():
                found = process.memory_info()
                try:
                    full = process.memory_full_info()
                    private, pss = full.uss, getattr(full, "pss", None)
                except psutil.AccessDenied:
                    private, pss = getattr(found, "private", found.rss), None
                return Figures(private, found.rss, pss, process.num_threads(), None)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            raise ProcessLookupError(f"there is no process {pid}") from None
        except psutil.AccessDenied:
            raise PermissionError(f"process {pid} belongs to another user") from None

    def started(self, pid: int) -> object:
        """Returns the time of creation."""
        import psutil

        try:
            return psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"there is no process {pid}") from None

    def children(self, pids: Iterable[int]) -> list[int]:
        """Asks for the parents of all processes."""
        import psutil

        families: dict[int, list[int]] = {}
        for process in psutil.process_iter(["ppid"]):
            families.setdefault(process.info["ppid"], []).append(process.pid)
        return _below(pids, families)


def _below(pids: Iterable[int], families: Mapping[int, list[int]]) -> list[int]:
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        children = families.get(waiting.pop(), [])
        found += children
        waiting += children
    return found
