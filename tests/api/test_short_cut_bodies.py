"""Bodies of the short cut: in pieces, large ones, and those that pause."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from served import MB, head
from wire import (
    ROOMY,
    binary,
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

from modelhost.api import arrivals
from modelhost.api.buffers import BufferPool
from modelhost.api.rests import Rests
from modelhost.runtime.base import CancelToken
from modelhost.runtime.fake import FakeModel
from modelhost.tensors import Array

pytestmark = pytest.mark.timeout(60)


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
        assert np.array_equal(answer.raw, values * 2)
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


def test_of_a_large_body_its_beginning_is_claimed_and_then_all_of_it(serve_fake) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    pieces = served.app.infer.inference.arrivals.pieces
    request = infer_binary("a", numbers(4 * MB))
    with wire(served, request[:300]) as connection:
        served.eventually(lambda _: pieces.used_bytes == 4 << 10)
        assert used_bytes(served) == 0
        connection.send(request[300:MB])
        served.eventually(lambda _: 4 * MB <= used_bytes(served) <= 4 * MB + 300)
        assert pieces.used_bytes == 0
        connection.send(request[MB:])
        assert connection.must().status == 200
    nothing_held(served)


@pytest.mark.parametrize("path", ["/v2/models/a/infer", "/v2/models/a/infer?x"])
@pytest.mark.parametrize("line", ["X-A: b", "Expect: 100-continue"])
def test_a_large_body_waits_for_memory_and_is_not_read_meanwhile(serve_fake, path: str, line: str) -> None:
    served = serve_fake({"a": quick_script()}, server={"max_request_bytes": "2MB", "max_decoding_bytes": "4MB"})
    warm(served, "a")
    body, length = binary(numbers(MB + MB // 2))
    lines = (f"Content-Length: {len(body)}", f"Inference-Header-Content-Length: {length}", line)
    inference = served.app.infer.inference
    others = served.on_loop(inference.budget.hold)
    assert served.on_loop(lambda: others.try_grow(inference.budget.free_bytes))
    with wire(served, head(path, *lines), body[:10_000]) as connection:
        served.eventually(lambda _: inference.arrivals.waiting == 1)
        connection.send(body[10_000:50_000])
        served.settle()
        assert inference.arrivals.pieces.used_bytes <= 128 << 10
        served.on_loop(others.end)
        if "100" in line:
            connection.buffer += connection.socket.recv(25)
            assert bytes(connection.buffer) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.buffer.clear()
        connection.send(body[50_000:])
        assert np.array_equal(connection.must().raw, numbers(MB + MB // 2) * 2)
        connection.send(infer("a"))
        assert connection.must().data == [2]
    nothing_held(served)


def test_a_large_body_without_room_in_one_piece_is_503(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> Any:
        raise MemoryError("Unable to allocate 1. MiB")

    served = serve_fake({"a": quick_script()}, **ROOMY)
    monkeypatch.setattr(served.app.infer.inference.buffers, "take", refuse)
    with wire(served, infer_binary("a", numbers(MB))[: MB // 2]) as connection:
        answer = connection.must()
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
        assert "no room in one piece for a body of 1.0 MB" in answer.json["error"]
    nothing_held(served)


def test_a_body_that_comes_slowly_yields_to_one_that_does_not(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": quick_script()}, server={"max_request_bytes": "3MB", "max_decoding_bytes": "4MB"})
    with wire(served, infer_binary("a", numbers(2 * MB))[:5000]) as slow:
        served.eventually(lambda _: used_bytes(served) > 2 * MB)
        monkeypatch.setattr(arrivals, "_JUDGED_AFTER_S", 3600)  # however busy the machine, the other one is quicker
        (arrival,) = served.app.infer.inference.arrivals._coming
        arrival._began -= 7200
        with wire(served, infer_binary("a", numbers(2 * MB))) as quick:
            assert quick.must().status == 200
        (answer,) = slow.answers()
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
        assert answer.json["error"].startswith("4.8 KB of 2.0 MB came in")
    nothing_held(served)


@pytest.mark.parametrize(
    ("request_bytes", "pieces"),
    [
        (infer("a", size=60_000), [300]),
        (infer_binary("a", numbers(MB)), [300]),
        (infer_binary("a", numbers(MB)), [5000, 5010]),  # past the parser
        (infer("a", size=60_000).replace(b"/infer", b"/infer?x"), [300]),  # over ASGI
        (infer_binary("a", numbers(MB)).replace(b"/infer", b"/infer?x"), [5000, 5010]),
    ],
)
def test_a_body_that_comes_slowly_in_small_pieces_is_read_now_and_then(
    serve_fake, monkeypatch: pytest.MonkeyPatch, request_bytes: bytes, pieces: list[int]
) -> None:
    rests: list[Callable[[], None]] = []
    script = quick_script()
    served = serve_fake({"a": script}, **ROOMY)
    warm(served, "a")
    before = script.runs
    monkeypatch.setattr(arrivals.Arrival, "slow_s", lambda self, now: 1.0)
    monkeypatch.setattr(Rests, "begin", lambda self, over: rests.append(over))
    with wire(served) as connection:
        for begin, end in pairwise([0, *pieces]):
            connection.send(request_bytes[begin:end])
            served.settle(20)
        served.eventually(lambda _: len(rests) == 1)
        connection.send(request_bytes[pieces[-1] : pieces[-1] + 50_000])
        served.settle(20)
        assert len(rests) == 1
        served.on_loop(rests.pop())
        connection.send(request_bytes[pieces[-1] + 50_000 :])
        assert connection.must().status == 200
        assert script.runs == before + 1
        connection.send(infer("a"))
        assert connection.must().data == [2]
    nothing_held(served)


@pytest.mark.parametrize("path", ["/v2/models/a/infer", "/v2/models/a/infer?x"])
def test_a_body_that_rests_yields_to_others_at_once(serve_fake, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    rests: list[Callable[[], None]] = []
    served = serve_fake({"a": quick_script()}, server={"max_request_bytes": "3MB", "max_decoding_bytes": "4MB"})
    with wire(served, head(path, f"Content-Length: {2 * MB}") + b" " * 5000) as slow:
        served.eventually(lambda _: used_bytes(served) >= 2 * MB)
        monkeypatch.setattr(arrivals, "_JUDGED_AFTER_S", 3600)  # however busy the machine, the other one is quicker
        (arrival,) = served.app.infer.inference.arrivals._coming
        arrival._began -= 7200
        monkeypatch.setattr(Rests, "begin", lambda self, over: rests.append(over))
        served.eventually(lambda _: bool(slow.send(b" ") or rests))
        with wire(served, infer_binary("a", numbers(2 * MB))) as quick:
            assert quick.must().status == 200
        (answer,) = slow.answers()
        assert (answer.status, answer.json["code"]) == (503, "overloaded")
    served.on_loop(rests.pop())  # which has nothing to end any more
    nothing_held(served)


def test_buffers_may_be_given_back_by_another_thread_while_one_is_looked_for(
    serve_fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve_fake({"a": quick_script()}, **ROOMY)
    buffers = served.app.infer.inference.buffers
    kept = [served.on_loop(lambda: buffers.take(MB)) for _ in range(3)]
    assert buffers.size_bytes == 3 * MB

    def clear_and_count(kept: list[Array], index: int) -> int:
        clearing = threading.Thread(target=buffers.clear)  # as the memory thread does when memory is wanted
        clearing.start()
        clearing.join()
        return references(kept, index)

    references = vars(inspect.getmodule(BufferPool))["_references"]
    monkeypatch.setattr("modelhost.api.buffers._references", clear_and_count)
    assert served.on_loop(lambda: buffers.take(MB)).nbytes == MB
    assert buffers.size_bytes == MB
    del kept


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
@pytest.mark.parametrize("key", ["read_timeout", "request_timeout_s"])
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
    served = serve_fake({"a": quick_script()}, server={"read_timeout": 0.3})
    request = infer("a", size=3000)
    step = -(-len(request) // 40)
    waiting = threading.Event()
    with wire(served) as connection:
        for begin in range(0, len(request), step):
            connection.send(request[begin : begin + step])
            waiting.wait(0.015)
        assert connection.must().data == [2]
