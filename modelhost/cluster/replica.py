"""One replica: a host with its own application, in this process and within its share of memory.

What it is asked comes as messages and goes through the application that a server would have: the same routes, codecs
and errors, so that an answer is the same to the byte. Event-loop thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, Final

from starlette.types import ASGIApp, Message

from modelhost.api.app import ModelHostApp, create_app
from modelhost.cluster.messages import Answered, Asked
from modelhost.cluster.share import share_of
from modelhost.config import Settings
from modelhost.host import Host
from modelhost.memory import Level
from modelhost.security.keys import Key
from modelhost.security.ring import KeyRing

#: Refusals that nobody could help with are told of for so long; a model that was not asked for in that long is not
#: what the cluster has to have room for.
_REFUSED_S: Final = 60.0
_WANTED_S: Final = 600.0

#: States of a model that make this the place for requests for it.
_HERE: Final = frozenset({"preparing", "loading", "trial", "ready"})


class Replica:
    """A host among several. `name` is unique in the cluster."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        keys: tuple[Key, ...] = (),
        *,
        make_host: Callable[[Settings], Host] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self._clock = name, clock
        self.host = (make_host or _host)(settings)
        self._app: ModelHostApp = create_app(self.host, keys=KeyRing.of(settings.security, keys))
        self._stack = AsyncExitStack()
        self._refused: deque[float] = deque()

    async def open(self) -> None:
        """Opens the host and loads what is to be loaded first. Raises ConfigError."""
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))

    async def close(self) -> None:
        """Takes no more work, and closes when what has begun is answered."""
        self.host.drain()
        await self._stack.aclose()

    async def answer(self, asked: Asked, body: bytes, *, refused_by: Collection[str] = ()) -> Answered | None:
        """Answers as the host would on a socket.

        None where this replica is among those that have refused: then all have, since whoever is left is asked first.
        """
        if self.name in refused_by:
            self._refused.append(self._clock())
            return None
        status, headers, answer = await respond(self._app, asked, body)
        return Answered(self.name, status, headers, answer)

    def standing(self) -> dict[str, Any]:
        """Returns what routing has to know of this replica; read with `Standing.of`."""
        snapshot = self.host.pool.snapshot()
        return {
            "models": sorted({model.name for model in snapshot.models if model.state in _HERE}),
            "is_tight": self.host.memory.level is not Level.NORMAL,
            "is_open": self.host.is_ready,
        }

    def demand(self) -> dict[str, float]:
        """Returns what scaling has to know: refusals of the last minute that no replica could help with, what those
        models hold that were asked for in the last ten minutes, and what there is for models."""
        now = self._clock()
        while self._refused and self._refused[0] < now - _REFUSED_S:
            self._refused.popleft()
        since = time.time() - _WANTED_S
        info = self.host.memory.memory_info()
        wanted = (model for model in self.host.pool.snapshot().models if (model.last_used or 0.0) > since)
        return {
            "refused_loads": float(len(self._refused)),
            "wanted_bytes": float(sum(model.committed_bytes for model in wanted)),
            "room_bytes": float(max(1, info.warning_bytes - info.baseline_bytes)),
        }


async def respond(app: ASGIApp, asked: Asked, body: bytes) -> tuple[int, tuple[tuple[bytes, bytes], ...], bytes]:
    """Has an application answer one request; returns status, headers and body.

    Where the caller is cancelled, the application sees a client that has left, and ends as it does then.
    """
    exchange = _Exchange(body)
    task = asyncio.get_running_loop().create_task(_run(app, asked, exchange))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        exchange.leave()
        await asyncio.wait([task])
        raise
    return exchange.status, exchange.headers, b"".join(exchange.pieces)


async def _run(app: ASGIApp, asked: Asked, exchange: _Exchange) -> None:
    await app(asked.scope(), exchange.receive, exchange.send)


class _Exchange:
    """The two ends of one request without a connection."""

    def __init__(self, body: bytes) -> None:
        self.status = 500
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        self.pieces: list[bytes] = []
        self._body: bytes | None = body
        self._left = asyncio.Event()

    async def receive(self) -> Message:
        """The `receive` of an application: the body, whole, and then nothing until the client leaves."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """The `send` of an application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = tuple((bytes(name), bytes(value)) for name, value in message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.pieces.append(bytes(message.get("body", b"")))

    def leave(self) -> None:
        """Says that nobody waits for the answer any more."""
        self._left.set()


def _host(settings: Settings) -> Host:
    return Host(settings, probe=share_of(settings.memory))
