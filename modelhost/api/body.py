"""Request bodies: bounded in size each, and in sum."""

from __future__ import annotations

import asyncio
from collections import deque

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from modelhost.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestTooLarge

#: What a body of unstated length is given at first; it gets as much again whenever that is full.
_CHUNKED_STEP_BYTES = 256 << 10

#: How long a request waits for others' bodies to be done with.
_WAIT_S = 10.0


class ByteBudget:
    """Bytes that all requests together may hold in bodies and decoded values. Event-loop thread only.

    First come, first served: a large request is not overtaken for ever by small ones.
    """

    def __init__(self, limit_bytes: int, *, max_waiting: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._max_waiting = max_waiting
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for bytes."""
        return len(self._waiters)

    def hold(self) -> ByteHold:
        """Returns a claim of nothing, to be grown and to be ended."""
        return ByteHold(self)

    async def take(self, size_bytes: int) -> None:
        """Takes bytes, waiting for them where others hold them.

        Raises RequestTooLarge where there are not as many at all, Overloaded where the wait is over
        or the line is full. Takes nothing where it raises.
        """
        if size_bytes > self.limit_bytes:
            raise RequestTooLarge(
                "decoding this request takes",
                size_bytes=size_bytes,
                limit_bytes=self.limit_bytes,
                advice="send fewer rows at once, or binary tensors",
            )
        if not self._waiters and self.used_bytes + size_bytes <= self.limit_bytes:
            self.used_bytes += size_bytes
            return
        if len(self._waiters) >= self._max_waiting:
            raise self._overloaded()
        entry = (size_bytes, asyncio.get_running_loop().create_future())
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(_WAIT_S):
                await entry[1]
        except BaseException as error:
            if entry in self._waiters:
                self._waiters.remove(entry)
            elif not entry[1].cancelled():  # granted, and nobody is there to use it
                self.used_bytes -= size_bytes
            self._grant()
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise

    def give_back(self, size_bytes: int) -> None:
        """Returns bytes, and hands them to who waits."""
        self.used_bytes -= size_bytes
        self._grant()

    def _grant(self) -> None:
        while self._waiters and self.used_bytes + self._waiters[0][0] <= self.limit_bytes:
            size_bytes, future = self._waiters.popleft()
            if not future.done():
                self.used_bytes += size_bytes
                future.set_result(None)

    def _overloaded(self) -> Overloaded:
        return Overloaded("the memory for requests in flight", waiting=len(self._waiters), limit=self._max_waiting)


class ByteHold:
    """One request's claim on the budget; a context manager that gives all of it back."""

    __slots__ = ("_budget", "size_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Claims more; see ByteBudget.take."""
        await self._budget.take(size_bytes)
        self.size_bytes += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Gives back all but `size_bytes`."""
        self._budget.give_back(self.size_bytes - size_bytes)
        self.size_bytes = size_bytes

    def __enter__(self) -> ByteHold:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._budget.give_back(self.size_bytes)
        self.size_bytes = 0


async def read_body(request: Request, hold: ByteHold, *, max_bytes: int, deadline: float | None = None) -> bytes:
    """Returns the body, having claimed its bytes from `hold`; `deadline` is on the event loop's clock.

    Raises RequestTooLarge before reading where the length is stated, and as soon as it is passed
    where it is not; InvalidRequest where the length is no number; DeadlineExceeded where the client
    takes too long; ClientDisconnect.
    """
    stated = request.headers.get("content-length")
    if stated is not None:
        if not (stated.isascii() and stated.isdecimal()):
            raise InvalidRequest(f"Content-Length: expected a number of bytes, got {stated!r}")
        _check(int(stated), max_bytes)
        await hold.grow(int(stated))
    message = await request.receive()
    first = _body_of(message)
    if not message.get("more_body"):
        if stated is None:
            _check(len(first), max_bytes)
            await hold.grow(len(first))
        return first
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(deadline):
            return await _read_rest(request, first, hold, max_bytes)
    except TimeoutError:
        waited_s = asyncio.get_running_loop().time() - began
        raise DeadlineExceeded("receiving the body", waited_s=waited_s) from None


async def _read_rest(request: Request, first: bytes, hold: ByteHold, max_bytes: int) -> bytes:
    chunks, received, claimed = [first], len(first), hold.size_bytes
    while True:
        _check(received, max_bytes)
        while received > claimed:
            await hold.grow(_CHUNKED_STEP_BYTES)
            claimed += _CHUNKED_STEP_BYTES
        message = await request.receive()
        chunk = _body_of(message)
        chunks.append(chunk)
        received += len(chunk)
        if not message.get("more_body"):
            _check(received, max_bytes)
            return b"".join(chunks)


def _body_of(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    body: bytes = message.get("body", b"")
    return body


def _check(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise RequestTooLarge("the body has at least", size_bytes=size_bytes, limit_bytes=max_bytes)
