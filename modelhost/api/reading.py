"""Bodies over ASGI, one by one: read as they come, within what all bodies may hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from modelhost.api.arrivals import BEGINNING_BYTES, SMALL_BODY_BYTES, Arrival, Arrivals
from modelhost.api.body import ByteHold
from modelhost.config import ServerSettings
from modelhost.errors import DeadlineExceeded, InvalidRequest, ModelHostError, RequestTooLarge

#: Bodies that are no tensors are a few words.
_MAX_OBJECT_BYTES: Final = SMALL_BODY_BYTES


class _AsgiBody:
    """See Coming."""

    def __init__(self, length: int, hold: ByteHold) -> None:
        self.length, self.hold, self.received_bytes = length, hold, 0
        self._arrivals: Arrivals | None = None
        self._arrival: Arrival | None = None
        self._granted: asyncio.Future[None] | None = None
        self._waiting: asyncio.Timeout | None = None
        self._error: ModelHostError | None = None

    @contextmanager
    def arriving(self, arrivals: Arrivals) -> Iterator[None]:
        """The scope in which it comes."""
        self._arrivals = arrivals
        try:
            yield
        finally:
            arrival, self._arrival = self._arrival, None  # each has the other
            if arrival is not None:
                arrivals.end(arrival)

    async def keep(self, piece_bytes: int) -> None:
        """Claims what is there of it; waits for the memory of all of it where it is a large one, and for a while where
        it is slow. Raises what it was refused with."""
        assert self._arrivals is not None
        if self._arrival is None:
            self._arrival = self._arrivals.begin(self)
        self._granted = asyncio.get_running_loop().create_future()
        begins_at = BEGINNING_BYTES if self.length > SMALL_BODY_BYTES else SMALL_BODY_BYTES
        if not self.hold.size_bytes and not self._arrivals.keep(self._arrival):
            pass  # refused
        elif not self.hold.size_bytes and begins_at <= self.received_bytes < self.length:
            self._arrivals.claim(self._arrival)
            await self._granted
        elif self._arrivals.rest(self._arrival, piece_bytes, self.granted):
            await self._granted
        self._raise()

    async def receive(self, request: Request, until: float | None) -> Message:
        """Returns the next message. Raises TimeoutError, and what it was refused with meanwhile."""
        try:
            async with asyncio.timeout_at(until) as self._waiting:
                return await request.receive()
        except TimeoutError:
            self._raise()
            raise
        finally:
            self._waiting = None

    def granted(self) -> None:
        """See Coming."""
        if self._granted is not None and not self._granted.done():
            self._granted.set_result(None)

    def refused(self, error: ModelHostError) -> None:
        """See Coming."""
        self._error = error
        self.hold.end()
        if self._arrivals is not None and self._arrival is not None:
            self._arrivals.end(self._arrival)
        self.granted()
        if self._waiting is not None:
            self._waiting.reschedule(0)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


async def read_body(
    request: Request,
    hold: ByteHold,
    arrivals: Arrivals,
    *,
    max_bytes: int,
    deadline: float | None = None,
    pause_s: float | None = None,
) -> bytes:
    """Returns the body, its bytes claimed in `hold`, as `arrivals` lets them come.

    `deadline` is on the event loop's clock; `pause_s` bounds each wait for the client. Raises
    RequestTooLarge before reading where the length is stated, and as soon as it is passed where it is
    not; InvalidRequest where the length is no number; DeadlineExceeded; Overloaded; ClientDisconnect.
    """
    stated = request.headers.get("content-length")
    if stated is not None:
        if not (stated.isascii() and stated.isdecimal()):
            raise InvalidRequest(f"Content-Length: expected a number of bytes, got {stated!r}")
        _check(int(stated), max_bytes)
    coming = _AsgiBody(max_bytes if stated is None else int(stated), hold)
    with coming.arriving(arrivals):
        chunks = await _chunks(request, coming, max_bytes=max_bytes, deadline=deadline, pause_s=pause_s)
    if coming.received_bytes > hold.size_bytes:
        await hold.grow(coming.received_bytes - hold.size_bytes)
    hold.shrink(coming.received_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_object(request: Request, arrivals: Arrivals, server: ServerSettings) -> dict[str, Any]:
    """Returns the JSON object that a body of a few words is; nothing at all is an empty one.

    Raises what `read_body` raises, and InvalidRequest for anything else.
    """
    deadline = asyncio.get_running_loop().time() + server.request_timeout_s
    with arrivals.pieces.hold() as hold:  # never behind those who wait for the memory of tensors
        body = await read_body(
            request, hold, arrivals, max_bytes=_MAX_OBJECT_BYTES, deadline=deadline, pause_s=server.read_timeout
        )
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body: expected a JSON object, got {type(document).__name__}")
    return document


def _body_of(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message.get("body", b"")
    return body


def _check(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise RequestTooLarge("the body has at least", size_bytes=size_bytes, limit_bytes=max_bytes)


async def _chunks(
    request: Request, coming: _AsgiBody, *, max_bytes: int, deadline: float | None, pause_s: float | None
) -> list[bytes]:
    loop, chunks = asyncio.get_running_loop(), []
    while True:
        began = loop.time()
        until = None if pause_s is None else began + pause_s
        if deadline is not None:
            until = deadline if until is None else min(until, deadline)
        try:
            message = await coming.receive(request, until)
        except TimeoutError:
            raise DeadlineExceeded("receiving the body", waited_s=loop.time() - began) from None
        chunk = _body_of(message)
        coming.received_bytes += len(chunk)
        _check(coming.received_bytes, max_bytes)
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks
        await coming.keep(len(chunk))
