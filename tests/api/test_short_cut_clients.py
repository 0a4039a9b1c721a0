"""Clients of the short cut that leave, that read slowly, and that have nothing to say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served import MB, Served, fake_host, head, serve
from wire import (
    ROOMY,
    Wire,
    counting,
    infer,
    infer_binary,
    nothing_held,
    numbers,
    quick_script,
    used_bytes,
    warm,
    wire,
)

from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.timeout(60)


# --- clients that leave --------------------------------------------------------------------------------------


def leave(connection: socket.socket) -> None:
    """Closes with a reset, as a process that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


@pytest.mark.parametrize("sent", [1, 80, 150, 60_000, 200_000, 2 * MB])
def test_a_client_that_leaves_in_the_body_leaves_nothing(serve_fake, sent: int) -> None:
    script = quick_script()
    served = serve_fake({"a": script}, **ROOMY)
    request = infer_binary("a", numbers(3 * MB))
    with wire(served, request[:sent]) as connection:
        if sent > 100_000:
            served.eventually(lambda _: used_bytes(served) > 0)
        leave(connection.socket)
    nothing_held(served)
    assert script.runs == 0


@pytest.mark.parametrize("size", [8, 2 * MB])
@pytest.mark.parametrize("is_reset", [True, False])
def test_a_client_that_leaves_during_a_load_leaves_nothing(serve_fake, size: int, is_reset: bool) -> None:
    script = quick_script(load_may_end=threading.Event())
    served = serve_fake({"a": script}, **ROOMY)
    with wire(served, infer_binary("a", numbers(size))) as connection:
        assert script.load_started.wait(10)
        served.eventually(lambda snapshot: snapshot.waiting == 1)
        if is_reset:
            leave(connection.socket)
    nothing_held(served)
    assert 'outcome="client_gone"' in served.get("/metrics").text
    assert script.runs == 0


@pytest.mark.parametrize("size", [8, 2 * MB])
@pytest.mark.parametrize("runs", [0, 1])
def test_a_client_that_leaves_during_a_run_stops_it_and_leaves_nothing(serve_fake, size: int, runs: int) -> None:
    script = quick_script()
    served = serve_fake({"a": script}, **ROOMY)
    warm(served, "a", runs=1)
    for _ in range(runs):  # of this size: the next one begins without a coroutine where its answer is small
        with wire(served, infer_binary("a", numbers(size))) as connection:
            assert connection.must().status == 200
    script.run_may_end = threading.Event()  # set by the cancellation only
    script.run_started.clear()
    with counting(served) as ways, wire(served, infer_binary("a", numbers(size))):
        assert script.run_started.wait(10)
        assert ways.quick == (runs == 1 and size == 8)
    nothing_held(served)
    assert served.get("/metrics").text.count('outcome="client_gone"') > 0


def test_a_claim_lasts_until_an_abandoned_run_has_really_returned(serve_fake) -> None:
    script = quick_script(is_deaf=True)
    served = serve_fake({"a": script})
    warm(served, "a", runs=1)
    script.run_may_end = threading.Event()
    script.run_started.clear()

    class Unheard(threading.Event):
        def set(self) -> None:
            pass

    may_end, script.run_may_end = script.run_may_end, Unheard()
    with wire(served, infer("a")) as connection:
        assert script.run_started.wait(10)
        leave(connection.socket)
    served.eventually(lambda _: 'outcome="client_gone"' in served.get("/metrics").text)
    assert served.snapshot().models[0].leases == 1
    assert served.on_loop(lambda: served.host.pool.activations.claimed_bytes) == 1000
    threading.Event.set(script.run_may_end)
    may_end.set()
    nothing_held(served)
    assert script.violations == []


