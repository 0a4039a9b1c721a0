"""Other processes of ours: what they inherit, and what they hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from modelhost.memory import allocator
from modelhost.memory.probe import statm

#: What a child inherits: all that an interpreter may need to find itself and its libraries.
_INHERITED: Final = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


def child_environment() -> dict[str, str]:
    """Returns the environment of a child: nothing of ours that is not named here, keys least of all."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",  # numpy's threads would only hold memory
        # What `allocator.configure` does here, the C library does there before it allocates anything.
        "MALLOC_MMAP_THRESHOLD_": str(allocator.MMAP_THRESHOLD_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(allocator.TRIM_THRESHOLD_BYTES),
        "MALLOC_ARENA_MAX": str(allocator.ARENAS),
    }


def family(pid: int) -> Iterator[int]:
    """Yields a process and all that descend from it; those that end meanwhile are left out. Raises nothing."""
    yield pid
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as stream:
            for child in stream.read().split():
                yield from family(int(child))


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []


def anonymous_bytes(pid: int) -> int:
    """Returns a process's own memory, of shared pages its share; 0 where it is gone."""
    # Kernels without the first have the second, which counts a page for every fork that shares it.
    return _figure(pid, ("smaps_rollup", "Pss_Anon:"), ("status", "RssAnon:"))


def anonymous_bytes_at_most(pid: int) -> int:
    """Returns a process's own memory with all that forks share with it, in microseconds; 0 where it is gone.

    `anonymous_bytes` goes over its pages, and waits for who maps or frees memory there.
    """
    try:
        return statm(f"/proc/{pid}")[1]
    except OSError:
        return 0


def private_bytes(pid: int) -> int:
    """Returns the memory that a process shares with nobody, so that its end gives it back; 0 where it is gone."""
    return _figure(pid, ("smaps_rollup", "Private_Dirty:"), ("status", "RssAnon:"))


def _figure(pid: int, *places: tuple[str, str]) -> int:
    """Returns the first of these figures that the kernel has, each in a file of the process."""
    for file, wanted in places:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{file}") as stream:
            for line in stream:
                if line.startswith(wanted):
                    return int(line.split()[1]) * 1024
    return 0
