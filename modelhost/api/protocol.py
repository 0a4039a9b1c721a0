"""HTTP on the socket: uvicorn's protocol, with bounded heads and connections, and a short cut for inference.

An inference request whose body comes with its length is collected in the parser's callbacks, answered when
they have returned, and never becomes an ASGI scope, a task and six messages: that is half of what it costs.
All else goes to the application by uvicorn's own code, and so does an inference request that is in any way
unusual. What that rests on of uvicorn, which takes a protocol class as a setting, are the public attributes of its
own one, and the callbacks of httptools' documented interface; tests/api/test_shortcut.py pins both.

An exchange takes the place of uvicorn's `cycle` while it lasts: so a request that is pipelined behind it
waits for it, and a shutdown lets it end.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, Final

import httptools

from modelhost.api.access import Guard
from modelhost.api.access_log import AccessLog
from modelhost.api.answers import Answer
from modelhost.api.arrivals import BEGINNING_BYTES, SMALL_BODY_BYTES, Arrival
from modelhost.api.connection import Connection
from modelhost.api.connections import Door
from modelhost.api.event_stream import BEGIN_STREAM
from modelhost.api.exchange import Exchange
from modelhost.api.heads import (
    AUTHORIZATION,
    CONTENT_LENGTH,
    HEADER_BYTES,
    KNOWN,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    TWICE,
    UNUSUAL,
    Asked,
    KnownHeads,
    Target,
    answer_head,
    head_bytes,
    head_of,
    target_of,
    without_upgrade,
)
from modelhost.api.infer import PLAIN_HEAD
from modelhost.api.receiver import BodyReceiver
from modelhost.api.shortcut import ShortCut
from modelhost.api.traces import trace_of
from modelhost.errors import DeadlineExceeded, ModelHostError, Overloaded
from modelhost.pool import Timing
from modelhost.units import format_bytes

#: Head and body up to this are sent as one piece of memory.
_JOINED_BYTES: Final = 64 << 10

#: Request targets whose model is remembered, a look-up instead of a parse for each request, and the longest.
_TARGETS_KEPT: Final = 1024
_TARGET_BYTES: Final = 512

#: Requests that may be queued behind one that is in progress before nothing more is read, and what one of them holds
#: beside its body.
_QUEUED_REQUESTS: Final = 16
_QUEUED_BYTES: Final = 4 << 10

#: On top of what is known of a head that begins behind another request in one segment: nobody knows where.
_UNKNOWN_BYTES: Final = 1 << 40


class HttpProtocol(Connection):
    """What comes on one connection. Event-loop thread."""

    guard: ClassVar[Guard | None] = None
    request_log: ClassVar[AccessLog | None] = None
    _targets: ClassVar[dict[bytes, Target | None]] = {}
    _known_heads: ClassVar[KnownHeads] = KnownHeads()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection."""
        self._is_head_long = False
        self._known: dict[bytes, bytes] = {}
        self._asked: Asked | None = None
        self._due = False
        self._rests = False  # not read, as the body that comes is slow
        self.headers = []  # bytes may come that begin no head
        self._receive_check: asyncio.TimerHandle | None = None
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what the client has left, and every timer."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._end_receiving(exchange)
            exchange.leave()
        if isinstance(self.cycle, Exchange) or self._is_queued:
            self.cycle = None  # nor will one that is queued run, which lets go of the connection when it has
        running = self._running
        if running is not None and not running.response_complete:
            running.disconnected = True  # uvicorn tells the last one that came
            running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; a head that grows over the limit ends the connection."""
        if self._refusal is not None or self.transport.is_closing():
            return  # refused: what still comes in is not looked at
        is_first = False  # whether a request begins with it, and nothing is in progress
        if self._in_head:
            is_first = not self._head_bytes and self._exchange is None
            if is_first and self._begin_alike(data):
                return
            data = without_upgrade(data)
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse_parsed()
        else:
            if self._in_head and self._head_bytes:
                self._check_unfinished(len(data))
        exchange = self._exchange
        if exchange is not None:
            if self._due:
                # Not in the parser's callback: what is pipelined behind it has been parsed, and queued.
                self._due = False
                if is_first and self._asked is not None and not self.pipeline:
                    self._known_heads.remember(data, self._asked)
                self.short_cut.begin(exchange)
                if self.pipeline:
                    self._listen()
            elif self.pipeline:
                self._listen()
            elif not exchange.is_received:
                self._go_on_receiving(exchange, len(data))
        elif not self._in_head:
            self._hold_back()

    # --- the parser's callbacks ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begins a request; the scope is made when it is known to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._known = {}
        if not self._head_bytes:
            self._head_bytes = _UNKNOWN_BYTES

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        name = name.lower()
        if name in KNOWN:
            self._known[name if name not in self._known else TWICE] = value
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Ends the head. An upgrade that could not be taken out is refused: the parser would take the
        body for a request of its own."""
        if len(self.headers) > MAX_HEADERS or (
            self._head_bytes > MAX_HEAD_BYTES and head_bytes(self.url, self.headers) > MAX_HEAD_BYTES
        ):
            self._is_head_long = True
            raise ValueError("the head is too long")
        if self.parser.should_upgrade():
            raise ValueError("upgrades are not supported")
        exchange = self._exchange_for_head()
        if exchange is None:
            self._hand_over()
        else:
            self._exchange = self.cycle = exchange
        self._in_head, self._head_bytes = False, 0
        if self._pieces is not None:
            self._keep(0)

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""
        exchange = self._exchange
        if exchange is None or self.cycle is not exchange:
            super().on_body(body)
        elif exchange.length <= SMALL_BODY_BYTES:
            exchange.receive_small(body)
        else:
            exchange.receive(body, self.short_cut.inference.arrivals)

    def on_message_complete(self) -> None:
        """Ends the request; a head comes next."""
        exchange = self._exchange
        if exchange is None or self.cycle is not exchange:
            super().on_message_complete()
            self._keep(0)
        else:
            self._due = True
            if self._receive_check is not None:
                self._end_receiving(exchange)
        self._in_head = True

    # --- what becomes of a request -------------------------------------------------------------------

    def _begin_alike(self, data: bytes) -> bool:
        """Begins a request that is all of `data`, and whose head is, byte for byte, one that the parser has taken.

        The parser, which is between two requests, sees nothing of it. Returns False where it has to: then nothing has
        changed.
        """
        if (asked := self._known_heads.find(data)) is None or (exchange := self._exchange_of(asked)) is None:
            return False
        self._exchange = self.cycle = exchange
        exchange.receive_small(data[-asked.size_bytes :])
        self.short_cut.begin(exchange)
        return True

    def _exchange_for_head(self) -> Exchange | None:
        """Returns the exchange of an inference request that the short cut is for, else None."""
        self._asked = None
        url, known = self.url, self._known
        target = self._targets[url] if url in self._targets else self._target()
        if target is None or self.parser.get_method() != b"POST":
            return None
        length = known.get(CONTENT_LENGTH, b"")
        if not length.isdigit() or len(length) > 18 or (len(known) > 1 and not UNUSUAL.isdisjoint(known)):
            return None
        authorization = known.pop(AUTHORIZATION, None) if len(known) > 1 else None
        key = None if self.guard is None else self.guard.key_to_infer(authorization)
        if key is None and self.guard is not None:
            return None  # which the application refuses, as all else of this kind
        if self.parser.get_http_version() != "1.1":
            return None
        head = PLAIN_HEAD if len(known) == 1 else head_of(known)
        asked = Asked(target, head, int(length), self.parser.should_keep_alive())
        exchange = self._exchange_of(asked)
        if exchange is None:
            return None
        if key is not None:
            exchange.key_name = key.name
        elif authorization is None and asked.may_come_again:  # no secrets are remembered
            self._asked = asked
        return exchange

    def _exchange_of(self, asked: Asked) -> Exchange | None:
        """Returns the exchange of a request, or None where it is not to be had now."""
        target, head, size_bytes, keeps_alive = asked
        cycle, short_cut = self.cycle, self.short_cut
        if (
            size_bytes > short_cut.max_request_bytes
            or not short_cut.host.is_accepting
            or not (cycle is None or cycle.response_complete)
            or self.flow.write_paused
        ):
            return None
        exchange = Exchange(self, target, head, size_bytes, Timing(time.perf_counter_ns()), short_cut.inference)
        exchange.keep_alive = keeps_alive
        return exchange

    def _target(self) -> Target | None:
        """Looks at the path of a request; remembers what it means."""
        target = target_of(self.url)
        if len(self.url) <= _TARGET_BYTES:
            if len(self._targets) >= _TARGETS_KEPT:
                self._targets.clear()
            self._targets[self.url] = target
        return target

    def _hand_over(self) -> None:
        """Makes of the head what uvicorn makes of it: a scope, and a task in which the application runs."""
        url, headers, expects, waiting = self.url, self.headers, self.expect_100_continue, len(self.pipeline)
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        self.scope[BEGIN_STREAM] = self._streaming.begin  # type: ignore[typeddict-unknown-key]
        if len(self.pipeline) == waiting:
            self._running = self.cycle
        if self.short_cut.host.is_draining and self.scope["method"] == "POST":
            (self.pipeline[-1][0] if len(self.pipeline) > waiting else self.cycle).keep_alive = False

    # --- bodies that do not come at once -------------------------------------------------------------

    def _go_on_receiving(self, exchange: Exchange, piece_bytes: int) -> None:
        """Claims what is there of a body. One that is large is read on when all of it is claimed."""
        self._active_at = self.loop.time()
        arrivals, arrival = self.short_cut.inference.arrivals, self._arrival
        if arrival is None:
            self._arrival = arrival = arrivals.begin(exchange)
            self._watch_receiving(exchange)
        if exchange.has_room:
            arrival.pieces.end()
            self._read_with(BodyReceiver(self, exchange))
        elif not arrivals.keep(arrival) or arrival.is_waiting:
            return  # refused, or in line
        elif exchange.length > SMALL_BODY_BYTES and exchange.received_bytes >= BEGINNING_BYTES:
            self.flow.pause_reading()
            arrivals.claim(arrival)
        else:
            self._rest(arrival, piece_bytes)

    def granted(self, exchange: Exchange) -> None:
        """Has the rest of a body written where it is wanted, without the parser, which would copy it twice."""
        if exchange.make_room():
            self._active_at = self.loop.time()
            self._read_with(BodyReceiver(self, exchange))
        else:
            text = f"there is no room in one piece for a body of {format_bytes(exchange.length)}"
            self.refused(exchange, Overloaded("bodies", waiting=0, limit=0, text=text))

    def refused(self, exchange: Exchange, error: ModelHostError) -> None:
        """Answers a request with an error in place of its body, and ends the connection."""
        self._end_receiving(exchange)
        self.short_cut.refuse(exchange, error)

    def _hold_back(self) -> None:
        """Reads no more of a body for the application until that has taken what is here, and claims this."""
        cycle = self.cycle
        if cycle is not None and cycle.body and not cycle.response_complete:
            self.flow.pause_reading()
            self._keep(len(cycle.body))

    def note_piece(self, size_bytes: int) -> None:
        """Notes that the client is sending, and that there is more to come."""
        self._active_at = self.loop.time()
        if self._arrival is not None:
            self._rest(self._arrival, size_bytes)

    def _rest(self, arrival: Arrival, piece_bytes: int) -> None:
        """Reads no more for a while of a body that is slow."""
        if not self._rests and self.short_cut.inference.arrivals.rest(arrival, piece_bytes, self._end_rest):
            self._rests = True
            self.flow.pause_reading()

    def _end_rest(self) -> None:
        if self._rests:  # else the request is over
            self._rests, self._active_at = False, self.loop.time()
            self.flow.resume_reading()

    def _read_with(self, protocol: asyncio.BaseProtocol) -> None:
        # Paused meanwhile: a transport asks for the kind of protocol when it begins to read.
        self.flow.pause_reading()
        self.transport.set_protocol(protocol)
        self.flow.resume_reading()

    def received(self, exchange: Exchange) -> None:
        """Goes on with a request whose body has come past the parser, which begins anew."""
        self._read_with(self)
        self._end_receiving(exchange)
        self.parser = _parser(self)
        self._in_head = True
        self.short_cut.begin(exchange)

    def _listen(self) -> None:
        """Goes on reading while an exchange is in progress, though others are queued behind it, as long as
        those are few: else nobody would notice that the client leaves."""
        if self._exchange is None or len(self.pipeline) > _QUEUED_REQUESTS:
            return
        queued_bytes = sum([len(cycle.body) + _QUEUED_BYTES for cycle, _ in self.pipeline])
        self._keep(queued_bytes)
        if queued_bytes <= _QUEUED_REQUESTS * _QUEUED_BYTES + SMALL_BODY_BYTES:
            self.flow.resume_reading()

    # --- answers -------------------------------------------------------------------------------------

    def send(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the answer of an exchange, and goes on with what was queued behind it."""
        self._exchange, self._due = None, False
        transport = self.transport
        if exchange.is_gone or transport.is_closing():
            if answer.hold is not None:
                answer.hold.end()
            return
        self._active_at = self.loop.time()
        head = answer_head(answer, self.server_state.default_headers, keep_alive=exchange.keep_alive)
        if len(answer.body) <= _JOINED_BYTES:
            transport.write(head + answer.body)
        else:
            transport.write(head)
            transport.write(answer.body)
        if self.request_log is not None:
            self.request_log.note(exchange, answer)
        if answer.hold is not None:
            self._unsent = answer
            if self.flow.write_paused:
                timeout_s = self.short_cut.inference.host.settings.server.request_timeout_s
                self._send_check = self.loop.call_later(timeout_s, transport.abort)
            else:
                self._sent()
        if not exchange.keep_alive:
            if exchange.is_received:
                transport.close()
            else:
                self._linger()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            if self._refusal is not None:
                self._end_refused(self._refusal)

    def on_response_complete(self) -> None:
        """Goes on behind an answer: with the request that waits, the refusal that does, or the client."""
        self._active_at = self.loop.time()
        if self.pipeline and not self.transport.is_closing():
            self._running = self.pipeline[-1][0]
        super().on_response_complete()
        if not self.pipeline:
            self._keep(0)
        if self.timeout_keep_alive_task is not None:
            # Not uvicorn's timer, one for each answer, which nobody would cancel for the short cut.
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
            if self._refusal is not None:
                self._end_refused(self._refusal)

    # --- time ----------------------------------------------------------------------------------------

    def _watch_receiving(self, exchange: Exchange) -> None:
        self.short_cut.receiving.add(exchange)
        server = self.short_cut.inference.host.settings.server
        patience_s = min(server.read_timeout, server.request_timeout_s)
        self._receive_check = self.loop.call_later(patience_s, self._check_receiving)

    def _end_receiving(self, exchange: Exchange) -> None:
        self.short_cut.receiving.discard(exchange)
        self._rests = False
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            self.short_cut.inference.arrivals.end(arrival)
        if self._receive_check is not None:
            self._receive_check.cancel()
            self._receive_check = None

    def _check_receiving(self) -> None:
        """Answers 503 where a body has paused, or has taken all the time there is."""
        exchange, arrival = self._exchange, self._arrival
        if exchange is None or exchange.is_received or arrival is None:
            self._receive_check = None
            return
        server = self.short_cut.inference.host.settings.server
        paused_s = 0.0 if arrival.is_waiting or self._rests else self.loop.time() - self._active_at
        taken_s = (time.perf_counter_ns() - exchange.timing.arrived_ns) * 1e-9
        remaining_s = min(server.read_timeout - paused_s, server.request_timeout_s - taken_s)
        if remaining_s <= 0:
            self.refused(exchange, DeadlineExceeded("receiving the body", waited_s=taken_s))
        else:
            self._receive_check = self.loop.call_later(remaining_s, self._check_receiving)

    # --- refusals ------------------------------------------------------------------------------------

    def _check_unfinished(self, segment_bytes: int) -> None:
        """Refuses a head that is over the limit before it has ended; `segment_bytes` have just come."""
        if self._head_bytes in (segment_bytes, _UNKNOWN_BYTES):
            self._expect_head()
        if self._head_bytes == _UNKNOWN_BYTES:
            self._head_bytes += head_bytes(self.url, self.headers)
        if self._head_bytes % _UNKNOWN_BYTES > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
        else:
            self._keep(2 * (self._head_bytes % _UNKNOWN_BYTES) + HEADER_BYTES * len(self.headers))

    def _refuse_parsed(self) -> None:
        """Refuses what the parser has, or we have within it."""
        if self._is_head_long:
            self._refuse_head()
        else:
            self._refuse(400, "invalid_request", "Invalid HTTP request received.")


class TracedProtocol(HttpProtocol):
    """The same, where requests become spans: of all their headers it takes those of a trace, too."""

    def _exchange_for_head(self) -> Exchange | None:
        exchange = super()._exchange_for_head()
        self._asked = None  # heads have more than is remembered of them
        if exchange is not None:
            exchange.timing.trace = trace_of(self.headers)
        return exchange


def _parser(protocol: HttpProtocol) -> httptools.HttpRequestParser:
    """Returns a parser as uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def protocol_class(
    max_connections: int, short_cut: ShortCut, guard: Guard | None = None, request_log: AccessLog | None = None
) -> Any:
    """Returns the protocol with this bound, this short cut, this guard and this log, for uvicorn's `http` setting."""
    return type(
        "HttpProtocol",
        (TracedProtocol if short_cut.inference.is_traced else HttpProtocol,),
        {
            "door": Door(max_connections),
            "short_cut": short_cut,
            "guard": guard,
            "request_log": request_log,
            "_targets": {},
            "_known_heads": KnownHeads(),
        },
    )