def test_a_client_that_leaves_before_it_reads_leaves_nothing(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    warm(served, "a")
    for request in (infer("a"), infer_binary("a", numbers(3 * MB)), infer("a") * 50):
        for is_reset in (True, False):
            with wire(served, request) as connection:
                if is_reset:
                    leave(connection.socket)
    nothing_held(served)
    assert served.infer("a").status_code == 200


# --- clients that read slowly --------------------------------------------------------------------------------


def narrow(served: Served) -> socket.socket:
    """Opens a connection that takes little at a time."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", served.port))
    return connection


@pytest.fixture
def roomy(serve_fake) -> Iterator[Served]:
    served = serve_fake({"a": quick_script()}, server={"max_request_bytes": "8MB", "max_decoding_bytes": "30MB"})
    warm(served, "a")
    yield served
    nothing_held(served)


def test_a_large_answer_is_claimed_until_the_client_has_it(roomy: Served) -> None:
    values = numbers(7 * MB)
    with narrow(roomy) as connection:
        connection.sendall(infer_binary("a", values))
        roomy.eventually(lambda snapshot: snapshot.in_flight == 0 and used_bytes(roomy) >= 7 * MB)
        roomy.settle(20)
        assert 7 * MB <= used_bytes(roomy) < 8 * MB  # the answer, and nothing of the request
        assert roomy.infer("a").status_code == 200  # others are not affected
        answer = Wire(connection).must()
    assert np.array_equal(answer.raw, values * 2)


def test_a_client_that_leaves_within_a_large_answer_leaves_nothing(roomy: Served) -> None:
    with narrow(roomy) as connection:
        connection.sendall(infer_binary("a", numbers(7 * MB)))
        connection.recv(100)
        assert used_bytes(roomy) >= 7 * MB
        leave(connection)


def test_a_client_that_takes_no_answer_is_left_when_the_time_of_requests_is_over(serve_fake) -> None:
    served = serve_fake(
        {"a": quick_script()},
        server={"request_timeout_s": 0.4, "max_request_bytes": "8MB", "max_decoding_bytes": "30MB"},
    )
    warm(served, "a")
    with narrow(served) as connection, wire(served, infer("a")) as other:
        connection.sendall(infer_binary("a", numbers(7 * MB)))
        served.eventually(lambda _: used_bytes(served) >= 7 * MB)
        assert other.must().data == [2]
        nothing_held(served)
        other.send(infer("a", value=2))
        assert other.must().data == [4]
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 20):
                taken += len(piece)
        assert taken < 7 * MB


def test_what_is_pipelined_behind_a_large_answer_waits_for_the_client(roomy: Served) -> None:
    values = numbers(5 * MB)
    segment = infer_binary("a", values) + infer("a", value=3) * 20 + head("/v2/health/live", method="GET")
    with narrow(roomy) as connection:
        connection.sendall(segment)
        roomy.eventually(lambda snapshot: snapshot.in_flight == 0 and used_bytes(roomy) >= 5 * MB)
        reader = Wire(connection)
        assert np.array_equal(reader.must().raw, values * 2)
        assert [reader.must().data for _ in range(20)] == [[6]] * 20
        assert reader.must().json == {"live": True}
        connection.sendall(infer("a", value=4))
        assert reader.must().data == [8]


def test_a_request_that_comes_while_an_answer_is_unsent_is_answered_behind_it(roomy: Served) -> None:
    values = numbers(5 * MB)
    with narrow(roomy) as connection, counting(roomy) as ways:
        connection.sendall(infer_binary("a", values))
        roomy.eventually(lambda snapshot: snapshot.in_flight == 0 and used_bytes(roomy) >= 5 * MB)
        connection.sendall(infer("a", value=3))
        roomy.eventually(lambda _: ways.application == 1)
        reader = Wire(connection)
        assert np.array_equal(reader.must().raw, values * 2)
        assert reader.must().data == [6]


# --- idle connections ----------------------------------------------------------------------------------------


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[tuple[Served, FakeScript]]:
    """A server whose clients may idle for 0.3 s."""
    script = quick_script()
    with serve(fake_host(tmp_path, {"a": script}), timeout_keep_alive=0.3) as served:
        warm(served, "a", runs=1)
        yield served, script
        if script.run_may_end is not None:
            script.run_may_end.set()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        infer("a"),
        head("/v2", method="GET"),
        infer("a") * 3,
        b"POST /v2/models",
        infer("a") + b"POST /v2",
        head("/v2/models/a/infer", f"Content-Length: {10**9}"),
    ],
)
def test_an_idle_connection_is_closed(hasty: tuple[Served, FakeScript], sent: bytes) -> None:
    served, _ = hasty
    with wire(served, sent) as connection:
        connection.answers()
    served.http.close()
    served.eventually(lambda _: not served.server.server_state.connections)


def test_a_busy_connection_is_not_idle(hasty: tuple[Served, FakeScript]) -> None:
    served, script = hasty
    script.run_may_end = threading.Event()
    script.run_started.clear()
    waiting = threading.Event()
    with wire(served, head("/v2", method="GET"), infer("a")) as connection:
        assert connection.must().status == 200
        assert script.run_started.wait(10)
        with wire(served) as idle:  # opened later, closed sooner
            assert idle.answers() == []
        waiting.wait(0.05)
        script.run_may_end.set()
        assert connection.must().data == [2]
        assert connection.answer() is None


@pytest.mark.parametrize("request_bytes", [infer("a"), head("/v2", method="GET")])
def test_a_connection_that_is_used_now_and_then_stays(hasty: tuple[Served, FakeScript], request_bytes: bytes) -> None:
    served, _ = hasty
    waiting = threading.Event()
    with wire(served, infer("a")) as connection:
        assert connection.must().status == 200
        for _ in range(15):  # 0.6 s, whichever way the answers go
            waiting.wait(0.04)
            connection.send(request_bytes)
            assert connection.must().status == 200


def test_a_connection_has_one_timer_however_many_requests_it_has(hasty: tuple[Served, FakeScript]) -> None:
    served, _ = hasty
    made = []
    with wire(served, infer("a")) as connection:
        assert connection.must().status == 200
        (protocol,) = [
            one for one in served.server.server_state.connections if one.client == connection.socket.getsockname()
        ]
        timer = protocol._idle_check
        for request in (infer("a"), head("/v2", method="GET"), infer("a") * 5):
            connection.send(request)
            for _ in range(5 if request == infer("a") * 5 else 1):
                assert connection.must().status == 200
            served.settle()
            made.append(protocol.timeout_keep_alive_task)
            assert protocol._idle_check is timer
    assert made == [None, None, None]
