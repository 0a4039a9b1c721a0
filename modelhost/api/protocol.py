"""HTTP on the socket: uvicorn's protocol, with bounded heads and connections, and a short cut for inference.

An inference request whose body comes with its length is collected and answered here, inside the parser's
callbacks, and never becomes an ASGI scope, a task and six messages: that is half of what it costs. All else
goes to the application by uvicorn's own code, and so does an inference request that is in any way unusual.
What that rests on of uvicorn, which takes a protocol class as a setting, are the public attributes of its
own one, and the callbacks of httptools' documented interface; tests/api/test_shortcut.py pins both.

An exchange takes the place of uvicorn's `cycle` while it lasts: so a request that is pipelined behind it
waits for it, and a shutdown lets it end.
"""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus
from typing import Any, ClassVar, Final
from urllib.parse import unquote

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modelhost.api.answers import Answer
from modelhost.api.exchange import Exchange
from modelhost.api.infer import PLAIN_HEAD, Head, infer_path
from modelhost.api.shortcut import ShortCut
from modelhost.errors import DeadlineExceeded
from modelhost.pool import Timing

#: Request line and headers together. Every connection may hold as much at any time.
MAX_HEAD_BYTES: Final = 32 << 10

#: A body up to this is collected without a claim, as uvicorn does before it stops reading.
_SMALL_BODY_BYTES: Final = 64 << 10

#: Head and body up to this are sent as one piece of memory.
_JOINED_BYTES: Final = 64 << 10

_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE_LINE: Final = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)

#: Request targets whose model is remembered: a look-up instead of a parse for each request.
_TARGETS_KEPT: Final = 1024

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}

_CONTENT_LENGTH: Final = b"content-length"
_HEADER_LENGTH: Final = b"inference-header-content-length"
_CONTENT_ENCODING: Final = b"content-encoding"
_ACCEPT_ENCODING: Final = b"accept-encoding"
#: With one of these a request is not for the short cut.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", _CONTENT_ENCODING})
_KNOWN: Final = frozenset({_CONTENT_LENGTH, _HEADER_LENGTH, _ACCEPT_ENCODING}) | _UNUSUAL

Target = tuple[str, "str | None"]


