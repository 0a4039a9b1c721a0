"""Process-wide settings of the C allocator, and giving its free memory back.

`configure` has to run before ONNX Runtime (or anything else that allocates tensors) is imported:
glibc raises its mmap threshold at the first large `free`, and what was allocated before stays where
it is. Elsewhere than on glibc both functions do nothing and say so.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

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

_libc: Final = ctypes.CDLL(None) if os.name == "posix" else None


def configure() -> bool:
    """Applies the settings; returns whether this C library took them. May be called again."""
    # The official wheels since 1.29 start an uploader thread unless this is set before the import.
    # It is ONNX Runtime's own switch, not a setting of ours, so it does not belong in config.py.
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
