"""Answers of the short cut: compressed, larger than expected, and too late."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from served import MB, fake_request, tensor
from wire import (
    ROOMY,
    binary,
    counting,
    infer,
    nothing_held,
    numbers,
    post,
    quick_script,
    warm,
    wire,
)

from modelhost.api import infer as routes
from modelhost.api.codec import cost
from modelhost.runtime.base import CancelToken
from modelhost.runtime.fake import FakeModel
from modelhost.tensors import Array

pytestmark = pytest.mark.timeout(60)


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
        assert answer.json["waited_s"] >= 0.04  # timers count in milliseconds
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


def test_large_json_is_looked_at_once_and_on_a_thread(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def look(text: bytes | memoryview) -> Any:
        threads.append(threading.current_thread().name)
        return cut(text)

    cut = cost.cut
    monkeypatch.setattr(cost, "cut", look)
    served = serve_fake({"a": quick_script()}, **ROOMY)
    warm(served, "a", runs=1)
    many = 300_000  # more than 1 MB of text
    answer = served.infer("a", tensor("x", "FP32", [many], [0.5] * many))
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["shape"] == [many]
    assert len(threads) == 1
    assert threads[0].startswith("modelhost-run")


def test_large_json_is_decoded_one_at_a_time_and_other_json_meanwhile(
    serve_fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, foreseen, may_end = threading.Semaphore(0), threading.Semaphore(0), threading.Event()
    decode, foresee = routes.decode_request, routes.foresee
    count = 0

    def slowly(body: bytes | memoryview, **more: Any) -> Any:
        nonlocal count
        if len(body) > 1 << 20:
            count += 1
            begun.release()
            assert may_end.wait(30)
        return decode(body, **more)

    def look(body: bytes | memoryview, **more: Any) -> Any:
        found = foresee(body, **more)
        foreseen.release()
        return found

    monkeypatch.setattr(routes, "decode_request", slowly)
    monkeypatch.setattr(routes, "foresee", look)
    served = serve_fake({"a": quick_script(), "b": quick_script()}, server=ROOMY["server"] | {"run_threads": 2})
    warm(served, "a", "b")
    large, less = (tensor("x", "FP32", [many], [0.5] * many) for many in (300_000, 20_000))
    first = served.later(served.infer, "a", large)
    assert begun.acquire(timeout=30)
    second = served.later(served.infer, "b", large)
    assert all(foreseen.acquire(timeout=30) for _ in range(2))
    served.settle()
    for name in ("a", "b"):
        assert served.infer(name, less).status_code == 200
    assert count == 1
    may_end.set()
    assert (first.result(30).status_code, second.result(30).status_code, count) == (200, 200, 2)
    nothing_held(served)


def test_json_that_was_refused_on_a_thread_is_freed_with_its_answer(
    serve_fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a collection: an error that is raised again has the frames that it passed."""
    bodies: list[weakref.ref[memoryview]] = []
    decode = routes.decode_request

    def note(body: memoryview, **more: Any) -> Any:
        bodies.append(weakref.ref(body))
        return decode(body, **more)

    served = serve_fake({"a": quick_script()}, **ROOMY)
    warm(served, "a", runs=1)
    monkeypatch.setattr(routes, "decode_request", note)
    gc.disable()
    try:
        body = json.dumps(tensor("x", "FP32", [300_001], [0.5] * 300_000)).encode()
        with wire(served, post("/v2/models/a/infer", body)) as connection:
            assert connection.must().status == 400
        served.settle()
        assert [body() for body in bodies] == [None]
    finally:
        gc.enable()
