"""A shutdown with requests on the short cut: those in flight are answered, in time, or told that the host closes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from served import MB, Served, fake_host, head, serve
from wire import infer, infer_binary, quick_script, warm, wire

from modelhost.api import drain
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.timeout(60)

#: More than any work here takes on a busy machine; and less than a test would wait.
PATIENT_S, SHORT_S = 30.0, 0.5


@pytest.fixture
def serve_short(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Returns a function that serves fake models; `drain_timeout` is how long an end waits for what is under way."""
    with ExitStack() as stack:

        def serve_scripts(scripts: dict[str, FakeScript], drain_timeout: float = PATIENT_S) -> Served:
            server = {"max_request_bytes": "8MB", "max_decoding_bytes": "24MB", "drain_timeout": drain_timeout}
            return stack.enter_context(serve(fake_host(tmp_path, scripts, server=server)))

        yield serve_scripts


def shut_down(served: Served) -> None:
    served.http.close()
    served.server.end()
    connections = served.server.server_state.connections
    served.eventually(lambda _: served.host.is_draining)
    served.eventually(lambda _: all(not one.is_busy or not one.cycle.keep_alive for one in connections))


def test_a_run_on_a_thread_is_answered_and_its_connection_closed(serve_short) -> None:
    script = quick_script()
    served = serve_short({"a": script})
    warm(served, "a", runs=1)
    script.run_may_end = threading.Event()
    script.run_started.clear()
    with wire(served, infer("a")) as connection, wire(served) as idle:
        assert script.run_started.wait(10)
        shut_down(served)
        script.run_may_end.set()
        (answer,) = connection.answers()
        assert (answer.data, answer.header("connection")) == ([2], "close")
        assert idle.answer() is None


@pytest.mark.parametrize(
    "request_bytes", [infer("a"), head("/v1/models/a:predict", "Content-Length: 2") + b"{}"], ids=["v2", "v1"]
)
def test_new_work_is_refused_while_what_has_begun_goes_on_and_readiness_can_be_asked(
    serve_short, request_bytes: bytes
) -> None:
    script = quick_script()
    served = serve_short({"a": script})
    warm(served, "a", runs=1)
    script.run_may_end = threading.Event()
    script.run_started.clear()
    asked = head("/v2/health/ready", method="GET")
    with wire(served, infer("a")) as connection, wire(served, asked) as probe, wire(served, asked) as late:
        assert script.run_started.wait(10)
        assert probe.must().json == late.must().json == {"ready": True}
        shut_down(served)
        with pytest.raises(ConnectionRefusedError):
            served.connect()
        probe.send(asked)
        answer = probe.must()
        assert (answer.status, answer.json) == (503, {"ready": False})
        late.send(request_bytes)
        (refused,) = late.answers()
        assert (refused.status, refused.json["code"]) == (503, "closed")
        assert (refused.header("connection"), refused.header("retry-after")) == ("close", "5")
        script.run_may_end.set()
        assert [answer.status for answer in connection.answers()] == [200]


def test_a_load_is_waited_for(serve_short) -> None:
    script = quick_script(load_may_end=threading.Event())
    served = serve_short({"a": script})
    with wire(served, infer("a")) as connection:
        assert script.load_started.wait(10)
        shut_down(served)
        script.load_may_end.set()
        (answer,) = connection.answers()
        assert (answer.data, answer.header("connection")) == ([2], "close")


@pytest.mark.parametrize("size", [8, 2 * MB])
def test_a_body_that_is_still_coming_is_waited_for(serve_short, size: int) -> None:
    served = serve_short({"a": quick_script()})
    warm(served, "a", runs=1)
    values = np.arange(size // 4, dtype="<f4")
    request = infer_binary("a", values)
    with wire(served, request[: len(request) // 2]) as connection:
        served.eventually(lambda _: len(served.app.short_cut.receiving) == 1)
        shut_down(served)
        connection.send(request[len(request) // 2 :])
        (answer,) = connection.answers()
        assert np.array_equal(answer.raw, values * 2)
        assert answer.header("connection") == "close"


def test_a_body_that_waits_for_memory_during_a_shutdown_ends_the_connection_too(serve_short) -> None:
    served = serve_short({"a": quick_script()})
    warm(served, "a", runs=1)
    values = np.arange(MB // 4, dtype="<f4")
    request = infer_binary("a", values)
    budget = served.app.infer.inference.budget
    others = served.on_loop(budget.hold)
    with wire(served, request[:1000]) as connection:
        served.eventually(lambda _: len(served.app.short_cut.receiving) == 1)
        shut_down(served)
        assert served.on_loop(lambda: others.try_grow(budget.free_bytes))
        connection.send(request[1000:6000])
        served.eventually(lambda _: served.app.infer.inference.arrivals.waiting == 1)
        served.on_loop(others.end)
        connection.send(request[6000:])
        (answer,) = connection.answers()
        assert answer.status == 200
        assert answer.header("connection") == "close"


@pytest.mark.parametrize("where", ["thread", "load", "body", "large body"])
def test_what_takes_longer_than_the_grace_is_told_so(serve_short, where: str) -> None:
    script = quick_script(load_may_end=threading.Event() if where == "load" else None)
    served = serve_short({"a": script}, SHORT_S)
    request = infer_binary("a", np.zeros(MB, "<f4")) if where == "large body" else infer("a")
    if where == "thread":
        warm(served, "a", runs=1)
        script.run_may_end = threading.Event()  # set by the cancellation only
        script.run_started.clear()
    cut = len(request) // 2 if "body" in where else len(request)
    with wire(served, request[:cut]) as connection:
        if where == "thread":
            assert script.run_started.wait(10)
        elif where == "load":
            assert script.load_started.wait(10)
        else:
            served.eventually(lambda _: len(served.app.short_cut.receiving) == 1)
        shut_down(served)
        (answer,) = connection.answers()
        assert (answer.status, answer.json["code"]) == (503, "closed")
        assert answer.header("retry-after") == "5"
        assert answer.header("connection") == "close"
        if script.load_may_end is not None:
            script.load_may_end.set()  # the host waits for what it has begun to load


def test_a_shutdown_without_requests_is_immediate(serve_short) -> None:
    served = serve_short({"a": quick_script()})
    warm(served, "a")
    with wire(served) as silent, wire(served, infer("a")) as used, wire(served, head("/v2", method="GET")) as plain:
        assert used.must().status == plain.must().status == 200
        shut_down(served)
        assert silent.answer() is used.answer() is plain.answer() is None


def test_an_end_that_was_asked_for_waits_for_nothing(serve_short) -> None:
    served = serve_short({"a": quick_script()})
    served.eventually(lambda _: served.server.started)
    served.server.end()
    served.thread.join(10)
    assert not served.thread.is_alive()


def test_the_date_in_answers_follows_the_clock(serve_short, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_short({"a": quick_script()})
    warm(served, "a")
    monkeypatch.setattr(drain, "time", SimpleNamespace(time=lambda: 784111777.5))
    with wire(served) as connection:

        def dated(_: object) -> bool:
            connection.send(infer("a"))
            return connection.must().header("date") == "Sun, 06 Nov 1994 08:49:37 GMT"

        served.eventually(dated)
