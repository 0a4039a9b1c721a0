"""The server's end: no new work from the first signal on, an answer for what has begun, and then out.

uvicorn's own end closes connections that idle at once, which clients that are just sending on one take for a
failure, waits without looking at gRPC, and looks ten times a second. Here they stay until the work is done, so that
readiness can be asked for meanwhile and what comes too late gets an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from types import FrameType
from typing import Any, Final

import uvicorn

from modelhost.api.accepting import Acceptor
from modelhost.api.app import ModelHostApp
from modelhost.api.connection import Connection
from modelhost.api.protocol import protocol_class
from modelhost.host import Host
from modelhost.memory.board import Figure, Seat

log = logging.getLogger("modelhost")

_POLL_S: Final = 0.02

#: What connections have to close, and tasks to end, once the work is done or was given up.
_CLOSING_S: Final = 0.5

_CLOSING_POLL_S: Final = 0.002

#: Runs that were stopped end at their next node. One that does not in so long is left to the end of the process.
_STOPPING_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Shared:
    """What one of several processes listens on; made before it has a seat."""

    seat: Seat
    listener: socket.socket
    """Bound and listening; all processes accept from it."""
    privates: Sequence[socket.socket]
    """The same, for what the processes ask each other: each one's own, by seat."""


def server_config(app: ModelHostApp, connections: int, **more: Any) -> uvicorn.Config:
    """Returns the configuration of a server of ours that takes so many connections at once; `more` is uvicorn's."""
    return uvicorn.Config(
        app,
        http=protocol_class(connections, app.short_cut, app.guard, app.access_log),
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # nothing here asks who the client is
        log_config=None,
        server_header=False,
        **more,
    )


class DrainingServer(uvicorn.Server):
    """A server that ends as behind a load balancer it should. The main thread's signals, the event loop's rest.

    `leave` ends the process whose runs do not; without it they are waited for. `on_hangup` is what SIGHUP asks for.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        host: Host,
        app: ModelHostApp,
        *,
        leave: Callable[[], None] | None = None,
        on_hangup: Callable[[], Coroutine[Any, Any, None]] | None = None,
        shared: Shared | None = None,
    ) -> None:
        """`shared`: what it listens on together with the host's other processes, instead of sockets of its own."""
        super().__init__(config)
        self._shared, self._acceptors = shared, list[Acceptor]()
        self._host, self._app, self._leave, self._on_hangup = host, app, leave, on_hangup
        self._reloads: set[asyncio.Task[None]] = set()
        self._is_signalled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end_asked = asyncio.Event()
        self._dated_s = -1

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes SIGTERM and SIGINT: the first has the host drain, the second ends the process as by itself."""
        if self._is_signalled:
            leave_by(sig)
        self._is_signalled = True
        self._host.drain()
        self.end()

    def end(self) -> None:
        """Has it end as the first signal does. Any thread, and a signal's handler."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._end_asked.set)

    async def main_loop(self) -> None:
        """Serves until `end`, and goes on from there at once: uvicorn looks ten times a second.

        The date in the heads of answers is looked at when memory is: an idle host wakes up for both.
        """
        self._loop = asyncio.get_running_loop()
        self._set_date()
        self._host.memory.on_change(self._set_date)
        await self._end_asked.wait()

    def _set_date(self) -> None:
        now_s = int(time.time())
        if now_s != self._dated_s:
            self._dated_s = now_s
            date = (b"date", formatdate(now_s, usegmt=True).encode())
            # A new list: that is how answers know of it.
            self.server_state.default_headers = [date, *self.config.encoded_headers]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and takes SIGHUP from then on."""
        if self._on_hangup is not None and hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        await super().startup(sockets if self._shared is None else [])
        if self._shared is not None:
            self._accept(self._shared)

    def _accept(self, shared: Shared) -> None:
        """Accepts connections of the socket that all processes have, and on the one for what they ask each other."""
        config, state, app_state = self.config, self.server_state, self.lifespan.state
        kind: Any = config.http_protocol_class

        def make() -> asyncio.Protocol:
            protocol: asyncio.Protocol = kind(config=config, server_state=state, app_state=app_state)
            return protocol

        def connections() -> int:
            return len(state.connections)

        seat = shared.seat
        kind.door.left = lambda: seat.publish(Figure.CONNECTIONS, connections())
        self._acceptors = [
            Acceptor(shared.listener, make, seat=seat, connections=connections, tls=config.ssl),
            Acceptor(shared.privates[seat.number], make),
        ]
        for acceptor in self._acceptors:
            acceptor.start()

    def _hang_up(self) -> None:
        assert self._on_hangup is not None
        if not self.started or self._host.is_draining:
            return
        task = asyncio.get_running_loop().create_task(self._on_hangup())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the listener, waits for what is under way up to `server.drain_timeout`, and closes the rest."""
        self._host.drain()
        self._app.feed.close()  # views have no end of their own
        for listener in (*self.servers, *(sockets or ()), *self._acceptors):
            listener.close()
        await self._drained(self._host.settings.server.drain_timeout)
        stuck = None
        if self._leave is not None:
            stuck = asyncio.get_running_loop().call_later(_STOPPING_S, self._give_up)
        for connection in self._connections():
            connection.end_lingering()
            connection.shutdown()
        await self._closed()
        await self.lifespan.shutdown()
        for connection in self._connections():  # of clients that do not take their answer
            connection.transport.abort()
        await asyncio.sleep(0)
        if stuck is not None:
            stuck.cancel()
        self._captured_signals.clear()  # uvicorn would raise them once more

    async def _drained(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (left := self._under_way()) and loop.time() < deadline:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_POLL_S)
        if left:
            log.warning("%d requests were still under way after %g s (server.drain_timeout): stopped", left, timeout_s)

    async def _closed(self) -> None:
        loop, state = asyncio.get_running_loop(), self.server_state
        deadline = loop.time() + _CLOSING_S
        while (state.connections or state.tasks) and loop.time() < deadline:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_CLOSING_POLL_S)
        for task in state.tasks:
            task.cancel("the host is shutting down")

    def _under_way(self) -> int:
        """Returns how many requests have no answer yet, or not all of it; their connections close after it."""
        busy = [connection for connection in self._connections() if connection.is_busy or connection.is_sending]
        for connection in busy:
            connection.shutdown()
        return len(busy) + self._app.calls_under_way

    def _connections(self) -> list[Connection]:
        connections: set[Any] = self.server_state.connections
        return list(connections)

    def _give_up(self) -> None:
        log.error("%d runs have not ended though they were stopped: leaving", self._host.pool.runner.in_flight)
        logging.shutdown()
        assert self._leave is not None
        self._leave()


def leave_by(number: int) -> None:
    """Ends the process as the signal would that nobody catches."""
    with contextlib.suppress(ValueError):  # not on the main thread
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != 1:
            os.kill(os.getpid(), number)
    os._exit(128 + number)  # the first process of a container, which the kernel spares
