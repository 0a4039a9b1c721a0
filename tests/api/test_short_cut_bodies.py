"""Bodies and answers of the short cut: in pieces, large ones, and clients that pause, leave or read slowly."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import MB, Served, fake_host, fake_request, head, serve
from wire import Wire, binary, counting, infer, infer_binary, nothing_held, quick_script, used_bytes, warm, wire

from modelhost.runtime.base import CancelToken
from modelhost.runtime.fake import FakeModel, FakeScript
from modelhost.tensors import Array

pytestmark = pytest.mark.timeout(60)

#: Lets bodies of several MB in.
ROOMY = {"server": {"max_request_bytes": "8MB", "max_decoding_bytes": "24MB"}}


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """What fake models were fed."""
    arrays: list[Array] = []
    run = FakeModel.run

    def spy(
        self: FakeModel, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken | None
    ) -> list[Array]:
        arrays.extend(feeds.values())
        return run(self, feeds, outputs, cancel)

    monkeypatch.setattr(FakeModel, "run", spy)
    return arrays


def numbers(size_bytes: int) -> np.ndarray[Any, Any]:
    return np.arange(size_bytes // 4, dtype="<f4")


# --- pieces --------------------------------------------------------------------------------------------------


def test_a_body_may_come_byte_by_byte(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    request = infer("a", value=21)
    with counting(served) as ways, wire(served) as connection:
        for index in range(len(request)):
            connection.send(request[index : index + 1])
        assert connection.must().data == [42]
        assert (ways.socket, ways.application) == (1, 0)
    nothing_held(served)


def test_single_bytes_are_held_as_what_they_are(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    with wire(served, head("/v2/models/a/infer", "Content-Length: 50000")) as connection:
        for _ in range(300):
            connection.send(b" ")
            served.settle(1)
        (exchange,) = served.app.short_cut.receiving
        assert 0 < exchange.received_bytes <= 300
        assert isinstance(exchange._small, bytearray)
    nothing_held(served)


@pytest.mark.parametrize("size", [1000, 64 << 10, (64 << 10) + 1, 300_000, 4 * MB])
@pytest.mark.parametrize("step", [1 << 10, 70_000, 10 * MB])
def test_raw_tensors_of_any_size_come_in_pieces_and_are_fed_where_they_lie(
    serve_fake, fed: list[Array], size: int, step: int
) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    warm(served, "a", runs=1)
    values = numbers(size)
    request = infer_binary("a", values)
    fed.clear()
    with counting(served) as ways, wire(served) as connection:
        for begin in range(0, len(request), step):
            connection.send(request[begin : begin + step])
        answer = connection.must()
        assert answer.status == 200, answer.body
        assert np.array_equal(np.array(answer.data, "<f4"), values * 2)
        assert (ways.socket, ways.application) == (1, 0)
    (array,) = fed
    assert np.array_equal(array, values)
    if size > 64 << 10:
        assert array.flags.aligned
        assert array.__array_interface__["data"][0] % 64 == 0
        assert not array.flags.owndata  # a view on the body
    fed.clear()
    del array
    nothing_held(served)


def test_a_large_raw_tensor_is_not_copied(serve_fake, fed: list[Array], monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    warm(served, "a")
    fed.clear()
    bodies = []
    begin = served.app.short_cut.begin

    def spy(exchange: Any) -> None:
        bodies.append(np.frombuffer(exchange.body(), np.uint8))
        begin(exchange)

    monkeypatch.setattr(served.app.short_cut, "begin", spy)
    with wire(served, infer_binary("a", numbers(2 * MB))) as connection:
        assert connection.must().status == 200
    assert np.shares_memory(fed[0], bodies[0])
    assert fed[0].nbytes == 2 * MB


def test_a_large_body_is_claimed_by_steps_as_it_comes(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    request = infer_binary("a", numbers(4 * MB))
    with wire(served, request[:300]) as connection:
        served.settle()
        assert used_bytes(served) == 256 << 10
        connection.send(request[300:MB])
        served.eventually(lambda _: MB - (64 << 10) <= used_bytes(served) <= MB + (256 << 10))
        connection.send(request[MB:])
        assert connection.must().status == 200
    nothing_held(served)


def test_a_large_body_that_has_to_wait_for_memory_is_left_to_the_application(serve_fake) -> None:
    script = quick_script()
    served = serve_fake({"a": script}, server={"max_request_bytes": "2MB", "max_decoding_bytes": "4MB"})
    warm(served, "a")
    values = numbers(MB + MB // 2)
    request = infer_binary("a", values)
    budget = served.app.infer.inference.budget
    others = served.on_loop(budget.hold)
    with counting(served) as ways, wire(served, request[: MB // 2]) as connection:
        served.eventually(lambda _: used_bytes(served) >= MB // 4)
        assert served.on_loop(lambda: others.try_grow(budget.free_bytes))
        connection.send(request[MB // 2 : MB])
        served.eventually(lambda _: budget.waiting == 1)
        served.on_loop(others.end)
        connection.send(request[MB:])
        answer = connection.must()
        assert np.array_equal(np.array(answer.data, "<f4"), values * 2)
        assert (ways.socket, ways.application) == (0, 1)
        connection.send(infer("a"))
        assert connection.must().data == [2]
        assert ways.socket == 1
    nothing_held(served)


def test_a_large_body_without_room_in_one_piece_is_left_to_the_application(
    serve_fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise MemoryError("Unable to allocate 1. MiB")

    served = serve_fake({"a": quick_script()}, **ROOMY)
    monkeypatch.setattr(served.app.infer.inference.buffers, "take", refuse)
    with counting(served) as ways, wire(served, infer_binary("a", numbers(MB))) as connection:
        assert connection.must().status == 200
        assert (ways.socket, ways.application) == (0, 1)
    nothing_held(served)


def test_a_body_at_the_limit_is_taken_and_one_byte_more_is_413_before_it_is_read(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, server={"max_request_bytes": "1MB", "max_decoding_bytes": "8MB"})
    with wire(served, infer("a", size=MB)) as connection:
        assert connection.must().data == [2]
    with wire(served, head("/v2/models/a/infer", f"Content-Length: {MB + 1}")) as connection:
        assert connection.must().status == 413
    nothing_held(served)


@pytest.mark.parametrize("length", ["3", "9" * 5000, "x", "4194304"])
def test_a_large_body_whose_header_length_is_wrong_is_400(serve_fake, length: str) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    content = binary(numbers(MB))[0] + b"x"
    lines = (f"Content-Length: {len(content)}", f"Inference-Header-Content-Length: {length}")
    with wire(served, head("/v2/models/a/infer", *lines) + content) as connection:
        assert connection.must().status == 400
        connection.send(infer("a"))
        assert connection.must().data == [2]
    nothing_held(served)


# --- pauses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 70_000])
@pytest.mark.parametrize("key", ["receive_timeout_s", "request_timeout_s"])
def test_a_body_that_pauses_is_503_and_its_rest_is_no_request(serve_fake, sent: int, key: str) -> None:
    script = quick_script()
    served = serve_fake({"a": script}, server={key: 0.1})
    with wire(served, head("/v2/models/a/infer", "Content-Length: 100000") + b" " * sent) as connection:
        answer = connection.must()
        assert (answer.status, answer.json["code"]) == (503, "timeout")
        assert "receiving the body" in answer.json["error"]
        assert answer.header("connection") == "close"
        with contextlib.suppress(OSError):  # closed: what follows is not looked at
            connection.send(infer("a"), infer("a"))
        assert connection.answer() is None
    nothing_held(served)
    assert script.runs == 0
    assert 'outcome="timeout"' in served.get("/metrics").text


def test_a_body_that_goes_on_is_not_a_pause(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, server={"receive_timeout_s": 0.3})
    request = infer("a", size=3000)
    step = -(-len(request) // 40)
    waiting = threading.Event()
    with wire(served) as connection:
        for begin in range(0, len(request), step):
            connection.send(request[begin : begin + step])
            waiting.wait(0.015)
        assert connection.must().data == [2]


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
    assert np.array_equal(np.array(answer.data, "<f4"), values * 2)


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
        assert np.array_equal(np.array(reader.must().data, "<f4"), values * 2)
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
        assert np.array_equal(np.array(reader.must().data, "<f4"), values * 2)
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


# --- compressed answers and time-outs ------------------------------------------------------------------------

LONG = json.dumps(fake_request() | {"inputs": [{"name": "x", "datatype": "FP32", "shape": [600], "data": [0.5] * 600}]})


def test_a_compressed_answer_does_not_run_twice(serve_fake) -> None:
    script = quick_script()
    served = serve_fake({"a": script})
    for number in range(1, 6):
        response = served.infer("a", LONG.encode(), headers={"Accept-Encoding": "gzip, deflate"})
        assert response.headers["content-encoding"] == "gzip"
        assert response.json()["outputs"][0]["data"] == [1.0] * 600
        assert script.runs == number


def test_an_answer_that_is_larger_than_the_last_one_does_not_run_twice(serve_fake, monkeypatch) -> None:
    script = quick_script()
    served = serve_fake({"a": script}, **ROOMY)
    warm(served, "a", runs=1)
    monkeypatch.setattr(FakeModel, "_run", lambda self, feeds, outputs, cancel: [np.ones(500_000, "f4")])
    runs = []
    run = FakeModel.run
    monkeypatch.setattr(FakeModel, "run", lambda self, *args: runs.append(1) or run(self, *args))
    with counting(served) as ways, wire(served, infer("a")) as connection:
        answer = connection.must()
        assert answer.data == [1.0] * 500_000
        assert (ways.socket, ways.quick, len(runs)) == (1, 1, 1)
    nothing_held(served)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate, br", "gzip"), ("gzip;q=0", None), ("br", None)],
)
@pytest.mark.parametrize("runs", [0, 1, 3])
@pytest.mark.parametrize("is_on", [True, False])
def test_answers_are_compressed_as_they_are_asked_for(
    serve_fake, accepted: str, coding: str | None, runs: int, is_on: bool
) -> None:
    served = serve_fake({"a": quick_script()}, server={"compress_answers": is_on})
    for _ in range(runs):
        assert served.infer("a", LONG.encode(), headers={"Accept-Encoding": ""}).status_code == 200
    with counting(served) as ways:
        response = served.infer("a", LONG.encode(), headers={"Accept-Encoding": accepted})
    assert ways.quick == (runs > 0)
    assert response.headers.get("content-encoding") == (coding if is_on else None)
    assert response.headers.get("vary") == ("accept-encoding" if coding and is_on else None)
    assert response.json()["outputs"][0]["data"] == [1.0] * 600


@pytest.mark.parametrize("size", [4000, 2 * MB])
@pytest.mark.parametrize("runs", [0, 1, 3])
def test_the_binary_header_length_is_that_of_the_json_before_it_is_compressed(serve_fake, size: int, runs: int) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    values = numbers(size)
    content, length = binary(values)
    headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": "gzip"}
    for _ in range(runs + 1):
        response = served.infer("a", content, headers=headers)
    assert response.headers["content-encoding"] == "gzip"
    start = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:start])["outputs"][0]["parameters"] == {"binary_data_size": size}
    assert np.array_equal(np.frombuffer(response.content[start:], "<f4"), values * 2)
    nothing_held(served)


@pytest.mark.parametrize("state", ["cold", "loading", "on a thread", "in place"])
def test_a_time_of_a_microsecond_is_over_everywhere(serve_fake, state: str) -> None:
    loading = state == "loading"
    script = quick_script(load_may_end=threading.Event() if loading else None)
    served = serve_fake({"a": script})
    if state in ("on a thread", "in place"):
        warm(served, "a", runs=1 if state == "on a thread" else 3)
    first = served.later(served.infer, "a") if loading else None
    if loading:
        assert script.load_started.wait(10)
    runs = script.runs
    with wire(served, infer("a", parameters={"timeout": 1})) as connection:
        answer = connection.must()
        assert (answer.status, answer.json["code"], answer.header("retry-after")) == (503, "timeout", "1")
        if first is not None and script.load_may_end is not None:
            script.load_may_end.set()
            assert first.result().status_code == 200
        connection.send(infer("a"))
        assert connection.must().data == [2]
    nothing_held(served)
    assert script.runs <= runs + 2


def test_a_run_on_a_thread_that_takes_longer_than_its_time_is_503_and_stopped(serve_fake) -> None:
    script = quick_script()
    served = serve_fake({"a": script})
    warm(served, "a", runs=1)
    script.run_may_end = threading.Event()  # set by the cancellation only
    with counting(served) as ways, wire(served, infer("a", parameters={"timeout": 50_000})) as connection:
        answer = connection.must()
        assert (answer.status, answer.json["code"], ways.quick) == (503, "timeout", 1)
        assert answer.json["waited_s"] >= 0.05
        nothing_held(served)
        connection.send(infer("a"))
        assert connection.must().data == [2]


def test_runs_that_have_become_long_leave_the_event_loop(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    waiting, pause_s = threading.Event(), [0.0]

    def run(self: FakeModel, feeds: Any, outputs: Any, cancel: CancelToken) -> list[Array]:
        threads.append(threading.current_thread().name)
        if pause_s[0]:
            waiting.wait(pause_s[0])
        return [np.asarray(feeds["x"]) * 2]

    monkeypatch.setattr(FakeModel, "_run", run)
    served = serve_fake({"a": quick_script()}, server={"run_threads": 2})
    warm(served, "a", runs=4)
    assert not threads[-1].startswith("modelhost-run")
    pause_s[0] = 0.005
    warm(served, "a", runs=1)
    assert not threads[-1].startswith("modelhost-run")  # nobody could know
    warm(served, "a", runs=5)
    assert all(name.startswith("modelhost-run") for name in threads[-5:])
