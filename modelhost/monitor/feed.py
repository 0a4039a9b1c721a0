"""What all views on one host share: the recorder, the viewers, and the snapshots that they are shown."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from modelhost.host import Host
from modelhost.monitor import listing, state
from modelhost.monitor.recorder import Recorder
from modelhost.monitor.viewers import MAX_VIEWERS, Viewers

#: Views keep their connections, and may have one part in so many of all of them.
_CONNECTIONS_PART = 4


class Feed:
    """Opens after its host, and closes when that drains. Event-loop thread."""

    recorder: Recorder
    viewers: Viewers

    def __init__(self, host: Host, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._host, self._clock = host, clock
        self.whole: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]] | None = None
        """Makes the state of all of a host's processes of this one's, where it is several."""
        self._is_open = False

    def open(self) -> None:
        """Begins to record."""
        host = self._host
        self._opened_s = self._clock()
        self.recorder = Recorder(host.memory, host.pool, clock=self._clock)
        limit = max(1, min(MAX_VIEWERS, host.settings.server.max_connections // _CONNECTIONS_PART))
        self.viewers = Viewers(self._shown, host.memory.history, limit=limit, clock=self._clock)
        self._is_open = True
        host.memory.on_change(self.recorder.look)
        host.memory.on_change(self.viewers.look)

    def close(self) -> None:
        """Ends all views; harmless where it never opened."""
        if self._is_open:
            self.viewers.close()

    async def snapshot(self) -> dict[str, Any]:
        """Returns the host's state, see `state.monitor`."""
        return await state.monitor(self._host, self.recorder, opened_s=self._opened_s, now_s=self._clock())

    async def _shown(self) -> dict[str, Any]:
        """Returns what viewers are shown."""
        own = await self.snapshot()
        return own if self.whole is None else await self.whole(own)

    def models(self, *, search: str, offset: int, limit: int) -> dict[str, Any]:
        """Returns a page of all models, see `listing.page`."""
        return listing.page(self._host, search=search, offset=offset, limit=limit)
