"""One look at the memory of a process: what the kernel, the C library and Python say of it."""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelhost.memory import allocator
from modelhost.memory.allocator import HeapFigures
from modelhost.memory.cgroup import Group, find_group, read_usage
from modelhost.testing.census import Census, take_census


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """What the kernel says of the process's control group, in bytes; other processes may be in it."""

    usage_bytes: int
    """Everything that is charged, file pages included."""
    reclaimable_bytes: int
    """File pages, which the kernel takes back when it needs them."""
    shared_bytes: int
    """Shared memory and files in memory (tmpfs), which it cannot."""


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """The figures of one moment, in bytes; None is what this kernel, or another process, does not tell."""

    pid: int
    taken_at: float
    """Seconds of the monotonic clock."""
    committed_bytes: int
    """Anonymous memory, which the kernel cannot take back; up to some 0.5 MB behind unless `is_exact`."""
    rss_bytes: int
    file_bytes: int
    """File pages that the process maps and that are resident."""
    shared_bytes: int
    """Shared memory that the process maps and that is resident."""
    writable_bytes: int
    """Private writable address space, touched or not: what maps memory without the heap shows here at once."""
    threads: int
    open_files: int | None
    read_bytes: int
    """What the process has had read from disks since it began."""
    written_bytes: int
    """What it has written that went through the page cache to a disk."""
    group: GroupFigures | None
    heap: HeapFigures | None
    python_blocks: int | None
    """Objects of up to 512 bytes that Python's own allocator holds."""
    traced_bytes: int | None
    """What `tracemalloc` counts, where it is on."""
    is_exact: bool = False
    pss_bytes: int | None = None
    """RSS with shared pages divided among those who share them; in exact snapshots."""
    held_free_bytes: int | None = None
    """What is free in the heap and resident all the same; in exact snapshots."""
    objects: Census | None = None
    """The live Python objects; where they were asked for."""


def take_snapshot(pid: int | None = None, *, exact: bool = False, objects: bool = False) -> MemorySnapshot:
    """Returns the figures of this process, or of `pid`, of which C library and Python say nothing. Any thread.

    Takes some 0.15 ms. `exact` reads every mapping, for PSS and what the heap holds free (0.5 ms and more,
    by the size of the process); `objects` also counts every live Python object (some 0.1 s a million).
    Raises ProcessLookupError where there is no such process (any more).
    """
    is_own = pid is None or pid == os.getpid()
    proc = Path("/proc/self" if is_own else f"/proc/{pid}")
    census = _census() if objects and is_own else None  # first: what counting leaves behind is in every snapshot
    try:
        status = _table(proc / "status")
    except OSError:
        raise ProcessLookupError(f"no process {pid}, or none that this user may look at") from None
    exact = exact or objects
    rollup = _table(proc / "smaps_rollup", missing_is_empty=True) if exact else {}
    io = _table(proc / "io", missing_is_empty=True)
    committed = rollup.get(b"Anonymous", status.get(b"RssAnon", 0))
    return MemorySnapshot(
        pid=os.getpid() if pid is None else pid,
        taken_at=time.monotonic(),
        committed_bytes=committed * 1024,
        rss_bytes=rollup.get(b"Rss", status.get(b"VmRSS", 0)) * 1024,
        file_bytes=status.get(b"RssFile", 0) * 1024,
        shared_bytes=status.get(b"RssShmem", 0) * 1024,
        writable_bytes=(status.get(b"VmData", 0) + status.get(b"VmStk", 0)) * 1024,
        threads=status.get(b"Threads", 0),
        open_files=_count_files(proc),
        read_bytes=io.get(b"read_bytes", 0),
        written_bytes=io.get(b"write_bytes", 0),
        group=_read_group(proc),
        heap=allocator.heap_figures() if is_own else None,
        python_blocks=sys.getallocatedblocks() if is_own else None,
        traced_bytes=tracemalloc.get_traced_memory()[0] if is_own and tracemalloc.is_tracing() else None,
        is_exact=b"Anonymous" in rollup,
        pss_bytes=rollup[b"Pss"] * 1024 if b"Pss" in rollup else None,
        held_free_bytes=allocator.free_bytes() if exact and is_own else None,
        objects=census,
    )


def reset_peak() -> None:
    """Makes the peak of this process's RSS (VmHWM) begin again from what it holds now. Raises OSError."""
    Path("/proc/self/clear_refs").write_text("5")


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel counts exactly, for looking at it after every iteration."""

    threads: int
    open_files: int | None
    writable_bytes: int
    other_mapped_bytes: int
    """Address space that is neither private and writable nor code: shared memory, and files that are read."""


def read_counts() -> Counts:
    """Returns the counts of this process; takes some 50 microseconds. Any thread."""
    proc = Path("/proc/self")
    status = _table(proc / "status", missing_is_empty=True)
    writable = status.get(b"VmData", 0) + status.get(b"VmStk", 0)
    other = status.get(b"VmSize", 0) - writable - status.get(b"VmExe", 0) - status.get(b"VmLib", 0)
    return Counts(status.get(b"Threads", 0), _count_files(proc), writable * 1024, other * 1024)


def _census() -> Census:
    gc.collect()  # what only waits to be collected is not live
    if not _has_counted:
        # The first frees large blocks, after which the allocator puts such blocks elsewhere: what counting leaves
        # in the heap is the same only from the second on.
        take_census()
        _has_counted.append(True)
    return take_census()


_has_counted: Final[list[bool]] = []


def _table(file: Path, *, missing_is_empty: bool = False) -> dict[bytes, int]:
    """Reads the lines of which the first word after the name is a number. Raises OSError."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        if missing_is_empty:
            return {}
        raise
    parts = (line.partition(b":") for line in lines)
    words = ((name, rest.split(None, 1)) for name, _, rest in parts)
    return {name: int(values[0]) for name, values in words if values and values[0].isdigit()}


def _count_files(proc: Path) -> int | None:
    try:
        return len(os.listdir(proc / "fd"))
    except OSError:
        return None


def _read_group(proc: Path) -> GroupFigures | None:
    try:
        group = _group(proc, (proc / "cgroup").read_bytes())
        if group is None:
            return None
        usage, shared_bytes = read_usage(group.path, group.version)
        return GroupFigures(usage.current_bytes, usage.reclaimable_bytes, shared_bytes)
    except (OSError, ValueError):  # a root group of v2 has no such files
        return None


@functools.lru_cache(maxsize=8)
def _group(proc: Path, membership: bytes) -> Group | None:
    """Finding the group reads every mount, so that it is done again only where `membership` changed."""
    return find_group(proc, seen_from=Path("/proc/self"))  # a container has mounts of its own
