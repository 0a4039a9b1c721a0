"""What kernel and process say about memory, in one place, with the raw figures beside the result."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, Protocol

from modelhost.errors import ConfigError
from modelhost.memory.cgroup import Level, find_limiting, read_levels
from modelhost.memory.figures import read_file

LimitSource = Literal["cgroup v2", "cgroup v1", "machine", "setting"]

_PAGE_BYTES: Final = mmap.PAGESIZE

#: So many pages that are touched, each of which shows by itself, are no chance: see `_counts_each_page`.
_PAGES_TRIED: Final = 8
#: What other threads touch meanwhile shows too.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Usage:
    """One look: `usage_bytes` is what counts against the limit, `raw` the figures it was made from."""

    usage_bytes: int
    raw: Mapping[str, int] = field(default_factory=dict)


class MemoryProbe(Protocol):
    """What the manager asks; `Probe` asks the kernel, tests script the answers."""

    limit_bytes: int
    limit_source: LimitSource

    @property
    def sees_children(self) -> bool:
        """Whether usage has the memory of child processes in it."""

    def refresh(self) -> None:
        """Reads the limit anew, which may have been changed; takes some 20 microseconds for each group.

        Raises OSError or ValueError where it cannot be read: then the former one stays in force.
        """

    def configure(self, limit_bytes: int | None) -> None:
        """Changes the configured limit, from the next `refresh` on; None: there is none.

        Raises ConfigError where usage would have to be read on another scale than until now.
        """

    def usage(self) -> Usage:
        """Reads the usage that counts against the limit. Takes some 50 to 150 microseconds.

        Raises OSError or ValueError where it cannot be read.
        """

    def committed_bytes(self) -> int:
        """Reads the process's own anonymous memory exactly. Takes 20 microseconds, before Linux 6.17 milliseconds."""


