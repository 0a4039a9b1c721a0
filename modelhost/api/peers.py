"""What one process of a host asks the others: their own answer to a request that is everybody's.

Over the socket that each has for it, with the words of the API: what a process says of itself, the host's own client
gets as anybody would who asks that process alone.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelhost.memory.board import Seat

log = logging.getLogger("modelhost")

#: Has a process answer for itself; its value is of no importance.
ALONE: Final = b"x-modelhost-alone"

#: Has a process answer the host itself, which has no key: its value is the board's secret.
TRUSTED: Final = b"x-modelhost-board"

#: A process that does not answer for so long is left out; one that loads a model for everybody has more time.
QUICK_S: Final = 5.0

_MAX_ANSWER_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Reply:
    """What one process has answered."""

    seat: int
    status: int
    body: bytes


class Peers:
    """The other processes. Event-loop thread."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    async def ask(
        self,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        timeout_s: float = QUICK_S,
        is_trusted: bool = False,
    ) -> list[Reply]:
        """Asks all others at once; returns what those answer that do, in the order of their seats.

        `is_trusted`: the host asks for itself, and not for a client with a key of its own.
        """
        seats = self.seat.seated
        if is_trusted:
            headers = [*headers, (TRUSTED, self.seat.board.secret)]
        asked = [self._ask_one(seat, method, target, headers, body, timeout_s) for seat in seats]
        return [reply for reply in await asyncio.gather(*asked) if reply is not None]

    async def _ask_one(
        self,
        seat: int,
        method: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        timeout_s: float,
    ) -> Reply | None:
        lines = [
            f"{method} ".encode() + target + b" HTTP/1.1",
            b"host: modelhost",
            b"connection: close",
            ALONE + b": 1",
        ]
        lines += [name + b": " + value for name, value in headers]
        if body or method != "GET":
            lines.append(b"content-length: %d" % len(body))
        try:
            async with asyncio.timeout(timeout_s):
                data = await self._exchange(seat, b"\r\n".join(lines) + b"\r\n\r\n" + body)
            status, answer = _parsed(data)
        except (OSError, TimeoutError, EOFError, http.client.HTTPException) as error:
            log.warning("process %d of the host does not answer: %s", seat, str(error) or type(error).__name__)
            return None
        return Reply(seat, status, answer)

    async def _exchange(self, seat: int, data: bytes) -> bytes:
        address: Any = self.seat.board.addresses[seat]
        connection = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        try:
            connection.connect(address)  # at once: it is this machine's, and the kernel accepts for the other
            connection.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            writer.write(data)
            await writer.drain()
            answer = await reader.read(_MAX_ANSWER_BYTES)
            while piece := await reader.read(_MAX_ANSWER_BYTES):
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise EOFError(f"the answer is over {_MAX_ANSWER_BYTES} bytes")
            return answer
        finally:
            writer.close()


def _parsed(data: bytes) -> tuple[int, bytes]:
    """Returns status and body of an answer that ends with its connection. Raises http.client.HTTPException, OSError."""
    response = http.client.HTTPResponse(_Bytes(data))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read()


class _Bytes:
    """What has been read, where the library wants a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)
