"""Who looks at a host all the time: one snapshot for all of them at each tick, and memory events as they happen.

A viewer holds one snapshot at most, the newest: nothing is queued for who is slow. Without viewers nothing ticks.
Frames are those of server-sent events (WHATWG HTML, section 9.2), which is text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

import orjson

from modelhost.errors import HostClosed, Overloaded
from modelhost.memory.events import History, MemoryEvent

log = logging.getLogger("modelhost")

#: Intervals are whole multiples of it, so that all who look share the snapshot of a tick.
TICK_S: Final = 0.5

MAX_VIEWERS: Final = 32

#: After so long without anything to send, a comment is: else proxies take the connection for a dead one.
HEARTBEAT_S: Final = 15.0

HEARTBEAT: Final = b": still here\n\n"

#: What a browser waits before it connects again.
BEGINNING: Final = b"retry: 2000\n\n"


def snapshot_frame(document: object) -> bytes:
    """Returns a snapshot as an event; JSON in one line, as a line break would end the data."""
    return b"event: snapshot\ndata: " + orjson.dumps(document) + b"\n\n"


def event_frame(event: MemoryEvent) -> bytes:
    """Returns a memory event as an event, whose id a client sends when it comes back."""
    return b"event: memory\nid: %d\ndata: %b\n\n" % (event.id, orjson.dumps(event.as_dict()))


class Viewer:
    """One who looks. Event-loop thread; `chunks` is read by one task.

    `cut_off` ends a connection whose client does not take what was sent.
    """

    def __init__(self, viewers: Viewers, every_ticks: int, seen_id: int) -> None:
        self.every_ticks, self.cut_off = every_ticks, _nothing
        self.is_over = False
        self.is_sending = False
        """Whether what was taken last has not gone yet."""
        self._viewers, self._seen_id = viewers, seen_id
        self._snapshot = b""
        self._wake = asyncio.Event()
        self._sent_at = viewers.clock()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yields what is to be sent, as soon as there is something, until it is over."""
        self.is_sending = True
        yield BEGINNING
        self.is_sending = False
        self.show(await self._viewers.current())
        while not self.is_over:
            chunk = self._take()
            if chunk:
                self.is_sending = True
                yield chunk
                self.is_sending = False
                self._sent_at = self._viewers.clock()
            else:
                await self._wake.wait()
                self._wake.clear()

    def show(self, snapshot: bytes) -> None:
        """Has a snapshot sent, in place of one that has not been."""
        self._snapshot = snapshot
        self._wake.set()

    def look(self, now: float) -> None:
        """Sends the events that it has not seen, or a comment where nothing was sent for long."""
        if self._viewers.history.last_id > self._seen_id or now - self._sent_at >= HEARTBEAT_S:
            self._wake.set()

    def end(self) -> None:
        """Ends it, at once where its client takes nothing."""
        self.is_over = True
        self._wake.set()
        if self.is_sending:
            self.cut_off()

    def leave(self) -> None:
        """Ends it without a word; harmless when it has ended."""
        self._viewers.leave(self)

    def _take(self) -> bytes:
        snapshot, self._snapshot = self._snapshot, b""
        events = self._viewers.history.after(self._seen_id)
        if events:
            self._seen_id = events[-1].id
        chunk = b"".join([*map(event_frame, events), snapshot])
        if not chunk and self._viewers.clock() - self._sent_at >= HEARTBEAT_S:
            return HEARTBEAT
        return chunk


class Viewers:
    """All who look. `make` makes a snapshot. Event-loop thread."""

    def __init__(
        self,
        make: Callable[[], Awaitable[object]],
        history: History,
        *,
        limit: int = MAX_VIEWERS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.history, self.limit, self.clock, self._sleep = history, limit, clock, sleep
        self._make = make
        self._all: set[Viewer] = set()
        self._ticks = 0
        self._ticking: asyncio.Task[None] | None = None
        self._making = asyncio.Lock()
        self._frame, self._made_at = b"", -TICK_S
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._all)

    def join(self, interval_s: float, seen_id: int | None = None) -> Viewer:
        """Returns a new viewer, who has a snapshot each interval, and the events after the one with `seen_id`.

        None: those that are still to come. An id that was never given is another process's: all events are new then.
        Raises Overloaded and HostClosed. Whoever asks has to call `leave`.
        """
        if self._is_closed:
            raise HostClosed("the host is shutting down")
        if len(self._all) >= self.limit:
            text = f"{len(self._all)} views are open, which is the limit; GET /monitor answers without one"
            raise Overloaded("views", waiting=len(self._all), limit=self.limit, text=text)
        if seen_id is None:
            seen_id = self.history.last_id
        elif seen_id > self.history.last_id:
            seen_id = 0
        viewer = Viewer(self, max(1, round(interval_s / TICK_S)), seen_id)
        self._all.add(viewer)
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().create_task(self._tick_on())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Ends a viewer; harmless for one that has left. The last one ends the ticks."""
        self._all.discard(viewer)
        if not self._all and self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def look(self) -> None:
        """Has events told that have happened; called wherever somebody has looked at memory."""
        now = self.clock()
        for viewer in self._all:
            viewer.look(now)

    def close(self) -> None:
        """Ends all viewers, and takes no new ones."""
        self._is_closed = True
        for viewer in tuple(self._all):
            viewer.end()

    async def current(self, within_s: float = TICK_S) -> bytes:
        """Returns a snapshot that is less than `within_s` old."""
        async with self._making:  # who comes meanwhile shares it
            if self.clock() - self._made_at >= within_s:
                self._frame = snapshot_frame(await self._make())
                self._made_at = self.clock()
            return self._frame

    async def tick(self) -> None:
        """Shows those a snapshot whose interval is over: one for all of them."""
        self._ticks += 1
        due = [viewer for viewer in self._all if self._ticks % viewer.every_ticks == 0]
        if due:
            frame = await self.current(TICK_S / 2)  # one that was made for a newcomer just now is as good
            for viewer in due:
                viewer.show(frame)

    async def _tick_on(self) -> None:
        while True:
            await self._sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # without ticks all views would stand still
                log.exception("a snapshot for views could not be made")


def _nothing() -> None:
    """Ends no connection: nobody has said how."""
