"""Several requests on one connection before the first is answered: answers in order, none lost, none too many."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from served import fake_request, head
from wire import Wire, counting, infer, nothing_held, post, quick_script, warm, wire

from modelhost.api.heads import MAX_HEAD_BYTES

pytestmark = pytest.mark.timeout(60)

BODY = json.dumps(fake_request()).encode()
LIVE = head("/v2/health/live", method="GET")


def chunked(body: bytes = BODY) -> bytes:
    return head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def statuses(connection: Wire, count: int) -> list[int]:
    return [connection.must().status for _ in range(count)]


def test_many_requests_in_one_segment_are_answered_in_order(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    warm(served, "a")
    with wire(served, b"".join(infer("a", value=number) for number in range(200))) as connection:
        assert [connection.must().data for _ in range(200)] == [[2.0 * number] for number in range(200)]
    nothing_held(served)


def test_requests_of_every_kind_in_one_segment_are_answered_in_order(serve_fake) -> None:
    """Loaded or not, in place or on a thread, chunked, refused, plain routes: whatever is first."""
    runs, loads = threading.Event(), threading.Event()
    scripts = {
        "quick": quick_script(),
        "running": quick_script(),
        "cold": quick_script(load_may_end=loads),
        "a": quick_script(),
    }
    served = serve_fake(scripts)
    warm(served, "quick", "a")
    kinds: list[tuple[bytes, Any]] = [
        (infer("quick", value=1), [2]),
        (infer("running", value=2), [4]),
        (LIVE, {"live": True}),
        (infer("cold", value=3), [6]),
        (chunked(), [2, 4]),
        (post("/v2/models/nowhere/infer", BODY), "model_not_found"),
        (post("/v2/models/quick/infer", b"{"), "invalid_request"),
        (infer("quick", value=4, size=80_000), [8]),
    ]
    for first in range(len(kinds)):
        turned = kinds[first:] + kinds[:first]
        runs.clear()
        loads.clear()
        served.post("/v2/repository/models/cold/unload")
        served.post("/v2/repository/models/running/unload")
        scripts["running"].run_may_end = None
        warm(served, "running", runs=1)  # it has not shown yet to be short
        scripts["running"].run_may_end = runs
        with wire(served, b"".join(request for request, _ in turned)) as connection:
            served.settle()
            runs.set()
            loads.set()
            for _, wanted in turned:
                answer = connection.must()
                if isinstance(wanted, list):
                    assert answer.data == wanted
                elif isinstance(wanted, dict):
                    assert answer.json == wanted
                else:
                    assert answer.json["code"] == wanted
            connection.send(infer("quick", value=9))
            assert connection.must().data == [18]
    nothing_held(served)


def test_what_waits_behind_a_run_on_a_thread_is_not_answered_before_it(serve_fake) -> None:
    script = quick_script()
    served = serve_fake({"a": script, "quick": quick_script()})
    warm(served, "quick")
    warm(served, "a", runs=1)
    script.run_may_end = threading.Event()
    with wire(served, infer("a") + infer("quick", value=5) + LIVE) as connection:
        served.eventually(lambda snapshot: snapshot.in_flight == 1)
        served.settle(20)
        connection.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.socket.recv(1)
        connection.socket.settimeout(10)
        script.run_may_end.set()
        assert (connection.must().data, connection.must().data) == ([2], [10])
        assert connection.must().json == {"live": True}
    nothing_held(served)


@pytest.mark.parametrize("before", [0, 1, 2])
def test_nothing_behind_a_request_that_closes_is_answered(serve_fake, before: int) -> None:
    script = quick_script()
    served = serve_fake({"a": script})
    warm(served, "a")
    segment = infer("a") * before + infer("a", "Connection: close", value=7) + infer("a", value=8) * 3
    with wire(served, segment) as connection:
        answers = connection.answers()
    assert [answer.data for answer in answers] == [[2]] * before + [[14]]
    assert answers[-1].header("connection") == "close"
    nothing_held(served)
    assert script.runs == 3 + before + 1


@pytest.mark.parametrize("first", [infer("a"), chunked(), LIVE, infer("a", size=70_000)])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (head("/v2/models/a/infer", "Content-Length: x"), 400),
        (head("/v2", f"X-Long: {'a' * 40_000}"), 431),
        (head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"2\r\n{}\r\nzz\r\n", 400),
        (head("a:1", method="CONNECT"), 400),
    ],
)
def test_a_bad_request_is_refused_in_its_turn_and_ends_the_connection(
    serve_fake, first: bytes, bad: bytes, status: int
) -> None:
    script = quick_script()
    served = serve_fake({"a": script, "slow": quick_script()})
    warm(served, "a")
    with wire(served, first + infer("a") + bad + infer("a")) as connection:
        answers = connection.answers()
    assert [answer.status for answer in answers] == [200, 200, status]
    assert answers[-1].header("connection") == "close"
    with wire(served, first + bad + infer("a")) as connection:
        assert [answer.status for answer in connection.answers()] == [200, status]
    nothing_held(served)
    assert script.violations == []


@pytest.mark.parametrize("is_loaded", [True, False])
def test_a_bad_request_behind_one_that_takes_long_waits_for_it(serve_fake, is_loaded: bool) -> None:
    script = quick_script()
    served = serve_fake({"a": script})
    if is_loaded:
        warm(served, "a", runs=1)
    script.run_may_end = threading.Event()
    script.run_started.clear()
    with wire(served, infer("a")) as connection:
        assert script.run_started.wait(10)
        connection.send(b"nonsense\r\n\r\n")
        served.settle(10)
        connection.send(infer("a") * 3)  # not looked at
        served.settle(10)
        script.run_may_end.set()
        assert [answer.status for answer in connection.answers()] == [200, 400]
    nothing_held(served)
    assert script.runs == (2 if is_loaded else 1)


def test_a_body_that_is_broken_while_the_application_reads_it_has_one_answer(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    with wire(served, head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"2\r\n{") as connection:
        served.settle()
        connection.send(b" \r\nzz\r\n")
        assert [answer.status for answer in connection.answers()] == [400]
    nothing_held(served)


def test_a_line_end_before_the_first_request_is_nothing(serve_fake, caplog) -> None:
    served = serve_fake({})
    with wire(served, b"\r\n") as connection:
        served.settle()
        connection.send(LIVE)
        assert connection.must().status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_what_the_application_says_after_the_refusal_of_its_body_goes_nowhere(serve_fake, caplog) -> None:
    served = serve_fake({})
    with wire(served, head("/v2/nowhere", "Transfer-Encoding: chunked") + b"2\r\n{}\r\nzz\r\n") as connection:
        assert [answer.status for answer in connection.answers()] == [400]
    served.settle()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_client_that_leaves_ends_what_is_running_and_starts_nothing_that_waits(serve_fake) -> None:
    script = quick_script(run_may_end=threading.Event())  # set by the cancellation only
    other = quick_script()
    served = serve_fake({"a": script, "other": other})
    warm(served, "other")
    for requests in (infer("a") + infer("other") * 3, infer("other") + infer("a") + infer("other") * 3):
        runs, script.run_may_end = other.runs, threading.Event()
        script.run_started.clear()
        with wire(served, requests):
            assert script.run_started.wait(10)
        nothing_held(served)
        assert other.runs <= runs + 1
    assert script.violations == []


# --- heads ---------------------------------------------------------------------------------------------------


def padded(size_bytes: int, *, method: str = "GET") -> bytes:
    """A request whose target and headers take so many bytes, as they are counted: two for `: `, two for the end."""
    target, lines = "/v2/health/live", ["Host: test", "X-Long: "]
    used = len(target) + sum(len(line) + 2 for line in lines)
    return head(target, "X-Long: " + "a" * (size_bytes - used), method=method)


@pytest.mark.parametrize("pieces", [1, 2, 5])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_head_is_bounded_however_it_comes(serve_fake, pieces: int, is_first: bool) -> None:
    served = serve_fake({"a": quick_script()})
    warm(served, "a")
    for size, status in ((MAX_HEAD_BYTES - 100, 200), (MAX_HEAD_BYTES + 1, 431), (40_000, 431)):
        request = (b"" if is_first else infer("a")) + padded(size)
        step = -(-len(request) // pieces)
        with wire(served) as connection:
            for begin in range(0, len(request), step):
                connection.send(request[begin : begin + step])
                served.settle()
            if not is_first:
                assert connection.must().data == [2]
            assert connection.must().status == status
            if status == 431:
                assert connection.answer() is None


def test_a_long_target_is_bounded_too(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    with wire(served, head(f"/v2/{'a' * 33_000}", method="GET")) as connection:
        assert [answer.status for answer in connection.answers()] == [431]


def test_a_head_that_follows_a_large_body_in_one_segment_is_no_long_head(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    segment = infer("a", size=60_000) + padded(MAX_HEAD_BYTES - 200)
    with wire(served, segment[:-1]) as connection:
        assert connection.must().data == [2]
        connection.send(segment[-1:])
        assert connection.must().json == {"live": True}


def test_requests_in_pieces_of_any_size_take_the_same_way(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    warm(served, "a")
    request = infer("a", value=3)
    with counting(served) as ways, wire(served) as connection:
        for step in (1, 2, 7, 50):
            for begin in range(0, len(request), step):
                connection.send(request[begin : begin + step])
            assert connection.must().data == [6]
        assert (ways.quick, ways.application) == (4, 0)