class HttpProtocol(HttpToolsProtocol):
    """One connection. Event-loop thread."""

    cycle: Any  # uvicorn's own, or an exchange, which stands in for it
    max_connections: ClassVar[int] = 512
    short_cut: ClassVar[ShortCut]
    _targets: ClassVar[dict[bytes, Target | None]] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or answers 503 where there are too many."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = True, 0
        self._known: dict[bytes, bytes] = {}
        self._exchange: Exchange | None = None
        self._due = False
        self._active_at = self.loop.time()
        self._idle_check: asyncio.TimerHandle | None = None
        self._receive_check: asyncio.TimerHandle | None = None
        self._unsent: Answer | None = None
        self._send_check: asyncio.TimerHandle | None = None
        if len(self.connections) > self.max_connections:
            self._refuse(503, "overloaded", f"{self.max_connections} connections are open, which is the limit")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends what the client has left, and every timer."""
        for timer in (self._idle_check, self._receive_check, self._send_check):
            if timer is not None:
                timer.cancel()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if self.cycle is exchange:
                self.cycle = None
            exchange.leave()
        self._sent()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; a head that grows over the limit ends the connection."""
        if self.transport.is_closing():
            return  # refused: what still comes in is not looked at
        if self.timeout_keep_alive_task is not None:  # of an answer by the application
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        if self._in_head:
            data = without_upgrade(data)
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()
        exchange = self._exchange
        if exchange is not None:
            if self._due:
                # Not in the parser's callback: what is pipelined behind it has been parsed, and queued.
                self._due = False
                self.short_cut.begin(exchange)
            elif not exchange.is_received:
                self._active_at = self.loop.time()
                if self._receive_check is None:
                    self._watch_receiving()

    # --- the parser's callbacks ----------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begins a request; the scope is made when it is known to be needed."""
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._known = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        name = name.lower()
        if name in _KNOWN:
            # Twice is left to the application, whose server refuses some of that.
            self._known[name] = value if name not in self._known else b","
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Ends the head. An upgrade that could not be taken out is refused: the parser would take the
        body for a request of its own."""
        self._in_head, self._head_bytes = False, 0
        if self.parser.should_upgrade():
            raise ValueError("upgrades are not supported")
        exchange = self._exchange_for_head()
        if exchange is None:
            self._hand_over()
            return
        self._exchange = exchange
        self.cycle = exchange

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""
        exchange = self._exchange
        if exchange is None or self.cycle is not exchange:
            super().on_body(body)
        elif exchange.response_complete:
            return  # answered before its end
        elif exchange.length <= _SMALL_BODY_BYTES:
            exchange.receive_small(body)
        elif not exchange.try_receive(body):
            self._hand_over_exchange(exchange)
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the request; a head comes next."""
        exchange = self._exchange
        if exchange is None or self.cycle is not exchange:
            super().on_message_complete()
        elif not exchange.response_complete:
            self._due = True
            if self._receive_check is not None:
                self._receive_check.cancel()
                self._receive_check = None
        self._in_head = True

    # --- what becomes of a request -------------------------------------------------------------------

    def _exchange_for_head(self) -> Exchange | None:
        """Returns the exchange of an inference request that the short cut is for, else None."""
        url, known = self.url, self._known
        target = self._targets[url] if url in self._targets else self._target()
        if target is None or self.parser.get_method() != b"POST":
            return None
        length = known.get(_CONTENT_LENGTH, b"")
        if not length.isdigit() or len(length) > 18 or (len(known) > 1 and not _UNUSUAL.isdisjoint(known)):
            return None
        size_bytes, cycle, short_cut = int(length), self.cycle, self.short_cut
        if (
            size_bytes > short_cut.max_request_bytes
            or not (cycle is None or cycle.response_complete)
            or self.flow.write_paused
            or self.parser.get_http_version() != "1.1"
        ):
            return None
        head = PLAIN_HEAD if len(known) == 1 else _head_of(known)
        timing = Timing(time.perf_counter_ns())
        exchange = Exchange(self, target, head, size_bytes, timing, short_cut.inference.budget)
        exchange.keep_alive = self.parser.should_keep_alive()
        return exchange

    def _target(self) -> Target | None:
        """Looks at the path of a request; remembers what it means."""
        path = self.url.partition(b"?")[0]
        target: Target | None = None
        # An encoded slash would be one between segments once it is decoded: the application refuses it.
        if path.startswith(b"/v2/models/") and b"%2f" not in path.lower():
            text = path.decode("latin-1")
            target = infer_path(unquote(text) if "%" in text else text)
        if len(self._targets) >= _TARGETS_KEPT:
            self._targets.clear()
        self._targets[self.url] = target
        return target

    def _hand_over(self) -> None:
        """Makes of the head what uvicorn makes of it: a scope, and a task in which the application runs."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()

    def _hand_over_exchange(self, exchange: Exchange) -> None:
        """Leaves a request to the application after all, with what has come of its body."""
        body = bytes(exchange.body())
        exchange.hold.end()
        self._exchange = None
        self.cycle = None
        if self._receive_check is not None:
            self._receive_check.cancel()
            self._receive_check = None
        self._hand_over()
        super().on_body(body)

    # --- answers -------------------------------------------------------------------------------------

    def send(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the answer of an exchange, and goes on with what was queued behind it."""
        self._exchange, self._due = None, False
        transport = self.transport
        if exchange.is_gone or transport.is_closing():
            if answer.hold is not None:
                answer.hold.end()
            return
        headers = self.server_state.default_headers
        if headers is not _Defaults.headers:
            _Defaults.keep(headers)
        head = _head(answer, _Defaults.text, keep_alive=exchange.keep_alive)
        if len(answer.body) <= _JOINED_BYTES:
            transport.write(head + answer.body)
        else:
            transport.write(head)
            transport.write(answer.body)
        if answer.hold is not None:
            self._unsent = answer
            if self.flow.write_paused:
                timeout_s = self.short_cut.inference.host.settings.server.request_timeout_s
                self._send_check = self.loop.call_later(timeout_s, transport.abort)
            else:
                self._sent()
        if not exchange.keep_alive:
            transport.close()
        elif self.pipeline:
            self.on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._active_at = self.loop.time()
            if self._idle_check is None:
                self._idle_check = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

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

    def _check_idle(self) -> None:
        """Closes a connection on which nothing has come for a while. One timer, not one for each request."""
        self._idle_check = None
        if self.transport.is_closing():
            return
        is_busy = self._exchange is not None or not (self.cycle is None or self.cycle.response_complete)
        idle_s = 0.0 if is_busy else self.loop.time() - self._active_at
        if idle_s >= self.timeout_keep_alive:
            self.transport.close()
        else:
            self._idle_check = self.loop.call_later(self.timeout_keep_alive - idle_s, self._check_idle)

    def _watch_receiving(self) -> None:
        server = self.short_cut.inference.host.settings.server
        self._receive_check = self.loop.call_later(server.receive_timeout_s, self._check_receiving)

    def _check_receiving(self) -> None:
        """Answers 503 where a body has paused, or has taken all the time there is."""
        self._receive_check = None
        exchange = self._exchange
        if exchange is None or exchange.is_received or exchange.response_complete:
            return
        server = self.short_cut.inference.host.settings.server
        paused_s = self.loop.time() - self._active_at
        taken_s = (time.perf_counter_ns() - exchange.timing.arrived_ns) * 1e-9
        if paused_s >= server.receive_timeout_s or taken_s >= server.request_timeout_s:
            exchange.keep_alive = False  # the rest of the body may still come
            error = DeadlineExceeded("receiving the body", waited_s=taken_s)
            self.short_cut.refuse(exchange, error)
        else:
            remaining_s = min(server.receive_timeout_s - paused_s, server.request_timeout_s - taken_s)
            self._receive_check = self.loop.call_later(remaining_s, self._check_receiving)

    # --- refusals ------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser refused, in the shape of all our errors."""
        if not self.transport.is_closing():
            self._refuse(400, "invalid_request", msg)

    def _refuse_head(self) -> None:
        self._refuse(431, "request_too_large", f"request line and headers are over {MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: int, code: str, text: str) -> None:
        answer = Answer(status, orjson.dumps({"error": text, "code": code}))
        if status == 503:
            answer.extra = ((b"retry-after", b"1"),)
        self.transport.write(_head(answer, b"", keep_alive=False) + answer.body)
        self.transport.close()


def _head_of(known: dict[bytes, bytes]) -> Head:
    header_length, accept_encoding = known.get(_HEADER_LENGTH), known.get(_ACCEPT_ENCODING)
    return Head(
        None if header_length is None else header_length.decode("latin-1"),
        None,
        None if accept_encoding is None else accept_encoding.decode("latin-1"),
    )


class _Defaults:
    """The server's own headers (the date), as they are sent; it makes new ones each second."""

    headers: ClassVar[list[tuple[bytes, bytes]]] = []
    text: ClassVar[bytes] = b""

    @classmethod
    def keep(cls, headers: list[tuple[bytes, bytes]]) -> None:
        """Takes the server's headers."""
        cls.headers = headers
        cls.text = b"".join(b"%b: %b\r\n" % header for header in headers)


def _head(answer: Answer, defaults: bytes, *, keep_alive: bool) -> bytes:
    """Returns status line and headers."""
    extra = b"".join([b"%b: %b\r\n" % header for header in answer.extra]) if answer.extra else b""
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n" % (
        _STATUS_LINES[answer.status],
        defaults,
        answer.content_type,
        len(answer.body),
        extra,
        b"" if keep_alive else b"connection: close\r\n",
    )


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


def protocol_class(max_connections: int, short_cut: ShortCut) -> Any:
    """Returns the protocol with this bound and this short cut, for uvicorn's `http` setting."""
    return type(
        "HttpProtocol",
        (HttpProtocol,),
        {"max_connections": max_connections, "short_cut": short_cut, "_targets": {}},
    )
