"""Answers to inference requests, before they have a form on some wire: status, headers, body, and its claim."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelhost.api import errors
from modelhost.api.body import ByteHold
from modelhost.api.codec import EncodedResponse
from modelhost.errors import ModelHostError

#: A large answer is handed to the server in pieces of this size; it waits for the client between them.
_PIECE_BYTES: Final = 256 << 10

_JSON: Final = b"application/json"
_BINARY: Final = b"application/octet-stream"

Header = tuple[bytes, bytes]


class Answer:
    """One answer. `hold` is the claim for its body, where that is large: whoever sends it ends the claim."""

    __slots__ = ("body", "content_type", "extra", "hold", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        content_type: bytes = _JSON,
        extra: tuple[Header, ...] = (),
        hold: ByteHold | None = None,
    ) -> None:
        self.status, self.body, self.content_type, self.extra, self.hold = status, body, content_type, extra, hold

    @classmethod
    def of(cls, encoded: EncodedResponse, hold: ByteHold | None = None) -> Answer:
        """Returns a 200 with what the codec made."""
        extra: tuple[Header, ...] = ()
        if encoded.coding:
            extra = ((b"content-encoding", encoded.coding.encode()), (b"vary", b"accept-encoding"))
        if encoded.header_length is None:
            return cls(200, encoded.body, _JSON, extra, hold)
        extra = ((b"inference-header-content-length", b"%d" % encoded.header_length), *extra)
        return cls(200, encoded.body, _BINARY, extra, hold)

    @classmethod
    def of_response(cls, response: Response) -> Answer:
        """Returns a framework's response whose body is there."""
        skip = (b"content-type", b"content-length")
        extra = tuple((name, value) for name, value in response.raw_headers if name not in skip)
        return cls(response.status_code, bytes(response.body), _JSON, extra)

    @classmethod
    def of_error(cls, error: ModelHostError, request_id: str | None = None) -> Answer:
        """Returns the answer for one of our errors; see errors.respond."""
        return cls.of_response(errors.respond(error, request_id))

    def headers(self) -> list[Header]:
        """Returns all headers, names in lower case."""
        return [
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            *self.extra,
        ]


class AsgiAnswer:
    """Sends an answer over ASGI, a large one in pieces as the client takes them."""

    def __init__(self, answer: Answer, *, timeout_s: float) -> None:
        self._answer, self._timeout_s = answer, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it. A client that takes longer than the time-out for a large one is left."""
        answer = self._answer
        start = {"type": "http.response.start", "status": answer.status, "headers": answer.headers()}
        if answer.hold is None:
            await send(start)
            await send({"type": "http.response.body", "body": answer.body})
            return
        body = memoryview(answer.body)
        with answer.hold:
            async with asyncio.timeout(self._timeout_s):
                await send(start)
                for begin in range(0, len(body), _PIECE_BYTES):
                    piece = bytes(body[begin : begin + _PIECE_BYTES])
                    more = begin + _PIECE_BYTES < len(body)
                    await send({"type": "http.response.body", "body": piece, "more_body": more})
