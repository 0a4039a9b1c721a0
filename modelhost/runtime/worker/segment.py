"""Shared memory of one channel: an anonymous file of fixed size, mapped by both sides.

Its size is sealed, as a worker that made it smaller would end the host with a bus error. Pages are there from
when they are written to until they are given back, so that the size itself costs nothing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Smallest segment.
_LEAST_BYTES: Final = 64 << 10


class Segment:
    """Memory that both sides see. One run at a time uses it."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        """Maps a descriptor, which it closes at the end. Raises OSError and ValueError."""
        self.size_bytes = size_bytes
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size_bytes)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.__array_interface__["data"][0]

    @classmethod
    def create(cls, wanted_bytes: int) -> Segment:
        """Returns a new one of at least this size. Raises OSError where there is no memory or descriptor."""
        import fcntl  # not where nobody can be isolated

        size_bytes = max(_LEAST_BYTES, 1 << (wanted_bytes - 1).bit_length()) if wanted_bytes else _LEAST_BYTES
        descriptor = os.memfd_create("modelhost", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return cls(descriptor, size_bytes)
        except BaseException:
            os.close(descriptor)
            raise

    def held_bytes(self) -> int:
        """Returns what of it is in memory."""
        return os.fstat(self.descriptor).st_blocks * 512

    def give_back(self, kept_bytes: int = 0) -> None:
        """Returns the pages beyond the first `kept_bytes` to the kernel; what was in them is lost."""
        kept_bytes -= kept_bytes % mmap.PAGESIZE
        if self.size_bytes > kept_bytes and self.held_bytes() > kept_bytes:
            with contextlib.suppress(OSError):  # a kernel that cannot keeps them until the end
                self._map.madvise(mmap.MADV_REMOVE, kept_bytes, self.size_bytes - kept_bytes)

    def close(self) -> None:
        """Closes the descriptor; the mapping goes with the last array on it."""
        os.close(self.descriptor)
