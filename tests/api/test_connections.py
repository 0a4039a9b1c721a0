"""Connections that are too many, too slow, or say nothing."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack

import pytest
from served import FakeScript, Served, head
from wire import Wire, infer, quick_script, wire

from modelhost.api import connections

pytestmark = pytest.mark.timeout(60)


def bounded(served: Served, limit: int) -> Served:
    """Lets in so many connections, from here on; the test's own client has none."""
    served.http.close()
    served.eventually(lambda _: not served.server.server_state.connections)
    served.server.config.http_protocol_class.door.limit = limit
    return served


def opened(served: Served, stack: ExitStack, *sent: bytes) -> list[Wire]:
    """Opens a connection for each of `sent`, one after another by the server's clock."""
    made = []
    for number, data in enumerate(sent):
        made.append(stack.enter_context(wire(served, data)))
        served.eventually(lambda _, number=number: len(served.server.server_state.connections) > number)
        now = served.on_loop(served.loop.time)
        served.eventually(lambda _, now=now: served.loop.time() > now)
    return made


def _is_sending_a_head(served: Served) -> bool:
    return any(one._head_bytes for one in served.server.server_state.connections)


def test_a_newcomer_takes_the_place_of_the_one_that_has_idled_the_longest(
    serve_fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SPARE_AFTER_S", 0)
    served = bounded(serve_fake({"a": quick_script()}), 3)
    with ExitStack() as stack:
        first, second, third = opened(served, stack, b"", b"", b"")
        first.send(infer("a"))
        assert first.must().data == [2]
        with wire(served, infer("a")) as newcomer:
            assert newcomer.must().data == [2]
            assert second.answers() == []  # closed without a word
            for one in (first, third):
                one.send(infer("a"))
                assert one.must().data == [2]


def test_what_came_while_the_host_stood_still_keeps_its_connection(serve_fake) -> None:
    """As after a pause of the machine: both time-outs are long over, and the request is in the socket's buffer."""
    served = bounded(serve_fake({"a": quick_script()}), 1)
    with ExitStack() as stack:
        (client,) = opened(served, stack, b"")
        client.send(infer("a"))
        assert client.must().data == [2]

        def stand_still() -> tuple[float, bool]:
            (connection,) = served.server.server_state.connections
            client.send(infer("a"))
            connection._active_at = float("-inf")
            connection._check_idle()
            return connection.idle_s(served.loop.time()), connections._sparest([connection], None, 0.0) is None

        assert served.on_loop(stand_still) == (float("inf"), True)
        assert client.must().data == [2]


def test_a_newcomer_takes_the_place_of_a_head_that_does_not_end(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SPARE_AFTER_S", 0)
    served = bounded(serve_fake({"a": quick_script()}), 1)
    with wire(served, b"POST /v2/models/a/infer HTTP/1.1\r\nX-A: ") as slow:
        served.eventually(lambda _: served.on_loop(lambda: _is_sending_a_head(served)))
        with wire(served, infer("a")) as newcomer:
            assert newcomer.must().data == [2]
        (answer,) = slow.answers()
        assert (answer.status, answer.json["code"]) == (503, "overloaded")


def test_a_newcomer_is_refused_where_all_have_just_come(serve_fake) -> None:
    served = bounded(serve_fake({"a": FakeScript()}), 2)
    with ExitStack() as stack:
        others = opened(served, stack, b"", b"")
        with wire(served, infer("a")) as newcomer:  # sent before it is read: the answer is not lost with it
            (answer,) = newcomer.answers()
            assert (answer.status, answer.json["code"]) == (503, "overloaded")
            assert answer.json["error"].startswith("2 connections are open")
            assert answer.header("retry-after") == "1"
        for one in others:
            one.send(infer("a"))
            assert one.must().data == [2]


@pytest.mark.parametrize("sent", [b"", b"POST /v2/models/a", infer("a") + b"POST /v2"])
def test_a_head_has_the_time_of_a_pause_and_not_of_an_idle_connection(serve_fake, sent: bytes) -> None:
    served = serve_fake({"a": quick_script()}, server={"read_timeout": 0.1})
    with wire(served, sent) as connection:
        assert len(connection.answers()) == sent.startswith(infer("a"))


def test_a_head_that_comes_byte_by_byte_has_its_time_only_once(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, server={"read_timeout": 0.2})
    with wire(served, infer("a")) as connection:
        assert connection.must().data == [2]
        (protocol,) = [
            one for one in served.server.server_state.connections if one.client == connection.socket.getsockname()
        ]
        sent = 0
        try:
            while sent < 10_000:
                connection.send(b"GET /"[sent : sent + 1] or b"a")
                sent += 1
                served.settle(1)
                if protocol.transport.is_closing():
                    break
        except OSError:
            pass
        assert connection.answer() is None
    assert sent < 10_000


LEAVE = [
    ("nothing", b""),
    ("half a head", b"POST /v2/mod"),
    ("a request", infer("a")),
    ("one that is refused", infer("nobody")),
    ("one for the application", head("/v2", method="GET")),
    ("one whose body is for the application", infer("a", "Content-Encoding: gzip")),
    ("one in pieces", head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"5\r\n{'a':\r\n0\r\n\r\n"),
    ("a body that never ends", infer("a")[:-3]),
    ("a body for the application that never ends", infer("a", "Content-Encoding: gzip")[:-3]),
    ("two at once", infer("a") + infer("a")),
    ("two at once for the application", head("/v2", method="GET") + head("/v2", method="GET")),
    ("no request", b"\x00\x01\x02\r\n\r\n"),
    ("a head that is too long", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000),
    ("a body that is too large", head("/v2/models/a/infer", "Content-Length: 999999999999") + b"x" * 1000),
    ("a stream", head("/monitor/stream", method="GET")),
]


@pytest.mark.parametrize("sent", [pytest.param(data, id=name) for name, data in LEAVE])
def test_a_connection_that_has_ended_leaves_nothing_for_the_collector(serve_fake, sent: bytes) -> None:
    """Which comes by rarely: bodies and answers would lie about until then."""
    served = bounded(serve_fake({"a": quick_script()}), 3)
    with wire(served) as client:
        served.eventually(lambda _: served.server.server_state.connections)
        [left] = [weakref.ref(one) for one in served.server.server_state.connections]
        gc.disable()
        try:
            client.send(sent)
            if sent:
                served.eventually(lambda _: left() is None or left()._head_bytes or left().cycle or left()._refusal)
            client.socket.close()
            served.eventually(lambda _: left() is None)
        finally:
            gc.enable()
