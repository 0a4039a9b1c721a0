"""Memory that large bodies are received into, kept for the next one for a moment.

Fresh memory costs more than what is done with it: the kernel clears each page when it is touched first, which
for 3 MB takes longer than receiving them. So some buffers stay when their request is over. They are claimed
like a body's bytes by who uses them, and go when nobody has used them for a while, or when memory is wanted.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: A buffer that nobody has used for so long goes.
_KEPT_S: Final = 2.0

#: Buffers that are kept at the most; more requests at once have memory of their own.
_BUFFERS: Final = 8

Buffer = NDArray[np.uint8]


def _references(kept: list[Buffer], index: int) -> int:
    return sys.getrefcount(kept[index])


#: References to a buffer in a list that nobody uses, as this interpreter counts them.
_FREE: Final = _references([np.empty(1, np.uint8)], 0)


class BufferPool:
    """Event-loop thread, but for `clear`. A buffer is in use while anything refers to it or to a view on it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: list[Buffer] = []
        self._timer: asyncio.TimerHandle | None = None
        self._used_at = 0.0

    @property
    def size_bytes(self) -> int:
        """What all that are kept hold, in use or not."""
        return sum(buffer.nbytes for buffer in self._kept)

    def take(self, size_bytes: int) -> Buffer:
        """Returns at least so many bytes; the caller keeps them for as long as it refers to them."""
        loop = asyncio.get_running_loop()
        self._used_at = loop.time()
        kept = self._kept
        for index in range(len(kept)):
            # Not one that is much too large: it would not be there for whom it fits.
            if size_bytes <= kept[index].nbytes <= 2 * size_bytes and _references(kept, index) == _FREE:
                return kept[index]
        fresh = np.empty(size_bytes, np.uint8)
        if len(self._kept) >= _BUFFERS or self.size_bytes + size_bytes > self._max_bytes:
            self._drop_free()
        if len(self._kept) < _BUFFERS and self.size_bytes + size_bytes <= self._max_bytes:
            self._kept.append(fresh)
            if self._timer is None:
                self._timer = loop.call_later(_KEPT_S, self._expire)
        return fresh

    def clear(self) -> None:
        """Keeps none any more: those in use go with their users. Any thread: who looks for one has the old list."""
        self._kept = []

    def _drop_free(self) -> None:
        kept = self._kept
        self._kept = [kept[index] for index in range(len(kept)) if _references(kept, index) > _FREE]

    def _expire(self) -> None:
        self._timer = None
        if not self._kept:
            return
        loop = asyncio.get_running_loop()
        idle_s = loop.time() - self._used_at
        if idle_s >= _KEPT_S:
            self._drop_free()
        if self._kept:
            self._timer = loop.call_later(max(_KEPT_S - idle_s, 0.1), self._expire)
