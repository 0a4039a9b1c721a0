"""Process-wide settings of the C allocator, giving its free memory back, and knowing what it keeps.

`configure` has to run before ONNX Runtime (or anything else that allocates tensors) is imported:
glibc raises its mmap threshold at the first large `free`, and what was allocated before stays where
it is. Elsewhere than on glibc all functions do nothing and say so.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

# Parameters of mallopt(3), from <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

#: One mapping for each tensor of this size or more, so that an unload gives it back at once. Setting
#: it also ends glibc's own raising of the threshold (up to 32 MB), which keeps weights in the heap
#: between small blocks: a 100 MB ResNet-50 then holds 230 MB.
MMAP_THRESHOLD_BYTES: Final = 64 << 10

#: The top of the heap is returned when this much of it is free.
TRIM_THRESHOLD_BYTES: Final = 1 << 20

#: Heaps: each worker thread would otherwise get one that keeps what it once held. Two, because with
#: one the loads and the runs of small tensors wait for each other.
ARENAS: Final = 2

#: What glibc reserves for each heap but the first, and what the address of each is a multiple of.
_HEAP_BYTES: Final = 64 << 20

#: A heap of less than this need not be found: what is free in it is little.
_MISSED_BYTES: Final = 1 << 20

_PAGE_BYTES: Final = mmap.PAGESIZE

_libc: Final = ctypes.CDLL(None) if os.name == "posix" else None


def configure() -> bool:
    """Applies the settings; returns whether this C library took them. May be called again."""
    # The official wheels since 1.29 start an uploader thread unless this is set before the import.
    # It is ONNX Runtime's own switch, not a setting of ours, so it does not belong in config/.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if _libc is None or not hasattr(_libc, "mallopt"):
        return False
    return bool(
        _libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        and _libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
        and _libc.mallopt(_M_ARENA_MAX, ARENAS)
    )


def trim() -> bool:
    """Gives free heap pages back to the kernel; returns whether any were. Takes up to milliseconds."""
    if _libc is None or not hasattr(_libc, "malloc_trim"):
        return False
    return bool(_libc.malloc_trim(0))


def free_bytes() -> int:
    """Returns what is free in the heaps and resident all the same: small blocks come from it at no cost.

    That is what lies between blocks that are in use, so that a trim does not return it. What a trim
    has returned is not counted, although the allocator keeps it on its lists. An estimate from below;
    0 where it cannot be known. Takes a millisecond for a few thousand free blocks, and up to 0.1 s for
    some 100,000 that no trim has joined, during which allocations wait: not for the event loop.
    """
    return _heaps.free_bytes()


@dataclass(frozen=True, slots=True)
class HeapFigures:
    """What glibc says of its heaps, in bytes, over all arenas."""

    in_use_bytes: int
    """Blocks that nobody has freed, those with a mapping of their own included."""
    free_bytes: int
    """Blocks that were freed and are kept; a trim leaves them counted although it returns their pages."""
    system_bytes: int
    """What the heaps and the mapped blocks take of the address space."""


def heap_figures() -> HeapFigures | None:
    """Returns the C library's own count, None where it has none (glibc has since 2.33). Takes some 5 microseconds.

    Blocks that a thread keeps for its own next request (up to about 200 KB a thread) count as in use.
    """
    info = _heaps.info()
    if info is None:
        return None
    return HeapFigures(info.uordblks + info.hblkhd, info.fordblks, info.arena + info.hblkhd)


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of <malloc.h>: sums over all arenas, but for the mapped blocks that are no part of them."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )
    arena: int
    hblkhd: int
    uordblks: int
    fordblks: int


class _Heaps:
    """The heaps of glibc: where they lie, and how much of them is resident. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._can = _libc is not None and all(hasattr(_libc, name) for name in ("mallinfo2", "mincore", "sbrk"))
        self._start: int | None = None
        self._mapped: frozenset[int] = frozenset()
        self._missing_bytes = 0  # of what the heaps are known to have, when they were last looked for
        self._counts = _libc is not None and hasattr(_libc, "mallinfo2")
        if self._counts:
            assert _libc is not None
            _libc.mallinfo2.restype = _MallInfo
        if self._can:
            assert _libc is not None
            _libc.sbrk.restype = ctypes.c_void_p
            _libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
            self._can = _knows_residence()

    def info(self) -> _MallInfo | None:
        """The C library's figures, None where it has none."""
        if not self._counts:
            return None
        assert _libc is not None
        info: _MallInfo = _libc.mallinfo2()
        return info

    def free_bytes(self) -> int:
        """See the function of that name."""
        if not self._can:
            return 0
        with self._lock:
            try:
                return self._free_bytes()
            except OSError:  # a sandbox without these files of /proc
                self._can = False
                return 0

    def _free_bytes(self) -> int:
        assert _libc is not None
        info: _MallInfo = _libc.mallinfo2()
        end = _libc.sbrk(0) or 0
        with open("/proc/self/mem", "rb", buffering=0) as memory:
            stretches = list(self._stretches(memory, end))
            missing = info.arena - sum(size for _, size in stretches)
            # Finding heaps takes up to 0.1 s in a process of a thousand models: only when there is a new one.
            if missing > self._missing_bytes + _MISSED_BYTES:
                self._find()
                stretches = list(self._stretches(memory, end))
                self._missing_bytes = max(0, info.arena - sum(size for _, size in stretches))
        resident = sum(_resident_bytes(start, size) for start, size in stretches)
        # Blocks in use that were never written to are not resident: then less is free than there is.
        return max(0, min(info.fordblks, resident - info.uordblks))

    def _find(self) -> None:
        """Looks for the heaps among the process's mappings. Raises OSError."""
        found: set[int] = set()
        self._start = None
        with open("/proc/self/maps", "rb") as maps:
            for line in maps:
                span, access, _, _, inode, *name = line.split()
                start, end = (int(part, 16) for part in span.split(b"-"))
                if name == [b"[heap]"]:
                    self._start = start if self._start is None else min(start, self._start)
                elif access.startswith(b"rw") and inode == b"0" and not name:
                    # Neighbours are one mapping for the kernel.
                    found.update(range(start + -start % _HEAP_BYTES, end, _HEAP_BYTES))
        self._mapped = frozenset(found)

    def _stretches(self, memory: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
        """The first heap, which ends at `end`, and those of the mappings found that are heaps now: start and size."""
        if self._start is not None:
            yield self._start, end - self._start
        for start in self._mapped:
            try:  # read as a file, since by now there may be nothing
                memory.seek(start)
                arena = int.from_bytes(memory.read(ctypes.sizeof(ctypes.c_void_p)), "little")
            except (OSError, OverflowError):
                continue
            # Any mapping may lie at such an address. But a heap begins with the address of its arena, and that
            # lies at the beginning of the arena's first heap.
            first = arena - arena % _HEAP_BYTES
            if 0 < arena - first < _PAGE_BYTES and first in self._mapped:
                yield start, _HEAP_BYTES


def _resident_bytes(start: int, size_bytes: int) -> int:
    """Returns how much of a stretch of anonymous memory is resident; 0 where some of it is no memory."""
    assert _libc is not None
    pages = max(0, size_bytes) // _PAGE_BYTES
    answer = ctypes.create_string_buffer(max(1, pages))
    if not pages or _libc.mincore(start, pages * _PAGE_BYTES, answer) != 0:
        return 0
    return answer.raw.count(b"\1") * _PAGE_BYTES


def _knows_residence() -> bool:
    """Whether the kernel tells resident pages from others: some sandboxes call every page resident."""
    with mmap.mmap(-1, 2 * _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages[0] = 1
        start = ctypes.c_char.from_buffer(pages)
        try:
            return _resident_bytes(ctypes.addressof(start), 2 * _PAGE_BYTES) == _PAGE_BYTES
        finally:
            del start


_heaps: Final = _Heaps()
