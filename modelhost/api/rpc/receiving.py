"""Messages on their way in: bounded in number before they come, since their size shows only afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn, Protocol

import grpc

from modelhost.api.body import ByteHold
from modelhost.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestTooLarge
from modelhost.units import format_bytes

#: What turning one received message into bytes takes beside it, in its size; one is at a time.
_COPIES: Final = 2


class Call(Protocol):
    """What handlers need of the library's context of a call; messages are bytes."""

    async def read(self) -> Any:
        """Returns the next message, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Sends a message; returns when it is on its way."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: tuple[tuple[str, str], ...] = ()
    ) -> NoReturn:
        """Ends the call with a status, by raising."""

    def invocation_metadata(self) -> Sequence[tuple[str, Any]] | None:
        """Returns what the client has sent beside the messages."""

    def code(self) -> Any:
        """Returns the status that the call was aborted with, as a number or a member of StatusCode."""

    def time_remaining(self) -> float | None:
        """Returns the seconds to the client's deadline, None where it has none."""


class Receiving:
    """So many messages of the largest size as there is room for. Event-loop thread.

    gRPC hands out whole messages. Until one is asked for, HTTP/2's flow control keeps its bytes with the
    client, but for the first 64 KB; from then on it may take up to `max_bytes`, which nothing accounts for
    until it is there. So only that many are asked for at once. A small message is there already, and has its
    turn for a moment only.
    """

    def __init__(self, *, room_bytes: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.limit = max(1, room_bytes // max_bytes - _COPIES)
        self._turns = asyncio.Semaphore(self.limit)
        self._streams = 0

    async def receive(
        self,
        call: Call,
        hold: ByteHold,
        *,
        deadline: float,
        max_bytes: int | None = None,
    ) -> bytes:
        """Returns the call's only message, its bytes claimed from `hold`.

        `deadline` is on the event loop's clock. Raises DeadlineExceeded, RequestTooLarge, InvalidRequest
        where there is no message, and what the claim raises.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(deadline), self._turns:
                message: bytes = await call.read()
                if message is grpc.aio.EOF:
                    raise InvalidRequest("the call has no message")
                _check(len(message), max_bytes or self.max_bytes)
                await hold.grow(len(message))
        except TimeoutError:
            raise DeadlineExceeded("receiving the request", waited_s=loop.time() - began) from None
        return message

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A stream has one message on its way at any time: as many may be open. Raises Overloaded."""
        if self._streams >= self.limit:
            text = (
                f"{self._streams} streams are open, and there is room for {self.limit} messages of "
                f"{format_bytes(self.max_bytes)} (server.max_request_bytes) at once; a smaller size lets more in"
            )
            raise Overloaded("streams", waiting=self._streams, limit=self.limit, text=text)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _check(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise RequestTooLarge("the message has", size_bytes=size_bytes, limit_bytes=max_bytes)
