"""Connections of a host that is several processes: all accept from one socket, and nobody takes more than his share.

The event loop's own server accepts all that wait, so that whoever wakes first gets every connection of a client that
opens eight of them, and the others none. Here one is taken at a time, and left for a moment where others have fewer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from modelhost.memory.board import Figure, Seat

log = logging.getLogger("modelhost")

#: Connections that may wait to be accepted.
BACKLOG: Final = 2048

#: How long a newcomer is left to those with fewer connections, and how often: they may be busy.
_LEFT_S: Final = 0.001
_LEFT_TIMES: Final = 5

#: Without descriptors nothing can be accepted: so long is waited for some.
_NO_FILES_S: Final = 0.1


def reserve(address: str, port: int, *, is_shared: bool = False) -> socket.socket:
    """Binds a port (0: a free one) without listening on it.

    `is_shared`: so that sockets of this user may listen on it beside each other; nobody does yet. Raises OSError.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind((address, port))
        if not is_shared:
            return reserved
        port = reserved.getsockname()[1]
        reserved.close()  # bound alone, it would stay so
        reserved = socket.socket(family, socket.SOCK_STREAM)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((address, port))
    except BaseException:
        reserved.close()
        raise
    return reserved


class Acceptor:
    """Accepts from a socket that is bound and listens. Event-loop thread.

    `seat`: its owner shares the socket with others and leaves them their part; None: it is the owner's alone.
    """

    def __init__(
        self,
        listener: socket.socket,
        make: Callable[[], asyncio.Protocol],
        *,
        seat: Seat | None = None,
        connections: Callable[[], int] = lambda: 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener, self._make, self._seat, self._connections, self._tls = listener, make, seat, connections, tls
        self._left = 0
        self._again: asyncio.TimerHandle | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def start(self) -> None:
        """Begins to accept."""
        self._listener.setblocking(False)
        self._wait()

    def close(self) -> None:
        """Accepts nothing from here on, and lets go of the socket; harmless when closed."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()

    def _wait(self, after_s: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        if after_s:
            loop.remove_reader(self._listener)
            self._again = loop.call_later(after_s, self._wait)
        elif not self._is_closed:
            self._again = None
            loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        if self._is_for_others():
            self._wait(_LEFT_S)
            return
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client has gone
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error.strerror)
            self._wait(_NO_FILES_S)
            return
        self._left = 0
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _connect(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a handshake that failed is the client's
            await asyncio.get_running_loop().connect_accepted_socket(self._make, connection, ssl=self._tls)

    def _is_for_others(self) -> bool:
        """Whether others have fewer connections, and have not had their chance yet."""
        seat = self._seat
        if seat is None:
            return False
        mine = self._connections() + len(self._handshakes)
        seat.publish(Figure.CONNECTIONS, mine)
        least = min((seat.board.read(other, Figure.CONNECTIONS) for other in seat.seated), default=mine)
        if mine <= least or self._left >= _LEFT_TIMES:
            return False
        self._left += 1
        return True