class Probe:
    """Reads the kernel's figures. Any thread, but for `refresh`; holds no state but the paths and the limit.

    The limit is the smallest of the cgroup's, the machine's and `configured_limit_bytes`. Usage is
    read on the same scale: the cgroup's where it sets a limit, else the process's own committed
    memory where a configured limit is the smallest, else the machine's.
    """

    def __init__(self, configured_limit_bytes: int | None = None, *, proc: Path = Path("/proc/self")) -> None:
        self._proc, self._configured_bytes = proc, configured_limit_bytes
        self._machine_bytes = _machine_bytes()
        self._groups = find_limiting(proc)
        self._levels: tuple[Level, ...] = ()
        self._counts_each_page = _counts_each_page(proc)
        self.limit_bytes = 0
        self.limit_source: LimitSource = "machine"
        self._take(read_levels(self._groups))

    def refresh(self) -> None:
        """Reads the limits anew. The owner's thread."""
        try:
            levels = read_levels(self._groups)
        except (OSError, ValueError):
            groups = find_limiting(self._proc)
            if groups == self._groups or not groups:
                raise
            levels, self._groups = read_levels(groups), groups  # the process was moved
        self._take(levels)

    def configure(self, limit_bytes: int | None) -> None:
        """Changes the configured limit, from the next `refresh` on. The owner's thread."""
        is_set = limit_bytes is not None and limit_bytes < self._machine_bytes
        if not self._levels and is_set != (self.limit_source == "setting"):
            raise ConfigError(
                "memory.limit stays as it was until the next start: without a control group's limit it decides what "
                "usage is, the process's own or the machine's"
            )
        self._configured_bytes = limit_bytes

    def _take(self, levels: tuple[Level, ...]) -> None:
        # A group's limit above the machine's memory limits nothing.
        self._levels = tuple(level for level in levels if level.limit_bytes < self._machine_bytes)
        source: LimitSource = "machine"
        limit_bytes = self._machine_bytes
        if self._levels:
            tightest = min(self._levels, key=lambda level: level.limit_bytes)
            limit_bytes = tightest.limit_bytes
            source = "cgroup v2" if tightest.version == 2 else "cgroup v1"
        if self._configured_bytes is not None and self._configured_bytes < limit_bytes:
            limit_bytes, source = self._configured_bytes, "setting"
        self.limit_bytes, self.limit_source = limit_bytes, source

    @property
    def sees_children(self) -> bool:
        """Whether usage has child processes in it: a group's and the machine's do, the process's own has not."""
        return bool(self._levels) or self.limit_source == "machine"

    def usage(self) -> Usage:
        """Reads the usage that counts against the limit."""
        if self._levels:
            return self._cgroup_usage()
        if self.limit_source == "setting":
            return self.own_usage()
        return self._machine_usage()

    def committed_bytes(self) -> int:
        """Reads statm where it is exact, else `Anonymous` of smaps_rollup, which always is.

        That walks all pages that the process has mapped, those of models' files too: 10 ms for 200 MB of them.
        """
        if self._counts_each_page:
            return self.own_usage().usage_bytes
        try:
            with (self._proc / "smaps_rollup").open("rb") as stream:
                for line in stream:
                    if line.startswith(b"Anonymous:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass  # sandboxes without smaps_rollup have statm
        return self.own_usage().usage_bytes

    def _cgroup_usage(self) -> Usage:
        """The usage that leaves as little room under the limit as the tightest level has left.

        Under a configured limit the group's own usage counts: a busy ancestor matters only where it
        leaves less room than that limit.
        """
        own_bytes = 0
        room_bytes: int | None = None
        raw: dict[str, int] = {}
        for level in self._levels:
            figures = level.read()
            if level.is_own:
                own_bytes = figures.unreclaimable_bytes
            left = level.limit_bytes - figures.unreclaimable_bytes
            if room_bytes is None or left < room_bytes:
                room_bytes, raw = left, {"level_limit_bytes": level.limit_bytes, **figures.as_dict()}
        assert room_bytes is not None
        if self.limit_source == "setting":
            own_bytes = own_bytes or self.own_usage().usage_bytes
            return Usage(max(own_bytes, self.limit_bytes - room_bytes), raw)
        return Usage(max(0, self.limit_bytes - room_bytes), raw)

    def own_usage(self) -> Usage:
        """Reads what this process has committed, whatever it shares its group with."""
        if sys.platform != "linux":
            return _process_usage_elsewhere()
        resident_bytes, anonymous_bytes = statm(self._proc)
        return Usage(anonymous_bytes, {"resident_bytes": resident_bytes, "anonymous_bytes": anonymous_bytes})

    def _machine_usage(self) -> Usage:
        import psutil  # only here: in a container a cgroup answers, and the import holds 1.6 MB

        memory = psutil.virtual_memory()
        return Usage(
            int(memory.total - memory.available),
            {"total_bytes": int(memory.total), "available_bytes": int(memory.available)},
        )


def _machine_bytes() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    import psutil  # Windows

    return int(psutil.virtual_memory().total)


def _process_usage_elsewhere() -> Usage:
    import psutil

    found = psutil.Process().memory_info()
    private_bytes = int(getattr(found, "private", found.rss))  # only Windows tells them apart
    return Usage(private_bytes, {"resident_bytes": int(found.rss), "private_bytes": private_bytes})


def statm(proc: str | Path) -> tuple[int, int]:
    """Returns what of a process is resident, and what of that is anonymous; `proc` is its folder in `/proc`. In
    microseconds: it waits for nobody, and counts whole what forks share. Raises OSError."""
    resident, shared = read_file(f"{proc}/statm").split()[1:3]
    return int(resident) * _PAGE_BYTES, (int(resident) - int(shared)) * _PAGE_BYTES


def _counts_each_page(proc: Path) -> bool:
    """Says whether statm is exact: whether each of some pages shows as soon as it is touched. Takes 0.2 ms.

    Linux adds up what all cores have counted since 6.17. Before, a core tells of 32 pages or more at once, and before
    6.2 a thread of 64.
    """
    try:
        statm(proc)  # which only Linux has
        return any(all(_steps(proc)) for _ in range(_TRIES))
    except (OSError, ValueError):
        return False


def _steps(proc: Path) -> Iterator[bool]:
    with mmap.mmap(-1, _PAGES_TRIED * _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            pages.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(_PAGES_TRIED):
            before = statm(proc)[1]
            pages[page * _PAGE_BYTES] = 1
            yield statm(proc)[1] - before == _PAGE_BYTES
