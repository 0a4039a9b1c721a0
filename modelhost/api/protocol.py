"""HTTP on the socket, with what uvicorn's protocol leaves open: bounded heads, bounded connections,
and no second request behind an `Upgrade` that nobody supports.

uvicorn takes a protocol class as a setting; this one only narrows what its own accepts.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, ClassVar, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Request line and headers together. Every connection may hold as much at any time.
MAX_HEAD_BYTES: Final = 32 << 10

_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE_LINE: Final = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)


class HttpProtocol(HttpToolsProtocol):
    """One connection. Event-loop thread."""

    max_connections: ClassVar[int] = 512

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or answers 503 where there are too many."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = True, 0
        if len(self.connections) > self.max_connections:
            self._refuse(503, "overloaded", f"{self.max_connections} connections are open, which is the limit")

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; a head that grows over the limit ends the connection."""
        if self.transport.is_closing():
            return  # refused: what still comes in is not looked at
        if self._in_head:
            data = without_upgrade(data)
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431, "request_too_large", f"request line and headers are over {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """Ends the head. An upgrade that could not be taken out is refused: the parser would take the
        body for a request of its own."""
        self._in_head, self._head_bytes = False, 0
        if self.parser.should_upgrade():
            raise ValueError("upgrades are not supported")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Ends the request; a head comes next."""
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser refused, in the shape of all our errors."""
        self._refuse(400, "invalid_request", msg)

    def _refuse(self, status: int, code: str, text: str) -> None:
        body = orjson.dumps({"error": text, "code": code})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
        )
        retry = "retry-after: 1\r\n" if status == 503 else ""
        self.transport.write(f"{head}{retry}\r\n".encode() + body)
        self.transport.close()


def without_upgrade(data: bytes) -> bytes:
    """Returns `data`, the beginning of a request, without an `Upgrade` header.

    A server may ignore the header (RFC 9110, 7.8), and clients that offer HTTP/2 send it with
    ordinary requests. The parser cannot ignore it: it takes such a request for one without a body.
    """
    if b"grade" not in data and b"GRADE" not in data:
        return data
    end = data.find(_HEAD_END)
    if end < 0:
        return data
    return _UPGRADE_LINE.sub(b"", data[:end]) + data[end:]


def protocol_class(max_connections: int) -> Any:
    """Returns the protocol with this bound, for uvicorn's `http` setting."""
    return type("HttpProtocol", (HttpProtocol,), {"max_connections": max_connections})
