"""A model that fits only once: whichever process of the host is asked, the one that holds it answers.

Two hosts on one machine's memory and one board, each on a thread of this process.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from rpc_client import client_of, fake_raw, floats, raw, refused
from served import Served, error_of, fake_host, fake_request, head, serve
from wire import ROOMY, SMALL, binary, infer, infer_binary, nothing_held, numbers, used_bytes, wire

from modelhost.api.accepting import reserve
from modelhost.api.handover import PATH, HandOver
from modelhost.errors import RunFailed
from modelhost.memory.board import Board, Seat
from modelhost.runtime.fake import FakeMemory, FakeScript

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork")

MB = 1 << 20
LARGE_MB = 80


@dataclass
class Pair:
    """`one` holds what is asked for, `other` is asked."""

    one: Served
    other: Served
    scripts: tuple[dict[str, FakeScript], dict[str, FakeScript]]
    ends: list[ExitStack]

    def hold(self, name: str = "a") -> None:
        assert self.one.infer(name).status_code == 200

    @property
    def handed_over(self) -> int:
        elsewhere = self.other.app.infer.inference.elsewhere
        assert isinstance(elsewhere, HandOver)
        return elsewhere.handed_over

    def end_one(self) -> None:
        self.ends[0].close()


def large(**more: Any) -> FakeScript:
    return FakeScript(resident_bytes=LARGE_MB * MB, **more)


@contextmanager
def pair(
    directory: Path, *, first: FakeScript | None = None, rpc: bool = False, **sections: dict[str, Any]
) -> Iterator[Pair]:
    """`rpc`: over gRPC too; each on a port of its own, so that it is known who is asked."""
    machine, private = FakeMemory(), [_private() for _ in range(2)]
    board = Board(2, [end.getsockname() for end in private])
    board.baseline_bytes = machine.baseline_bytes
    scripts = {"a": first or large()}, {"a": large()}
    ends, served = [ExitStack(), ExitStack()], []
    with ends[1], ends[0]:
        for number in range(2):
            seat = Seat(board, number)
            seat.sit()
            more = sections
            if rpc:
                port = ends[number].enter_context(reserve("127.0.0.1", 0, is_shared=True)).getsockname()[1]
                more = {**sections, "server": {**sections.get("server", {}), "grpc_port": port}}
            host = fake_host(directory, scripts[number], machine=machine, siblings=seat, **more)
            served.append(ends[number].enter_context(serve(host, private=private[number])))
        found = Pair(served[0], served[1], scripts, ends)
        yield found
        for one in served:
            if one.thread.is_alive():
                nothing_held(one)


def _private() -> socket.socket:
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    end.bind("")
    end.listen()
    return end


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """For what leaves nothing behind."""
    with pair(tmp_path_factory.mktemp("handover"), **ROOMY) as found:
        found.hold()
        yield found


def counts(served: Served) -> tuple[int, int, int]:
    """Requests answered, their rows, and runs, of the process alone."""
    found = served.http.get("/v2/models/a/stats", headers={"x-modelhost-alone": "1"}).json()["model_stats"][0]
    return found["inference_stats"]["success"]["count"], found["inference_count"], found["execution_count"]


def test_the_one_that_holds_it_answers_and_it_counts_once(shared: Pair) -> None:
    one, other = counts(shared.one), counts(shared.other)
    before = shared.handed_over
    for _ in range(3):
        answer = shared.other.infer("a", fake_request() | {"id": "mine"})
        assert answer.status_code == 200
        assert answer.json()["outputs"][0]["data"] == [2, 4]
        assert (answer.json()["id"], answer.json()["model_version"]) == ("mine", "1")
    assert shared.handed_over == before + 3
    assert shared.scripts[1]["a"].loads == 0
    assert counts(shared.one) == (one[0], one[1], one[2] + 3), "it ran them, and did not count them"
    assert counts(shared.other)[0] == other[0] + 3
    whole = shared.one.get("/v2/models/a/stats").json()["model_stats"][0]["inference_stats"]
    assert whole["success"]["count"] >= 3
    assert whole["compute_infer"]["ns"] > 0
    assert whole["fail"]["count"] == 0
    assert f'modelhost_handed_over_total{{worker="1"}} {shared.handed_over}\n' in shared.one.get("/metrics").text


def test_in_every_form(shared: Pair) -> None:
    predicted = shared.other.post("/v1/models/a:predict", {"instances": [1.0, 2.0]})
    assert predicted.json() == {"predictions": [2.0, 4.0]}
    values = numbers(6 * MB)  # of a room of 24 MB, half of which is not there twice
    body, length = binary(values)
    with wire(shared.other) as client:
        for _ in range(2):
            client.send(
                head(
                    "/v2/models/a/infer", f"Content-Length: {len(body)}", f"Inference-Header-Content-Length: {length}"
                ),
                body,
            )
            np.testing.assert_array_equal(client.must().raw, values * 2)
    text = shared.other.infer(
        "a", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [100_000], "data": [1.5] * 100_000}]}
    )
    assert text.json()["outputs"][0]["data"] == [3.0] * 100_000
    empty = shared.other.infer("a", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0], "data": []}]})
    assert empty.json()["outputs"][0]["data"] == []


def test_over_grpc_it_is_the_same_host(tmp_path: Path) -> None:
    with pair(tmp_path, rpc=True, **ROOMY) as both, client_of(both.one) as one, client_of(both.other) as other:
        one.call("RepositoryModelLoad", model_name="a")
        assert floats(other.infer(fake_raw())) == [2, 4]
        large = numbers(1 << 20)
        assert floats(other.infer(raw("a", "FP32", large))) == (large * 2).tolist()
        answers = other.stream(iter([fake_raw(), fake_raw("nosuch"), fake_raw()]))
        assert [answer.error_message == "" for answer in answers] == [True, False, True]
        assert both.handed_over == 4
        assert refused(lambda: other.infer(fake_raw(timeout=-1)))[0] is grpc.StatusCode.INVALID_ARGUMENT
        for asked in (one, other):
            assert asked.call("ModelStatistics", name="a").model_stats[0].inference_count == 3 * 2 + large.size
            assert [(entry.name, entry.state) for entry in asked.call("RepositoryIndex").models] == [("a", "READY")]
        other.call("RepositoryModelLoad", model_name="a")
        assert both.scripts[1]["a"].loads == 0, "it is loaded, and fits only once"
        other.call("RepositoryModelUnload", model_name="a")
        assert both.one.snapshot().models == ()


def test_what_is_wrong_with_a_run_is_told_as_it_is(tmp_path: Path) -> None:
    with pair(tmp_path, first=large(run_error=RunFailed("a: no such number"))) as both:
        assert both.one.infer("a").status_code == 500
        error = error_of(both.other.infer("a"), 500)
        assert (error["code"], error["error"]) == ("run_failed", "a: no such number")
        found = both.other.http.get("/v2/models/a/stats", headers={"x-modelhost-alone": "1"}).json()["model_stats"][0]
        assert found["inference_stats"]["fail"]["count"] == 1


def test_what_is_known_to_be_short_is_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pair(tmp_path, first=large(run_footprint=SMALL)) as both:
        both.hold()
        before = counts(both.one)

        def know() -> None:
            slot = both.one.host.pool.resident(("a", None))
            assert slot is not None
            assert slot.runs is not None
            for _ in range(2):
                slot.runs.demand.look({"x": np.ones(2, np.float32)}).note(1000, 8)

        both.one.on_loop(know)
        monkeypatch.setattr(both.one.app.infer.inference, "run_here", None)
        assert both.other.infer("a").json()["outputs"][0]["data"] == [2, 4]
        assert counts(both.one) == (before[0], before[1], before[2] + 1)


def test_its_time_is_the_clients(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        both.hold()
        both.scripts[0]["a"].run_may_end = stopped = threading.Event()
        assert error_of(both.other.infer("a", fake_request(timeout=30_000)), 503)["code"] == "timeout"
        assert stopped.is_set()


def test_a_client_that_leaves_ends_its_run_there(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        both.hold()
        both.scripts[0]["a"].run_may_end = stopped = threading.Event()
        with wire(both.other, infer("a")):
            both.one.eventually(lambda snapshot: snapshot.in_flight == 1)
        assert stopped.wait(10)


def test_when_it_has_let_go_of_it_or_has_ended_the_one_that_is_asked_loads_it(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        both.hold()
        assert both.other.infer("a").status_code == 200
        both.end_one()
        assert both.other.infer("a").json()["outputs"][0]["data"] == [2, 4]
        assert both.scripts[1]["a"].loads == 1


@pytest.mark.parametrize(("size_bytes", "code"), [(8, "insufficient_memory"), (1 << 20, "worker_restarting")])
def test_one_that_ends_in_the_middle_takes_large_tensors_with_it_and_small_ones_are_asked_for_again(
    tmp_path: Path, size_bytes: int, code: str
) -> None:
    with pair(tmp_path, **ROOMY) as both:
        both.hold()
        both.scripts[0]["a"].run_may_end = threading.Event()
        with wire(both.other, infer_binary("a", numbers(size_bytes))) as client:
            both.one.eventually(lambda snapshot: snapshot.in_flight == 1)
            server = both.one.server

            def cut() -> None:
                for connection in server._connections():
                    connection.transport.abort()

            both.one.on_loop(cut)
            answer = client.must()
        assert (answer.status, answer.json["code"]) == (503, code)
        assert both.other.infer("a").status_code == 200, "it is there all the same"


def test_a_load_is_done_where_one_of_them_has_it(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        both.hold()
        assert both.other.post("/v2/repository/models/a/load", {}).status_code == 200
        assert both.scripts[1]["a"].loads == 0


def test_nobody_else_may_ask_so(shared: Pair) -> None:
    for headers in ({}, {"x-modelhost-board": "0" * 64}):
        assert shared.one.post(PATH, b"", headers=headers).status_code == 404


def test_a_host_of_one_process_has_no_such_door(tmp_path: Path) -> None:
    with serve(fake_host(tmp_path, {"a": FakeScript()})) as alone:
        assert alone.post(PATH, b"").status_code == 404
        assert used_bytes(alone) == 0
        assert isinstance(alone.infer("a"), httpx.Response)
