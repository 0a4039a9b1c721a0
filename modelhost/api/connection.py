"""One connection as such: whether it may stay, how long it may idle, what it is refused, what it has not yet taken.

What comes on it is protocol.py's. The server's own class, which this extends, has the socket's callbacks.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Any, ClassVar, Final

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelhost.api.answers import Answer
from modelhost.api.arrivals import Arrival
from modelhost.api.body import ByteHold
from modelhost.api.connections import MAX_LINGERING, Door
from modelhost.api.exchange import Exchange
from modelhost.api.heads import MAX_HEAD_BYTES, MAX_HEADERS, answer_head
from modelhost.api.shortcut import ShortCut
from modelhost.errors import Overloaded

#: How long a connection that was refused stays for its client to read why: closed at once it would be reset, and
#: the answer lost, where the client is still sending.
_LINGER_S: Final = 1.0


class Streaming:
    """Whether what a connection sends has no end of its own. Not the connection itself: scopes have it, and a
    connection has scopes, so that all of it would wait for a collection when the client has left."""

    __slots__ = ("_transport", "is_on")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.is_on = False

    def begin(self) -> Callable[[], None]:
        """Notes that from here on nobody waits for the client to take what is sent; returns what cuts it off."""
        self.is_on = True
        return self._transport.abort


class Connection(HttpToolsProtocol):
    """A connection without what comes on it. Event-loop thread."""

    cycle: Any  # uvicorn's own, or an exchange, which stands in for it
    door: ClassVar[Door]
    short_cut: ClassVar[ShortCut]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or answers 503 where there are too many."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = True, 0
        self._exchange: Exchange | None = None
        self._arrival: Arrival | None = None  # of the exchange, while its body is coming
        self._pieces: ByteHold | None = None  # for what is here of requests that are not all here, or have to wait
        self._running: Any = None  # the application's cycle that is being answered, or was the last
        self._refusal: bytes | None = None
        self._unsent: Answer | None = None
        self._send_check: asyncio.TimerHandle | None = None
        self._streaming = Streaming(transport)
        server = self.short_cut.inference.host.settings.server
        self._read_timeout_s = min(server.read_timeout, self.timeout_keep_alive)
        self._active_at = now = self.loop.time()
        self._idle_check = self.loop.call_later(self._read_timeout_s, self._check_idle)
        connections: set[Any] = self.connections
        if not self.door.has_room(connections, self, now):
            self._refuse(503, "overloaded", f"{self.door.limit} connections are open, which is the limit")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends every timer, and the claim of what was not sent."""
        self._idle_check.cancel()
        self.door.lingering.discard(self)
        self._keep(0)
        self._sent()
        super().connection_lost(exc)
        self.door.left()

    def resume_writing(self) -> None:
        """Goes on when the client has taken nearly all of what was sent."""
        super().resume_writing()
        self._sent()

    def _sent(self) -> None:
        """Ends the claim of an answer that has gone, or will never go."""
        answer, self._unsent = self._unsent, None
        if answer is not None and answer.hold is not None:
            answer.hold.end()
        if self._send_check is not None:
            self._send_check.cancel()
            self._send_check = None

    # --- time ----------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether an answer is due."""
        running = self._running
        return self._exchange is not None or bool(self.pipeline) or not (running is None or running.response_complete)

    @property
    def _is_queued(self) -> bool:
        """Whether the request that came last waits behind another, and the application has not begun on it."""
        return bool(self.pipeline) and self.pipeline[0][0] is self.cycle

    @property
    def is_sending(self) -> bool:
        """Whether the client has yet to take what was sent, all of which it is to have."""
        return not self._streaming.is_on and (self._unsent is not None or self.transport.get_write_buffer_size() > 0)

    def end_lingering(self) -> None:
        """Closes a connection that was refused and waits only for its client to see that."""
        if self in self.door.lingering:
            self.transport.abort()

    @property
    def _is_beginning(self) -> bool:
        """Whether a request is due: its head has begun, or it would be the first."""
        return self.cycle is None or (self._in_head and self._head_bytes > 0)

    def _check_idle(self) -> None:
        """Closes a connection on which nothing has come for a while. One timer, not one for each request."""
        patience_s, is_closing = float(self.timeout_keep_alive), self.transport.is_closing()
        idle_s = 0.0 if self.is_busy and not is_closing else self.loop.time() - self._active_at
        if is_closing:  # and the client has yet to take what was sent last
            patience_s = self.short_cut.inference.host.settings.server.request_timeout_s
            if idle_s >= patience_s:
                self.transport.abort()
                return
        else:
            if self._is_beginning:
                patience_s = self._read_timeout_s
            if idle_s >= patience_s:
                # A machine that stood still, or was busy, may have what came meanwhile in its buffers: it is read next.
                if not self.has_unread():
                    self.transport.close()
                idle_s = 0.0
        self._idle_check = self.loop.call_later(patience_s - idle_s, self._check_idle)

    def _expect_head(self) -> None:
        """Gives a head that has begun its time, all of it: that of an idle connection would be too long."""
        self._active_at = self.loop.time()
        self._idle_check.cancel()
        self._idle_check = self.loop.call_later(self._read_timeout_s, self._check_idle)

    def idle_s(self, now: float) -> float:
        """See Spareable."""
        if self._head_bytes or self._refusal is not None or self.is_busy or self.transport.is_closing():
            return 0.0
        return now - self._active_at

    def slow_s(self, now: float) -> float:
        """See Spareable."""
        if self._arrival is not None:
            return self._arrival.slow_s(now)
        is_slow = self._in_head and self._head_bytes and self._refusal is None and not self.is_busy
        return now - self._active_at if is_slow else 0.0

    def has_unread(self) -> bool:
        """See Spareable."""
        end = self.transport.get_extra_info("socket")
        if end is None or not hasattr(select, "poll"):
            return False
        poll = select.poll()
        poll.register(end.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def spare(self) -> None:
        """See Spareable. No longer counts from here on; without a word where nothing was asked, since clients take
        that for the answer to what they ask next."""
        text = f"{self.door.limit} connections are open, and others have work"
        if self._arrival is not None:
            self._arrival.body.refused(Overloaded("connections", waiting=0, limit=self.door.limit, text=text))
        elif self._head_bytes:
            self._refuse(503, "overloaded", text)
        else:
            self._refusal = b""
            self._linger()

    def _keep(self, size_bytes: int) -> None:
        """Claims what is here of requests that are not all here, or have to wait; refuses them where it is too much."""
        arrivals = self.short_cut.inference.arrivals
        if self._pieces is None:
            if not size_bytes:
                return
            self._pieces = arrivals.pieces.hold()
        if not arrivals.keep_bytes(self._pieces, size_bytes):
            self._refuse(503, "overloaded", str(arrivals.no_pieces()))

    # --- refusals ------------------------------------------------------------------------------------

    def _refuse_head(self) -> None:
        self._refuse(
            431,
            "request_too_large",
            f"request line and headers are over {MAX_HEAD_BYTES} bytes, or over {MAX_HEADERS} headers",
        )

    def _refuse(self, status: int, code: str, text: str) -> None:
        """Refuses all that comes on this connection from here on; answers that are due go before."""
        answer = Answer(status, orjson.dumps({"error": text, "code": code}))
        if status == 503:
            answer.extra = ((b"retry-after", b"1"),)
        head = answer_head(answer, self.server_state.default_headers, keep_alive=False)
        self._refusal = refusal = head + answer.body
        if not self._in_head:  # what is wrong is in the body of a request that was begun
            if self._is_queued:
                self.pipeline.popleft()
            elif self.cycle.response_complete or self.cycle.response_started:
                self.transport.close()  # one answer for each request
                return
            else:
                self.cycle.disconnected = True  # that was its answer: what the application still says goes nowhere
                self.cycle.message_event.set()
                self._end_refused(refusal)
                return
        if not self.is_busy:
            self._end_refused(refusal)

    def _end_refused(self, refusal: bytes) -> None:
        self._active_at = self.loop.time()
        self.transport.write(refusal)
        self._linger()

    def _linger(self) -> None:
        """Says that nothing more is sent, and closes when the client has seen that, or has had its time."""
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True  # nobody is there for what it answers
            running.message_event.set()
        lingering, transport = self.door.lingering, self.transport
        can_linger = len(lingering) < MAX_LINGERING and transport.can_write_eof() and not self.short_cut.is_closed
        if not can_linger or transport.is_closing():
            transport.close()
            return
        if self._refusal is None:
            self._refusal = b""
        lingering.add(self)
        transport.write_eof()
        self.flow.resume_reading()
        self._idle_check.cancel()
        self._idle_check = self.loop.call_later(_LINGER_S, transport.abort)
