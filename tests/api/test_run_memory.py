"""Memory of runs on the wire: what cannot fit, what may come again, and outputs that wait for their answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from served import MB, Served, error_of, head, tensor

from modelhost import errors
from modelhost.api import infer
from modelhost.api.errors import respond
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

PER_ROW = RunFootprint((Term(20 * MB, ("rows",)),), {"rows": (("x", 0),)}, rows="rows")

#: The answer to this many numbers is encoded when the run has ended, with a claim of its own.
LARGE = 80_000


def request(rows: int) -> dict[str, Any]:
    return tensor("x", "FP32", [rows], [0.5] * rows)


def claimed_bytes(served: Served) -> int:
    return served.on_loop(lambda: served.host.pool.activations.claimed_bytes)


def test_a_run_that_can_never_fit_is_413_with_the_largest_batch_and_the_next_one_is_answered(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(run_footprint=PER_ROW)})

    response = served.infer("a", request(64))

    body = error_of(response, 413)
    needs = "a:1: 64 rows need 1280.0 MB for activations"
    assert body == {
        "error": f"{needs}, memory.activation_ceiling is 64.0 MB; at most 3 rows fit",
        "code": "run_too_large",
        "needed_bytes": 1280 * MB,
        "available_bytes": 64 * MB,
        "max_rows": 3,
    }
    assert "retry-after" not in response.headers
    assert served.infer("a", request(body["max_rows"])).status_code == 200
    assert served.snapshot().models[0].leases == 0


def test_a_run_that_the_arena_refuses_alone_is_413_and_the_next_one_is_answered(serve_fake) -> None:
    script = FakeScript(run_bytes=70 * MB)
    served = serve_fake({"a": script})
    served.host.runtime.memory.arena_bytes = 64 * MB
    body = error_of(served.infer("a"), 413)
    assert (body["code"], body["needed_bytes"], body["max_rows"]) == ("run_too_large", 70 * MB, None)
    assert body["error"].endswith("send fewer rows at once")
    script.run_bytes = 1 * MB
    assert served.infer("a").status_code == 200


def test_what_others_leave_no_room_for_may_come_again_soon() -> None:
    response = respond(errors.ActivationsFull("full", needed_bytes=2, available_bytes=1))
    body = json.loads(bytes(response.body))
    assert response.status_code == 503
    assert (body["code"], body["needed_bytes"], body["available_bytes"]) == ("insufficient_memory", 2, 1)
    assert response.headers["retry-after"] == str(body["retry_after_s"])


def test_a_full_line_for_memory_is_503_overloaded(serve_fake) -> None:
    footprint = RunFootprint((Term(60 * MB),), {})
    script = FakeScript(run_footprint=footprint, run_may_end=threading.Event())
    served = serve_fake({"a": script}, server={"max_queue": 1})
    running = served.later(served.infer, "a")
    assert script.run_started.wait(10)
    waiting = served.later(served.infer, "a")
    served.eventually(lambda _: served.host.pool.activations.waiting == 1)
    response = served.infer("a")
    body = error_of(response, 503)
    assert (body["code"], body["queue"]) == ("overloaded", "the queue for memory of runs")
    assert "retry-after" in response.headers
    script.run_may_end.set()
    assert {running.result().status_code, waiting.result().status_code} == {200}


# --- outputs that wait -------------------------------------------------------------------------------------


def watch_encoding(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> None:
    """Calls `look` on the inference thread whenever an answer is about to be encoded."""
    encode = infer.encode_response

    def watched(**arguments: Any) -> Any:
        look()
        return encode(**arguments)

    monkeypatch.setattr(infer, "encode_response", watched)


def test_outputs_of_a_large_answer_are_claimed_until_it_is_encoded(serve_fake, monkeypatch) -> None:
    served = serve_fake({"a": FakeScript(run_footprint=RunFootprint((Term(50 * MB),), {}))})
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((claimed_bytes(served), served.snapshot().models[0].leases))

    watch_encoding(monkeypatch, look)
    assert served.infer("a", request(LARGE)).status_code == 200
    assert seen == [(4 * LARGE, 0)]  # the outputs alone, and the model may leave
    assert claimed_bytes(served) == 0


def test_outputs_are_claimed_while_they_are_encoded_for_a_client_that_has_left(serve_fake, monkeypatch) -> None:
    served = serve_fake({"a": FakeScript()})
    begun, may_end = threading.Event(), threading.Event()

    def look() -> None:
        begun.set()
        assert may_end.wait(10)

    watch_encoding(monkeypatch, look)
    content = json.dumps(request(LARGE)).encode()
    with served.connect() as connection:
        connection.sendall(head("/v2/models/a/infer", f"Content-Length: {len(content)}") + content)
        assert begun.wait(10)
    served.eventually(lambda _: 'outcome="client_gone"' in served.get("/metrics").text)
    assert claimed_bytes(served) == 4 * LARGE
    may_end.set()
    served.eventually(lambda snapshot: snapshot.in_flight == 0)
    served.eventually(lambda _: served.host.pool.activations.claimed_bytes == 0)


def test_an_answer_that_cannot_be_encoded_leaves_no_claim(serve_fake, monkeypatch) -> None:
    served = serve_fake({"a": FakeScript()})

    def fail() -> None:
        raise errors.UnrepresentableOutput("no number")

    watch_encoding(monkeypatch, fail)
    assert served.infer("a", request(LARGE)).status_code == 400
    assert claimed_bytes(served) == 0


def test_an_answer_over_the_budget_leaves_no_claim(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_decoding_bytes": "2MB", "max_request_bytes": "1MB"})
    content = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [200_000], "parameters": {"binary_data_size": 800_000}}]}
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))}
    assert served.infer("a", content + bytes(800_000), headers=headers).status_code == 413
    assert claimed_bytes(served) == 0
