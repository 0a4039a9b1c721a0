"""Large bodies on their way in: they land where they are wanted, past the parser, which would copy them twice."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from modelhost.api.exchange import Exchange

#: Where bytes go that nobody looks at any more.
_UNWANTED: Final = bytearray(64 << 10)


class Receiving(Protocol):
    """The connection that a receiver stands in for."""

    def note_piece(self, size_bytes: int) -> None:
        """Notes that the client is sending, and that there is more to come."""

    def received(self, exchange: Exchange) -> None:
        """Goes on with a request whose body is there."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes that the connection has ended."""

    def pause_writing(self) -> None:
        """Notes that the client does not take what is sent."""

    def resume_writing(self) -> None:
        """Notes that it does again."""


class BodyReceiver(asyncio.BufferedProtocol):
    """Stands in for the connection while a large body comes."""

    def __init__(self, connection: Receiving, exchange: Exchange) -> None:
        self._connection, self._exchange = connection, exchange

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:
        """Returns room for what comes next."""
        return _UNWANTED if self._exchange.response_complete else self._exchange.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Takes note of what has come."""
        exchange, connection = self._exchange, self._connection
        if exchange.response_complete:
            return  # refused: what still comes in is not looked at
        exchange.received_bytes += nbytes
        if exchange.is_received:
            connection.received(exchange)
        else:
            connection.note_piece(nbytes)

    def eof_received(self) -> None:
        """Leaves it to the connection's end."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Tells the connection."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Tells the connection."""
        self._connection.resume_writing()
