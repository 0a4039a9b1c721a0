"""Requests whose bytes are damaged, on a real socket: the short cut answers as the application does, and nothing hangs.

Long with MODELHOST_TEST_FULL=1.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from damage import damaged
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from served import Served, head
from sizes import FULL
from wire import Reply, Wire, counting

from benchmarks.fuzz import corpus
from benchmarks.fuzz.check import complaint
from benchmarks.fuzz.corpus import Message
from modelhost.api.protocol import HttpProtocol

EXAMPLES = settings(
    max_examples=10_000 if FULL else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

pytestmark = [pytest.mark.timeout(900), *([pytest.mark.full] if FULL else [])]

SEEDS = corpus.read()
INFER = [message for message in SEEDS.framed if message.target.endswith(b"/infer")]
#: A first request has its model opened by a child, on a busy machine.
_HANGS_S = 60

#: Ends the connection: where it is answered, all before it was.
LAST = head("/v2/health/live", "Connection: close", method="GET")

NAMES = (
    *(b"Content-Length", b"content-length", b"Transfer-Encoding", b"Expect", b"Upgrade", b"Content-Encoding"),
    *(
        b"Inference-Header-Content-Length",
        b"Accept-Encoding",
        b"Authorization",
        b"X-Request-Id",
        b"Connection",
        b"Host",
    ),
)
VALUES = (
    *(b"", b"0", b"1", b"-1", b"+2", b"00", b"10, 10", b"9" * 20, b"chunked", b"identity", b"100-continue", b"h2c"),
    *(
        b"gzip",
        b"gzip;q=0",
        b"*;q=0",
        b"br",
        b"close",
        b"keep-alive",
        b"Upgrade",
        b"Bearer x",
        b"\xff",
        b"a\tb",
        b"x" * 300,
    ),
)
PIECES = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b":",
        b"\t",
        b"\r\n ",
        b"\r\n\r\n",
        b"HTTP/1.0",
        b"%2f",
        b"%00",
        b"#",
        b"?",
    ),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"x: y\r\n" * 150),
    *(b"{", b"[" * 1100, b'"', b"null", b"-1", b"1e400", b"9" * 5000, b"\xff", b'"\\ud800"', b'"data"', b'"shape"'),
)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """An inference request that says something else than a seed, of the length that it states."""
    message = draw(st.sampled_from(INFER))
    headers, target = list(message.headers), message.target
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(headers)))
        headers.insert(at, (draw(st.sampled_from(NAMES[3:])), draw(st.sampled_from(VALUES))))
    if draw(st.booleans()):
        target += draw(st.sampled_from((b"?", b"?a=b", b"%20", b"/", b"#x", b"%2f", b"\x80", b"x")))
    body = draw(damaged([message.body], PIECES)) if draw(st.booleans()) else message.body
    chunks = draw(st.sampled_from(((), (), (), (3, 9))))
    return Message(b"POST", target, tuple(headers), body[:20_000], chunks).rendered()


@pytest.fixture
def by_the_application() -> Iterator[Callable[[bool], None]]:
    """Says whether requests go past the short cut."""
    parsed, alike = HttpProtocol._exchange_for_head, HttpProtocol._begin_alike

    def choose(is_on: bool) -> None:
        HttpProtocol._exchange_for_head = (lambda self: None) if is_on else parsed  # type: ignore[method-assign]
        HttpProtocol._begin_alike = (lambda self, data: False) if is_on else alike  # type: ignore[method-assign]

    yield choose
    choose(False)


def answers(served: Served, data: bytes) -> list[Reply]:
    """Returns all answers until the server closes; who has to wait for longer than the test's patience has hung."""
    with served.connect() as connection:
        send(connection, data, LAST)
        return Wire(connection).answers()


def send(connection: socket.socket, *parts: bytes) -> None:
    """Sends as much as is taken: who was refused may be cut off."""
    connection.settimeout(_HANGS_S)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for part in parts:
            connection.sendall(part)


def said(replies: list[Reply]) -> list[tuple[int, Any, bytes]]:
    return [(reply.status, reply.header("content-type"), reply.body) for reply in replies]


def check(replies: list[Reply]) -> None:
    for reply in replies:
        if reply.status >= 200:
            headers = dict(reply.headers)
            assert complaint(reply.status, headers, reply.body, has_body=True) is None, (reply.status, reply.body[:500])


def test_both_ways_are_taken(ort: Served, by_the_application: Callable[[bool], None]) -> None:
    messages = [message for message in INFER if b"digits" in message.target][:8]
    with counting(ort) as ways:
        for is_on in (False, True):
            before = replace(ways)
            by_the_application(is_on)
            for message in messages:
                answers(ort, message.rendered())
            on_socket, by_application = ways.since(before)
            assert (on_socket >= len(messages) // 2) != is_on
            assert by_application > 0


@EXAMPLES
@given(changed())
def test_the_short_cut_answers_as_the_application_does(
    ort: Served, by_the_application: Callable[[bool], None], data: bytes
) -> None:
    assume(b"timeout" not in data)  # what runs out of time does so by chance
    by_the_application(False)
    quick = answers(ort, data)
    by_the_application(True)
    thorough = answers(ort, data)
    check(quick)
    assert said(quick) == said(thorough)
    final = [reply for reply in quick if reply.status >= 200]
    assert final[-1].status == 200 or len(final) == 1, "what came behind it was lost"


@EXAMPLES
@given(damaged([*SEEDS.raw, *(message.rendered() for message in INFER)], PIECES), st.integers(0, 200))
@example(b"POST /v2/models/wine/infer HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n", 30)
def test_bytes_that_may_be_no_request_are_answered_or_refused_and_the_connection_ends(
    short_tempered: Served, data: bytes, cut: int
) -> None:
    with short_tempered.connect() as connection:
        send(connection, data[:cut], data[cut:], LAST)
        try:
            text = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except ConnectionResetError:
            return  # refused while more was coming
    # An answer to HEAD has no body, so that nobody can tell here where the next one begins.
    found = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", text)}
    assert all(status < 500 or status == 503 for status in found), text[:2000]
