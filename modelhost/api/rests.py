"""Slow senders rest between two pieces: each would wake the event loop for every byte that it sends.

Whoever has shown to be slow, and has sent little again, is not read for a second; what it sends meanwhile waits in
the kernel and comes as one piece. Together they are read at a rate that does not grow with how often they send.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

#: A piece of less than this is little: who sends more at once is not slow for now, whatever it was before.
LITTLE_BYTES: Final = 4 << 10

#: The shortest rest: a body that is slow would take five of these at least, as it goes.
_REST_S: Final = 1.0

#: Those whose rest is over are read some at a time, or they would be in the way together; as many as keep each of
#: them within some two seconds, however many they are.
_TICK_S: Final = 0.02
_AT_ONCE: Final = 8


class Rests:
    """Who rests, first come first served; one timer for all, none while nobody does. Event-loop thread."""

    def __init__(self) -> None:
        self._resting: deque[tuple[float, Callable[[], None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._resting)

    def begin(self, over: Callable[[], None]) -> None:
        """Calls `over` in a second or two; it has to be harmless where nobody waits for it any more."""
        loop = asyncio.get_running_loop()
        self._resting.append((loop.time() + _REST_S, over))
        if self._timer is None:
            self._timer = loop.call_later(_REST_S, self._tick)

    def _tick(self) -> None:
        loop, resting = asyncio.get_running_loop(), self._resting
        now, ticks = loop.time(), _REST_S / _TICK_S
        for _ in range(max(_AT_ONCE, int(len(resting) / ticks) + 1)):
            if not resting or resting[0][0] > now:
                break
            resting.popleft()[1]()
        self._timer = loop.call_later(max(_TICK_S, resting[0][0] - now), self._tick) if resting else None
