"""Connections to the host's other processes for what cannot wait for a new one, or has to go without a copy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelhost.memory.board import Seat

#: What is sent as one piece of memory, head included.
_JOINED_BYTES: Final = 64 << 10

_PIECE_BYTES: Final = 64 << 10
_MAX_HEAD_BYTES: Final = 64 << 10

#: Lines to one process that stay open while nothing is asked there.
_KEPT: Final = 4


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer, and how long its body is."""

    status: int
    headers: dict[bytes, bytes]
    length: int


class Line:
    """One connection, for one question at a time. Raises OSError and EOFError where the other end has gone."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    async def send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Sends parts one after another, large ones without a copy."""
        loop = asyncio.get_running_loop()
        if sum(map(len, parts)) <= _JOINED_BYTES:
            await loop.sock_sendall(self._connection, b"".join(parts))
            return
        for part in parts:
            await loop.sock_sendall(self._connection, part)

    async def head(self) -> Head:
        """Returns the head of the answer."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            piece = await asyncio.get_running_loop().sock_recv(self._connection, _PIECE_BYTES)
            if not piece or len(data) > _MAX_HEAD_BYTES:
                raise EOFError("the connection ended in the head of an answer")
            data += piece
        self._rest = data[end + 4 :]
        first, *lines = data[:end].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        return Head(int(first.split(b" ", 2)[1]), headers, int(headers.get(b"content-length", b"0")))

    async def read(self, size: int) -> memoryview:
        """Returns so many more bytes of the body."""
        buffer = bytearray(size)
        taken = len(self._rest[:size])
        buffer[:taken] = self._rest[:size]
        self._rest = self._rest[size:]
        view, loop = memoryview(buffer), asyncio.get_running_loop()
        while taken < size:
            more = await loop.sock_recv_into(self._connection, view[taken:])
            if not more:
                raise EOFError("the connection ended in the body of an answer")
            taken += more
        return view.toreadonly()

    def close(self) -> None:
        """Ends the connection: whatever is asked there is over."""
        self._connection.close()


class Lines:
    """Those of one process to all others. Event-loop thread."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._kept: dict[int, list[Line]] = {}

    async def open(self, seat: int) -> Line:
        """Returns a new line. Raises OSError."""
        address: Any = self._seat.board.addresses[seat]
        connection = socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
        return Line(connection)

    def kept(self, seat: int) -> Line | None:
        """Returns a line that was used before, whose other end may have gone since; None where there is none."""
        lines = self._kept.get(seat)
        return lines.pop() if lines else None

    def keep(self, seat: int, line: Line) -> None:
        """Takes a line back on which all of the last answer was read."""
        lines = self._kept.setdefault(seat, [])
        if len(lines) < _KEPT:
            lines.append(line)
        else:
            line.close()

    def close(self) -> None:
        """Closes those that nothing is asked on."""
        for lines in self._kept.values():
            while lines:
                lines.pop().close()
