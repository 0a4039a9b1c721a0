"""Whether the page cache still holds what is used: refaults, major faults, stalls, and the rule for thrashing.

Usage against the limit says nothing of this. Weights are file pages, which the kernel drops and reads
again as it likes: usage stays low while every run waits for the disk.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from modelhost.memory.cgroup import find_group
from modelhost.memory.figures import figure, read_file

_PAGE_BYTES: Final = mmap.PAGESIZE

#: What the rule looks back on; the kernel's `avg10` has the same length.
WINDOW_S: Final = 10.0
#: Between two readings. One takes some 20 microseconds, so that they are 0.002 % of a core.
READ_INTERVAL_S: Final = 1.0
#: Share of the page cache that has to be read again within the window.
REFAULTED_SHARE: Final = 1.0
#: Percent of the time in which everything that could run waited for memory.
STALLED_PERCENT: Final = 10.0
#: Thrashing ends at this share of what began it, so that figures that sway are one event.
ENDS_AT_SHARE: Final = 0.5
#: Less than this in a window costs the slowest disk (100 MB/s) under 2 % of its time, however small
#: the cache: after an eviction an idle host reads some of its own code again.
MIN_REFAULTED_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class PressureReading:
    """The kernel's figures at one moment, None where it has no such figure. Totals only ever grow."""

    refaulted_bytes: int | None = None
    """File pages of the group that were dropped and read again, since the group was made."""
    cache_bytes: int | None = None
    """File pages that the group holds."""
    major_faults: int | None = None
    """Faults that waited for the disk: the group's, the process's own where there is no group."""
    process_major_faults: int | None = None
    psi_some_avg10: float | None = None
    """Percent of the last 10 s in which something waited for memory."""
    psi_full_avg10: float | None = None
    """Percent of the last 10 s in which everything that could run did."""
    psi_is_machines: bool = False
    """Whether these are the whole machine's, where the group has none of its own."""


class PressureSource(Protocol):
    """What the gauge asks; `KernelPressure` asks the kernel, tests script the answers."""

    def read(self) -> PressureReading:
        """Returns the figures of now. Takes some 20 microseconds; a missing figure is None, no error."""


class KernelPressure:
    """Reads the figures of the process's own group. Any thread; holds no state but the paths.

    Whatever is missing (gVisor, an old kernel, no control groups, PSI switched off) is None.
    """

    def __init__(self, *, proc: Path = Path("/proc/self")) -> None:
        self._group = group = find_group(proc)
        # v1 counts the groups below under names of their own, v2 under the plain ones.
        self._prefix = b"total_" if group is not None and group.version == 1 else b""
        self._machine_psi = proc.parent / "pressure" / "memory"
        # Only v2 counts stalls by group: beside v1 the v2 tree stands for other groups, or for all.
        self._group_psi = group.path / "memory.pressure" if group is not None and group.version == 2 else None

    def read(self) -> PressureReading:
        """Returns the figures of now."""
        stat = self._stat()
        refaults = self._figure(stat, b"workingset_refault_file")
        if refaults is None:
            refaults = self._figure(stat, b"workingset_refault")  # before Linux 5.9, which refaulted files only
        inactive, active = self._figure(stat, b"inactive_file"), self._figure(stat, b"active_file")
        major_faults = self._figure(stat, b"pgmajfault")
        own_faults = _own_faults()
        some, full, is_machines = self._psi()
        return PressureReading(
            refaulted_bytes=None if refaults is None else refaults * _PAGE_BYTES,
            cache_bytes=None if inactive is None or active is None else inactive + active,
            major_faults=own_faults if major_faults is None else major_faults,
            process_major_faults=own_faults,
            psi_some_avg10=some,
            psi_full_avg10=full,
            psi_is_machines=is_machines,
        )

    def _stat(self) -> bytes:
        if self._group is None:
            return b""
        try:
            return read_file(f"{self._group.path}/memory.stat")
        except OSError:
            return b""

    def _figure(self, stat: bytes, name: bytes) -> int | None:
        try:
            return figure(stat, self._prefix + name)
        except ValueError:
            return None

    def _psi(self) -> tuple[float | None, float | None, bool]:
        if self._group_psi is not None:
            some, full = _psi(self._group_psi)
            if some is not None:
                return some, full, False
        some, full = _psi(self._machine_psi)
        return some, full, some is not None


def _own_faults() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _psi(file: Path) -> tuple[float | None, float | None]:
    """Reads `some avg10=0.00 …` and `full avg10=0.00 …`; the second line is missing on some kernels."""
    found: dict[str, float] = {}
    try:
        for line in read_file(file).decode().splitlines():
            kind, _, rest = line.partition(" avg10=")
            found[kind] = float(rest.split()[0])
    except (OSError, ValueError, IndexError):
        return None, None
    return found.get("some"), found.get("full")


