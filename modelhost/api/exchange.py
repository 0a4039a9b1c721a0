"""One inference request on a connection, and its answer: what the server's protocol and the short cut share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from modelhost.api.answers import Answer
from modelhost.api.arrivals import BEGINNING_BYTES, Arrivals
from modelhost.api.body import ByteHold
from modelhost.api.buffers import Buffer
from modelhost.api.codec import Body
from modelhost.api.infer import Head
from modelhost.api.inference import Inference
from modelhost.api.request_ids import sane_or_new
from modelhost.errors import ModelHostError
from modelhost.pool import Timing

#: Where raw tensors begin, so that they need no copy: what any instruction wants.
_ALIGNMENT: Final = 64


#: No body is longer than this says; int() refuses thousands of digits.
_LENGTH_DIGITS: Final = 18


class Sender(Protocol):
    """What takes an answer: the connection."""

    tasks: set[asyncio.Task[Any]]
    """What the server waits for at its shutdown."""

    def send(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the answer, and ends the claim for its body when it has gone."""

    def granted(self, exchange: Exchange) -> None:
        """Goes on reading a body whose memory is claimed."""

    def refused(self, exchange: Exchange, error: ModelHostError) -> None:
        """Answers with an error, in place of going on to read the body."""


class Exchange:
    """One request from its head to its answer. Event-loop thread.

    `on_gone` is called once where the client leaves before its answer.
    """

    __slots__ = (
        "_buffer",
        "_buffers",
        "_sender",
        "_small",
        "head",
        "hold",
        "is_gone",
        "keep_alive",
        "key_name",
        "length",
        "on_gone",
        "received_bytes",
        "response_complete",
        "target",
        "timing",
    )

    def __init__(
        self,
        sender: Sender,
        target: tuple[str, str | None],
        head: Head,
        length: int,
        timing: Timing,
        inference: Inference,
    ) -> None:
        self.target, self.head, self.length, self.timing = target, head, length, timing
        self.keep_alive = True
        self.response_complete = False
        """Whether it was answered. The server asks for this name, and for `keep_alive`."""
        self.is_gone = False
        self.key_name: str | None = None
        self.on_gone: Callable[[], None] | None = None
        self.hold: ByteHold = inference.budget.hold()
        self.hold.model = target[0]
        self.received_bytes = 0
        self._sender, self._buffers = sender, inference.buffers
        self._small: bytes | bytearray = b""
        self._buffer: memoryview | None = None

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """Where a task is put that works on it: the server waits for those at its shutdown."""
        return self._sender.tasks

    @property
    def request_id(self) -> str:
        """The client's id of the request, or a new one at each look."""
        return sane_or_new(self.head.request_id)

    # --- the body ------------------------------------------------------------------------------------

    @property
    def is_received(self) -> bool:
        """Whether all of the body is there."""
        return self.received_bytes == self.length

    def receive_small(self, piece: bytes) -> None:
        """Takes a piece of a body that is small enough to be held unclaimed until it is whole."""
        if not self.received_bytes:
            self._small = piece
        else:  # in one piece: a client that sends single bytes holds no more than they are
            if isinstance(self._small, bytes):
                self._small = bytearray(self._small)
            self._small += piece
        self.received_bytes += len(piece)

    def receive(self, piece: bytes, arrivals: Arrivals) -> None:
        """Takes a piece of a large body: where it is wanted, if all of it can be claimed at once and this is enough to
        begin with, else as one of a small body."""
        end = self.received_bytes + len(piece)
        if self._buffer is None and end >= BEGINNING_BYTES and arrivals.try_claim(self) and not self.make_room():
            self.hold.end()
        if self._buffer is None:
            self.receive_small(piece)
        else:
            self._buffer[self.received_bytes : end] = piece
            self.received_bytes = end

    @property
    def has_room(self) -> bool:
        """Whether there is room for all of the body in one piece."""
        return self._buffer is not None

    def make_room(self) -> bool:
        """Makes room for all of the body, which is claimed; returns False where there is none in one piece."""
        try:
            room = self._buffers.take(self.length + _ALIGNMENT)
        except MemoryError:
            return False
        self._buffer = whole = _aligned(room, self.length, self.head.header_length)
        whole[: self.received_bytes] = self._small
        self._small = b""
        return True

    def room(self) -> memoryview:
        """Returns where the next bytes of a body go for which there is room."""
        assert self._buffer is not None
        return self._buffer[self.received_bytes :]

    def granted(self) -> None:
        """See Coming."""
        self._sender.granted(self)

    def refused(self, error: ModelHostError) -> None:
        """See Coming."""
        self._sender.refused(self, error)

    def body(self) -> Body:
        """Returns what was received: bytes, or a view on a buffer in which raw tensors are aligned."""
        if self._buffer is not None:
            return self._buffer if self.is_received else self._buffer[: self.received_bytes]
        small = self._small
        if isinstance(small, bytearray):
            self._small = small = bytes(small)
        return small

    def take_body(self) -> Body:
        """Returns the body, for the last time: who asked for it decides how long it is held."""
        body = self.body()
        self._small, self._buffer = b"", None
        return body

    # --- the end -------------------------------------------------------------------------------------

    def send(self, answer: Answer) -> None:
        """Sends the answer; harmless where it was answered already, or nobody is there any more."""
        if self.response_complete:
            if answer.hold is not None:
                answer.hold.end()
            return
        self.response_complete = True
        self.on_gone = None
        self._small, self._buffer = b"", None
        self._sender.send(self, answer)

    def leave(self) -> None:
        """Notes that the client has gone."""
        self.is_gone = True
        if not self.is_received:
            self.hold.end()
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()


def _aligned(room: Buffer, length: int, header_length: str | None) -> memoryview:
    """Returns the part of `room` that a body has, whose raw part lies as tensors have to."""
    is_length = header_length is not None and header_length.isdecimal() and len(header_length) <= _LENGTH_DIGITS
    header = int(header_length) if header_length is not None and is_length else 0
    start = -(room.__array_interface__["data"][0] + min(header, length)) % _ALIGNMENT
    return room.data[start : start + length]
