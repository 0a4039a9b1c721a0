"""What clients of a cluster see: the host's own answers to the byte, whoever gives them; none is lost in vain."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import FakeCluster, asked_for
from served import fake_request

from modelhost.cluster import attempts
from modelhost.cluster.replica import respond
from modelhost.cluster.routing import by_hash
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio

MB = 1 << 20
INFER = "/v2/models/m/infer"
HOME, SECOND, THIRD = by_hash("m", "abc")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAUSE_S", 0.0)


def cluster(path: Path, *, names: str = "abc", **sections: Any) -> FakeCluster:
    return FakeCluster(path, {name: {"m": FakeScript()} for name in names}, **sections)


def binary_request() -> tuple[bytes, tuple[bytes, bytes]]:
    head = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    return text + struct.pack("<2f", 1, 2), (b"inference-header-content-length", b"%d" % len(text))


async def test_binary_tensors_pass_as_they_are_and_so_does_the_answer(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        body, header = binary_request()
        status, headers, answer = await found.request("POST", INFER, body, (header,))
        own = await respond(found.replicas[HOME]._app, asked_for("POST", INFER, body, (header,)), body)
    length = int(headers[b"inference-header-content-length"])
    assert (status, struct.unpack("<2f", answer[length:])) == (200, (2, 4))
    assert (status, answer) == (own[0], own[2])
    assert {*headers.items()} == {(name, value) for name, value in own[1] if name != b"x-request-id"}


async def test_a_model_stays_where_it_is(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        for _ in range(5):
            assert (await found.request("POST", INFER, fake_request()))[0] == 200
        assert found.asked == [HOME] * 5
        assert [name for name in "abc" if found.replicas[name].standing()["models"]] == [HOME]


async def test_a_refusal_for_memory_is_tried_elsewhere_before_the_client_sees_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        # Not at warning, which routing would see: what is there would do for another model, and not for this one.
        machine = found.replicas[HOME].host.memory.probe
        found.replicas[HOME].host.memory.ledger.reserve("somebody else", 125 * MB)
        assert machine.limit_bytes == 256 * MB
        status, _, answer = await found.request("POST", INFER, fake_request())
    assert (status, json.loads(answer)["outputs"][0]["data"]) == (200, [2, 4])
    assert found.asked == [HOME, SECOND]


async def test_where_all_refuse_the_client_gets_the_figures_and_the_cluster_wants_another_replica(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as found:
        for replica in found.replicas.values():
            replica.host.memory.ledger.reserve("somebody else", 125 * MB)
        status, headers, answer = await found.request("POST", INFER, fake_request())
        said = json.loads(answer)
        assert (status, said["code"]) == (503, "insufficient_memory")
        assert said["needed_bytes"] > said["available_bytes"]
        assert headers[b"retry-after"] == b"2"
        assert sorted(found.asked[:3]) == ["a", "b", "c"]
        assert sum(replica.demand()["refused_loads"] for replica in found.replicas.values()) == 1


async def test_a_request_whose_replica_is_lost_is_answered_by_another(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        found.lost = {HOME, SECOND}
        status, _, _ = await found.request("POST", INFER, fake_request())
    assert (status, found.asked) == (200, [HOME, SECOND, THIRD])


async def test_a_request_that_loses_one_replica_after_another_is_given_up(tmp_path: Path) -> None:
    async with cluster(tmp_path, names="abcdef") as found:
        found.lost = set("abcdef")
        status, _, answer = await found.request("POST", INFER, fake_request())
        assert len(found.replicas) == 6 - attempts.MOST_LOST
    assert (status, json.loads(answer)["code"]) == (502, "worker_crashed")


async def test_a_replica_that_cannot_be_reached_is_no_loss_as_long_as_another_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as found:
        ask, asks, most = found.ask, [], attempts.MOST_UNREACHED

        async def seldom(*asked: Any) -> Any:
            asks.append(asked)
            if len(asks) % most:
                raise attempts.ReplicaLost("no route", is_gone=False)
            return await ask(*asked)

        monkeypatch.setattr(found, "ask", seldom)
        assert (await found.request("POST", INFER, fake_request()))[0] == 200
        assert len(asks) == most
        monkeypatch.setattr(attempts, "MOST_UNREACHED", most - 1)
        assert (await found.request("POST", INFER, fake_request()))[0] == 502


async def test_a_request_ends_with_its_deadline_whoever_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path, server={"request_timeout_s": 0.05}) as found:

        async def for_ever(*_: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(found, "ask", for_ever)
        status, _, answer = await found.request("POST", INFER, fake_request())
    assert (status, json.loads(answer)["code"]) == (503, "timeout")


async def test_a_replica_that_drains_is_asked_for_nothing_new(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        found.replicas[HOME].host.drain()
        assert (await found.request("POST", INFER, fake_request()))[0] == 200
        assert (await found.request("GET", "/v2/health/ready"))[0] == 200
        assert found.asked[0] == SECOND


async def test_what_the_client_did_wrong_is_said_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        status, _, answer = await found.request("POST", INFER, b"{")
        assert (status, json.loads(answer)["code"]) == (400, "invalid_request")
        status, _, answer = await found.request("POST", "/v2/models/nobody/infer", fake_request())
        assert (status, json.loads(answer)["code"]) == (404, "model_not_found")
        assert len(found.asked) == 2


async def test_a_body_that_no_replica_would_take_is_not_passed_on(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        status, _, answer = await found.request("POST", INFER, bytes(20 * MB))
        assert (status, json.loads(answer)["code"]) == (413, "request_too_large")
        assert found.asked == []
        assert found.ingress._bodies.used_bytes == 0


async def test_what_is_everybodys_is_asked_of_all(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        await found.request("POST", INFER, fake_request())
        memory = json.loads((await found.request("GET", "/memory"))[2])
        assert memory["limit_bytes"] == 3 * 256 * MB
        assert [(one["name"], one["replica"]) for one in memory["models"]] == [("m", HOME)]
        assert sorted(one["replica"] for one in memory["replicas"]) == ["a", "b", "c"]
        statistics = json.loads((await found.request("GET", "/v2/models/m/stats"))[2])
        assert [one["execution_count"] for one in statistics["model_stats"]] == [1]
        index = json.loads((await found.request("POST", "/v2/repository/index", {}))[2])
        assert [(one["name"], one["state"]) for one in index] == [("m", "READY")]
        assert json.loads((await found.request("POST", "/v2/repository/index", {"limit": 1}))[2]) == index
        assert json.loads((await found.request("POST", "/v2/repository/index", {"limit": 1, "after": "m"}))[2]) == []
        page = (await found.request("GET", "/metrics"))[2].decode()
        limits = [line for line in page.splitlines() if line.startswith("modelhost_memory_limit_bytes{")]
        assert len(limits) == 3
        assert all('replica="' in line for line in limits)
        monitor = json.loads((await found.request("GET", "/monitor"))[2])
        assert monitor["memory"]["limit_bytes"] == 3 * 256 * MB
        assert (await found.request("POST", "/v2/repository/models/m/unload", {}))[0] == 200
        assert [found.replicas[name].standing()["models"] for name in "abc"] == [[], [], []]
        assert (await found.request("GET", "/monitor/stream"))[0] == 501


async def test_a_load_is_done_where_the_model_lives(tmp_path: Path) -> None:
    async with cluster(tmp_path) as found:
        assert (await found.request("POST", "/v2/repository/models/m/load", {}))[0] == 200
        assert (await found.request("POST", INFER, fake_request()))[0] == 200
        assert found.asked == [HOME, HOME]


async def test_a_client_that_leaves_ends_what_is_asked_for_it_and_nobody_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(tmp_path) as found:
        asks, is_asked = [], asyncio.Event()

        async def for_ever(*_: object) -> None:
            asks.append(asyncio.get_running_loop().create_future())
            is_asked.set()
            await asks[-1]

        monkeypatch.setattr(found, "ask", for_ever)
        body = json.dumps(fake_request()).encode()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(_: object) -> None:
            raise AssertionError("nobody is there")

        request = asyncio.create_task(found.ingress(asked_for("POST", INFER, body).scope(), receive, send))
        await is_asked.wait()
        request.cancel()  # as Serve does
        with pytest.raises(asyncio.CancelledError):
            await request
        assert [ask.cancelled() for ask in asks] == [True]
        assert found.ingress._bodies.used_bytes == 0


async def test_a_replica_ends_a_request_whose_client_has_left_as_it_does_on_a_socket(tmp_path: Path) -> None:
    script = FakeScript(run_may_end=threading.Event())
    async with FakeCluster(tmp_path, {"a": {"m": script}}) as found:
        body, replica = json.dumps(fake_request()).encode(), found.replicas["a"]
        request = asyncio.create_task(replica.answer(asked_for("POST", INFER, body), body))
        assert await asyncio.to_thread(script.run_started.wait, 10)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        script.run_may_end.set()
        page = (await found.request("GET", "/metrics"))[2].decode()
    assert 'outcome="client_gone"' in page