# --- the rule ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PressureInfo:
    """The last reading, and what the window before it makes of it. A rate is None before the second reading."""

    reading: PressureReading
    window_s: float = 0.0
    """From the first reading of the window to the last."""
    cache_bytes: int | None = None
    """The most that the page cache held within the window."""
    refaulted_bytes_per_s: float | None = None
    major_faults_per_s: float | None = None
    is_thrashing: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        return {
            "refaulted_bytes_total": self.reading.refaulted_bytes,
            "refaulted_bytes_per_s": _rounded(self.refaulted_bytes_per_s),
            "major_faults_total": self.reading.major_faults,
            "major_faults_per_s": _rounded(self.major_faults_per_s),
            "process_major_faults_total": self.reading.process_major_faults,
            "psi_some_avg10": self.reading.psi_some_avg10,
            "psi_full_avg10": self.reading.psi_full_avg10,
            "psi_is_machines": self.reading.psi_is_machines,
            "is_thrashing": self.is_thrashing,
        }

    def as_event(self) -> dict[str, Any]:
        """Returns what the rule went by, for an entry in the history."""
        return {
            "refaulted_bytes_per_s": _rounded(self.refaulted_bytes_per_s),
            "major_faults_per_s": _rounded(self.major_faults_per_s),
            "cache_bytes": self.cache_bytes,
            "psi_full_avg10": self.reading.psi_full_avg10,
            "window_s": round(self.window_s, 3),
        }


def is_thrashing(info: PressureInfo, *, was_thrashing: bool) -> bool:
    """Says whether the page cache no longer holds what is used.

    It thrashes when, within the last 10 s, either

    1. as many bytes were read again as the page cache held at its fullest: on average everything in
       it was dropped and fetched again. Android's lmkd calls the same thing thrashing
       (`ro.lmk.thrashing_limit`: refaults as a percentage of the file pages, 100 by default). It
       counts over a second or so and then kills; this only warns, and may look at ten. Or
    2. everything that could run waited for memory a tenth of the time (PSI `full avg10` of 10 %):
       a tenth of the throughput is gone, whatever is fetched. Where the figure is the whole
       machine's, it counts only if the group refaulted too: a neighbour's stalls are not ours.

    It ends when both are below half of that. Without any figure it is never thrashing.
    """
    factor = ENDS_AT_SHARE if was_thrashing else 1.0
    reading, refaulted_bytes_per_s = info.reading, info.refaulted_bytes_per_s
    refaulted_bytes = 0.0 if refaulted_bytes_per_s is None else refaulted_bytes_per_s * info.window_s
    # A window that is longer than it should be, because nobody looked, does not count for more.
    refaulted_bytes /= max(1.0, info.window_s / WINDOW_S)
    if info.cache_bytes is not None:
        enough = max(info.cache_bytes * REFAULTED_SHARE, MIN_REFAULTED_BYTES)
        if refaulted_bytes >= enough * factor:
            return True
    stalled = reading.psi_full_avg10 is not None and reading.psi_full_avg10 >= STALLED_PERCENT * factor
    return stalled and (refaulted_bytes > 0 or not reading.psi_is_machines)


class PressureGauge:
    """Keeps the readings of the window and the verdict. One thread, the owner's."""

    def __init__(self, source: PressureSource | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        """What is read; None where nothing is known."""
        self._clock = clock
        self._readings: deque[tuple[float, PressureReading]] = deque()
        self._info = PressureInfo(PressureReading())

    def look(self) -> PressureInfo:
        """Returns the figures, read anew where the last ones are older than READ_INTERVAL_S."""
        if self.source is None:
            return self._info
        readings, now = self._readings, self._clock()
        if not readings or now - readings[-1][0] >= READ_INTERVAL_S:
            readings.append((now, self.source.read()))
            # The first of the window stays, or one before it where there is no other.
            while len(readings) > 2 and now - readings[0][0] > WINDOW_S:
                readings.popleft()
            self._info = self._judged()
        return self._info

    def _judged(self) -> PressureInfo:
        (first_at, first), (last_at, last) = self._readings[0], self._readings[-1]
        window_s = last_at - first_at
        held = [reading.cache_bytes for _, reading in self._readings if reading.cache_bytes is not None]
        info = PressureInfo(
            last,
            window_s,
            max(held, default=None),
            _rate(first.refaulted_bytes, last.refaulted_bytes, window_s),
            _rate(first.major_faults, last.major_faults, window_s),
        )
        return replace(info, is_thrashing=is_thrashing(info, was_thrashing=self._info.is_thrashing))


def _rate(before: int | None, after: int | None, window_s: float) -> float | None:
    return None if before is None or after is None or window_s <= 0 else max(0, after - before) / window_s


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
