"""Where the memory went between two snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from modelhost.testing.snapshot import MemorySnapshot
from modelhost.units import format_bytes, format_change

#: Less is noise: pages of code that ran for the first time, buffers of the first file read.
_NOISE_BYTES: Final = 256 << 10


class Place(Enum):
    """Where memory can sit, and what follows from that."""

    PYTHON = "live Python objects"
    NATIVE = "native memory in use"
    HELD_BY_ARRAYS = "native memory in use, kept alive by arrays over it"
    MAPPED = "anonymous mappings (mmap), beside the heap"
    THREADS = "stacks and heaps of threads"
    RESIDUE = "allocator residue (free, comes back by trim)"
    FILE_PAGES = "file pages (the kernel takes them back)"
    SHARED = "shared memory"


@dataclass(frozen=True, slots=True)
class MemoryDifference:
    """What changed from `before` to `after`, in bytes by place; prints as a table."""

    before: MemorySnapshot
    after: MemorySnapshot
    places: Mapping[Place, int]
    grown_types: tuple[tuple[str, int, int], ...] = ()
    """Types that grew: name, objects more, bytes more; where both snapshots counted objects."""

    @property
    def main_place(self) -> Place | None:
        """Where most of the growth sits; None where nothing grew by more than noise (256 KB)."""
        place = max(self.places, key=lambda place: self.places[place])
        return place if self.places[place] > _NOISE_BYTES else None

    @property
    def committed_bytes(self) -> int:
        """The growth of what the kernel cannot take back."""
        return self.after.committed_bytes - self.before.committed_bytes

    @property
    def threads(self) -> int:
        """How many more threads there are."""
        return self.after.threads - self.before.threads

    @property
    def open_files(self) -> int:
        """How many more files are open; 0 where that is not known."""
        old, new = self.before.open_files, self.after.open_files
        return 0 if old is None or new is None else new - old

    def __str__(self) -> str:
        main = self.main_place
        lines = [f"committed {format_change(self.committed_bytes)} ({format_bytes(self.after.committed_bytes)} now)"]
        for place, size in self.places.items():
            if size or place is main:
                lines.append(f"  {format_change(size):>12}  {place.value}{'  <-- most' if place is main else ''}")
        for name, count, size in self.grown_types:
            lines.append(f"  {format_change(size):>12}  of Python: {name}, {count:+d} objects")
        for what, more in (("threads", self.threads), ("open files", self.open_files)):
            if more:
                lines.append(f"  {more:+12d}  {what}")
        return "\n".join(lines)


def compare(before: MemorySnapshot, after: MemorySnapshot) -> MemoryDifference:
    """Returns where the growth sits. Raises ValueError where the snapshots are of two processes.

    What is Python's is known where both snapshots counted objects, or tracing was on in both. Elsewhere
    Python's share is that of its small objects, by their number, and large ones count as native.
    Page cache that no process maps is charged to a control group; of its growth there counts what this
    process has itself read or written.
    """
    if before.pid != after.pid:
        raise ValueError(f"expected two snapshots of one process, got {before.pid} and {after.pid}")
    committed = after.committed_bytes - before.committed_bytes
    python = _python_bytes(before, after)
    residue = _residue_bytes(before, after)
    mapped = _mapped_bytes(before, after, committed - python - residue, python)
    native = committed - python - residue - mapped
    # A thread has a stack of its own, which is mapped, and often a heap, most of which is free.
    own = max(0, after.threads - before.threads) * _THREAD_BYTES
    stacks = min(mapped, own)
    heaps = max(0, min(residue, own - stacks))
    holds_more = (
        before.objects is not None
        and after.objects is not None
        and after.objects.foreign_arrays > before.objects.foreign_arrays
    )
    files, shared = _file_bytes(before, after), after.shared_bytes - before.shared_bytes
    places = {
        Place.PYTHON: python,
        Place.NATIVE: 0 if holds_more else native,
        Place.HELD_BY_ARRAYS: native if holds_more else 0,
        Place.MAPPED: mapped - stacks,
        Place.THREADS: stacks + heaps,
        Place.RESIDUE: residue - heaps,
        Place.FILE_PAGES: files,
        Place.SHARED: shared,
    }
    types = () if before.objects is None or after.objects is None else after.objects.grown(before.objects)
    return MemoryDifference(before, after, places, types)


#: What a small object takes on average, where only their number is known.
_SMALL_OBJECT_BYTES: Final = 80


def _python_bytes(before: MemorySnapshot, after: MemorySnapshot) -> int:
    if before.traced_bytes is not None and after.traced_bytes is not None:
        return after.traced_bytes - before.traced_bytes
    if before.objects is not None and after.objects is not None:
        return after.objects.size_bytes - before.objects.size_bytes
    if before.python_blocks is not None and after.python_blocks is not None:
        return (after.python_blocks - before.python_blocks) * _SMALL_OBJECT_BYTES
    return 0


def _residue_bytes(before: MemorySnapshot, after: MemorySnapshot) -> int:
    if before.held_free_bytes is not None and after.held_free_bytes is not None:
        return after.held_free_bytes - before.held_free_bytes
    if before.heap is None or after.heap is None:
        return 0
    # The heap's own count has in it what a trim has returned already: at most what was committed is there.
    more_free = after.heap.free_bytes - before.heap.free_bytes
    unexplained = (after.committed_bytes - before.committed_bytes) - (
        after.heap.in_use_bytes - before.heap.in_use_bytes
    )
    return max(0, min(more_free, unexplained))


#: The most that a thread touches of its stack and of a heap of its own before it does anything large.
_THREAD_BYTES: Final = 256 << 10


def _mapped_bytes(before: MemorySnapshot, after: MemorySnapshot, other: int, python: int) -> int:
    """Returns what no block of the heap accounts for of `other`, the growth that is neither Python's nor residue."""
    if before.heap is None or after.heap is None:
        return 0
    in_heap = after.heap.in_use_bytes - before.heap.in_use_bytes
    small = python  # of Python's, which its own allocator maps beside the heap
    if before.python_blocks is not None and after.python_blocks is not None:
        small = max(0, min(small, (after.python_blocks - before.python_blocks) * _SMALL_OBJECT_BYTES))
    return max(0, min(other, other + python - small - in_heap))


def _file_bytes(before: MemorySnapshot, after: MemorySnapshot) -> int:
    mapped = after.file_bytes - before.file_bytes
    if before.group is None or after.group is None:
        return mapped
    group = after.group.reclaimable_bytes - before.group.reclaimable_bytes
    own = (after.read_bytes - before.read_bytes) + (after.written_bytes - before.written_bytes)
    return max(mapped, min(group, own))
