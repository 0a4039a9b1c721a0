"""Every stage of a request ends by its deadline; what cannot be stopped is counted until it ends."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from served import Served, error_of, fake_request

from modelhost.runtime.fake import FakeScript

PATHS = ["/v2/models/a/infer", "/v1/models/a:predict"]
SHORT = {"request_timeout_s": 0.05}
#: Enough for all but what never ends, on a busy machine too.
ENOUGH = {"request_timeout_s": 0.5}


def body_for(path: str, numbers: int = 2) -> bytes:
    data = [1.0] * numbers
    if path.endswith(":predict"):
        return json.dumps({"inputs": {"x": data}}).encode()
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [numbers], "data": data}]}).encode()


def deaf(**more: Any) -> FakeScript:
    return FakeScript(run_may_end=threading.Event(), is_deaf=True, **more)


def held_bytes(served: Served) -> int:
    return served.on_loop(lambda: served.app.infer.inference.budget.used_bytes)


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_does_not_answer_is_503_timeout(serve_fake, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served, may_end = serve_fake({"a": FakeScript()}, server=SHORT), threading.Event()
    inspect = served.host.runtime.inspect

    def slow(*arguments: Any) -> Any:
        assert may_end.wait(30)
        return inspect(*arguments)

    monkeypatch.setattr(served.host.runtime, "inspect", slow)
    try:
        body = error_of(served.post(path, body_for(path)), 503)
        assert body["code"] == "timeout"
        assert body["error"].startswith("receiving or decoding the request did not finish within")
        assert 0.04 < body["waited_s"] < 10
    finally:
        may_end.set()
    served.eventually(lambda _: served.post(path, body_for(path)).status_code == 200)


@pytest.mark.parametrize("path", PATHS)
def test_a_body_whose_decoding_finds_no_thread_in_time_is_503_and_leaves_the_queue(serve_fake, path: str) -> None:
    busy = deaf()
    served = serve_fake({"busy": busy, "a": FakeScript()}, server=ENOUGH | {"run_threads": 1})
    assert served.post("/v2/repository/models/busy/load").status_code == 200
    running = served.later(served.infer, "busy")
    assert busy.run_started.wait(10)
    body = error_of(served.post(path, body_for(path, 40_000)), 503)
    assert body["error"].startswith("receiving or decoding the request did not finish within")
    assert error_of(running.result(), 503)["error"].startswith("the run did not finish within")
    found = served.eventually(lambda snapshot: snapshot.in_flight == 1)
    assert [model.leases for model in found.models if model.name == "busy"] == [1]
    assert busy.run_may_end is not None
    busy.run_may_end.set()
    served.eventually(lambda snapshot: snapshot.in_flight == 0)
    assert held_bytes(served) == 0


@pytest.mark.parametrize("path", PATHS)
def test_a_run_that_cannot_be_stopped_is_answered_in_time_and_counts_until_it_ends(serve_fake, path: str) -> None:
    script = deaf(run_bytes=10 << 20)
    served = serve_fake({"a": script}, server=ENOUGH)
    assert served.post("/v2/repository/models/a/load").status_code == 200
    body = error_of(served.post(path, body_for(path, 20_000)), 503)
    assert body["error"].startswith("the run did not finish within")
    found = served.snapshot()
    assert (found.in_flight, found.models[0].leases) == (1, 1)
    assert served.on_loop(lambda: served.host.pool.activations.claimed_bytes) > 0
    assert held_bytes(served) >= 20_000 * 4  # its tensors
    assert script.run_may_end is not None
    script.run_may_end.set()
    served.eventually(lambda snapshot: snapshot.in_flight == 0 and snapshot.models[0].leases == 0)
    assert held_bytes(served) == 0
    assert served.on_loop(lambda: served.host.pool.activations.claimed_bytes) == 0


def test_requests_that_are_late_before_they_begin_leave_the_queue_to_others(serve_fake) -> None:
    busy = deaf()
    served = serve_fake({"busy": busy, "a": FakeScript()}, server={"run_threads": 1, "max_queue": 4})
    running = served.later(served.infer, "busy")
    assert busy.run_started.wait(10)
    late = [served.later(served.infer, "a", fake_request(timeout=20_000)) for _ in range(3)]
    assert {error_of(task.result(), 503)["code"] for task in late} == {"timeout"}
    served.eventually(lambda snapshot: snapshot.in_flight == 1)
    waiting = served.later(served.infer, "a")  # which would be refused if they were still there
    served.eventually(lambda snapshot: snapshot.in_flight == 2)
    assert busy.run_may_end is not None
    busy.run_may_end.set()
    assert (running.result().status_code, waiting.result().status_code) == (200, 200)
