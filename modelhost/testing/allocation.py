"""Memory of a chosen kind and size, and its release."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, get_args

from modelhost.errors import InsufficientMemory
from modelhost.memory.probe import Probe
from modelhost.units import format_bytes, parse_size

Kind = Literal["anonymous", "heap", "page-cache", "shared"]

_PAGE_BYTES: Final = mmap.PAGESIZE
#: Blocks of the heap: small enough to lie between others, large enough for few calls.
_BLOCK_BYTES: Final = 1008
_PIECE_BYTES: Final = 1 << 20


class Allocation:
    """Memory that is held until `release`, or the end of the context. One thread at a time."""

    def __init__(self, kind: Kind, directory: Path | None = None) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"expected a kind of {', '.join(get_args(Kind))}, got {kind!r}")
        self.kind: Final = kind
        self._directory = directory
        self._maps: list[mmap.mmap] = []
        self._files: list[tuple[int, int]] = []
        self._blocks: list[int] = []

    def __enter__(self) -> Allocation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    @property
    def size_bytes(self) -> int:
        """What is held."""
        held = sum(map(len, self._maps)) + sum(size for _, size in self._files)
        return held + len(self._blocks) * _BLOCK_BYTES

    def grow(self, size: int | str) -> None:
        """Adds whole pages (blocks of 1 KB on the heap), all of them touched. Raises OSError, MemoryError."""
        size_bytes = parse_size(size)
        match self.kind:
            case "heap":
                for _ in range(-(-size_bytes // _BLOCK_BYTES)):
                    self._blocks.append(_new_block())
            case "page-cache":
                self._grow_file(size_bytes)
            case _:
                self._grow_map(-(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES)

    def leave_holes(self, keep_every: int = 16) -> None:
        """Frees the heap's blocks but for every so-manieth, between which the allocator then holds free memory."""
        kept = self._blocks[::keep_every]
        for index, block in enumerate(self._blocks):
            if index % keep_every:
                _libc.free(block)
        self._blocks = kept

    def release(self) -> None:
        """Gives everything back; may be called again."""
        while self._maps:
            self._maps.pop().close()
        while self._files:
            descriptor, _ = self._files.pop()
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        while self._blocks:
            _libc.free(self._blocks.pop())

    def _grow_map(self, size_bytes: int) -> None:
        if not size_bytes:
            return
        sharing = mmap.MAP_SHARED if self.kind == "shared" else mmap.MAP_PRIVATE
        pages = mmap.mmap(-1, size_bytes, flags=sharing | mmap.MAP_ANONYMOUS)
        self._maps.append(pages)
        pages.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would be more than what was asked for
        for start in range(0, size_bytes, _PAGE_BYTES):
            pages[start] = 1

    def _grow_file(self, size_bytes: int) -> None:
        descriptor, name = tempfile.mkstemp(prefix="modelhost-page-cache-", dir=self._directory)
        os.unlink(name)
        self._files.append((descriptor, size_bytes))
        piece = os.urandom(min(_PIECE_BYTES, max(1, size_bytes)))
        left = size_bytes
        while left:
            left -= os.write(descriptor, piece[:left])
        os.fsync(descriptor)  # only clean pages can be dropped


def allocate(
    size: int | str,
    kind: Kind = "anonymous",
    *,
    step: int | str | None = None,
    on_step: Callable[[int], None] | None = None,
    directory: Path | None = None,
    allow_kill: bool = False,
) -> Allocation:
    """Returns that much touched memory of a kind; `on_step` hears what is held after each step.

    `directory` is where page cache has its file, which has to be on a disk. Raises InsufficientMemory where
    the limit leaves less, unless a kill by the kernel is what is wanted.
    """
    size_bytes = parse_size(size)
    if kind != "page-cache" and not allow_kill:
        check_room(size_bytes)
    step_bytes = size_bytes if step is None else max(1, parse_size(step))
    allocation = Allocation(kind, directory)
    try:
        left = size_bytes
        while left > 0:
            allocation.grow(min(step_bytes, left))
            left -= step_bytes
            if on_step is not None:
                on_step(allocation.size_bytes)
    except BaseException:
        allocation.release()
        raise
    return allocation


def check_room(size_bytes: int) -> None:
    """Raises InsufficientMemory where the process's limit leaves less than that."""
    probe = Probe()
    if probe.limit_source == "machine":
        left_bytes = _machine_free_bytes()
    else:
        left_bytes = probe.limit_bytes - probe.usage().usage_bytes
    check_left(size_bytes, left_bytes, "were", f"the limit of {format_bytes(probe.limit_bytes)} ({probe.limit_source})")


def check_left(size_bytes: int, left_bytes: int, were: str, limit: str) -> None:
    """Raises InsufficientMemory where `limit`, in words, leaves less than what `were` asked for."""
    if size_bytes > left_bytes:
        raise InsufficientMemory(
            f"{format_bytes(size_bytes)} {were} asked for, {limit} leaves {format_bytes(left_bytes)}; "
            "allow_kill=True where a kill is wanted",
            needed_bytes=size_bytes,
            available_bytes=max(0, left_bytes),
        )


def _machine_free_bytes() -> int:
    """What the kernel has for new memory, read without a library whose import would itself be memory."""
    for line in Path("/proc/meminfo").read_bytes().splitlines():
        if line.startswith(b"MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * _PAGE_BYTES


def _new_block() -> int:
    block: int | None = _libc.malloc(_BLOCK_BYTES)
    if not block:
        raise MemoryError(f"malloc has no {_BLOCK_BYTES} bytes")
    ctypes.memset(block, 1, _BLOCK_BYTES)
    return block


_libc: Final = ctypes.CDLL(None)
_libc.malloc.argtypes, _libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
_libc.free.argtypes, _libc.free.restype = (ctypes.c_void_p,), None
