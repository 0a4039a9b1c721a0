"""A host of several processes, as its clients and its operator meet it: one port, one state, one limit."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from host_process import COMMAND, MODELS, HostProcess, environment, running_host
from sizes import FULL

from benchmarks.tracebacks import first_traceback
from modelhost.api.rpc.messages import METHODS, SERVICE
from modelhost.security.keys import new_key

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork")

WINE = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": [13.0] * 13}]}


class Client:
    """One connection, which stays with the process that accepted it."""

    def __init__(self, host: HostProcess) -> None:
        self._connection = http.client.HTTPConnection(host.address, timeout=30)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, headers)
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text[:1] in b"[{" else text.decode()

    def infer(self, model: str = "wine") -> int:
        return self.ask("POST", f"/v2/models/{model}/infer", WINE)[0]

    def close(self) -> None:
        self._connection.close()


def rpc_address(host: HostProcess) -> str:
    return next(line.rpartition(" ")[2] for line in host.banner if "gRPC:" in line)


class RpcClient:
    """One connection over gRPC; a new one is made soon where it is lost."""

    def __init__(self, host: HostProcess) -> None:
        options = (
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 20),
            ("grpc.min_reconnect_backoff_ms", 20),
            ("grpc.max_reconnect_backoff_ms", 100),
        )
        self._channel = grpc.insecure_channel(rpc_address(host), options=options)

    def call(self, method: str, **fields: Any) -> Any:
        asked, answered = METHODS[method]
        call = self._channel.unary_unary(f"/{SERVICE}/{method}", asked.SerializeToString, answered.FromString)
        return call(asked(**fields), timeout=30, wait_for_ready=True)

    def infer(self) -> str:
        contents = {"fp32_contents": [13.0] * 13}
        tensor = {"name": "measurements", "datatype": "FP32", "shape": [1, 13], "contents": contents}
        name: str = self.call("ModelInfer", model_name="wine", inputs=[tensor]).model_name
        return name

    def close(self) -> None:
        self._channel.close()


def rpc_count(client: RpcClient) -> int:
    count: int = client.call("ModelStatistics", name="wine").model_stats[0].inference_count
    return count


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    with running_host(
        tmp_path_factory.mktemp("together"), MODELS, "--workers", "2", "--memory-limit", "500MB", "--grpc-port", "0"
    ) as found:
        yield found


def workers(client: Client) -> dict[int, int]:
    """Returns the process of each worker."""
    return {row["worker"]: row["pid"] for row in client.ask("GET", "/monitor")[1]["host"]["workers"]}


def has_both(client: Client) -> bool:
    return len(workers(client)) == 2


def is_back(client: Client, gone: int) -> bool:
    """Whether another process sits where one was killed; whoever asks may be answered by nobody for a moment."""
    try:
        found = workers(client)
    except (OSError, http.client.HTTPException):
        client.close()
        return False
    return len(found) == 2 and gone not in found.values()


def eventually(condition: Any, *, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_connections_are_shared_out_and_everything_counts_for_the_host(host: HostProcess) -> None:
    clients = [Client(host) for _ in range(8)]
    before = clients[0].ask("GET", "/v2/models/wine/stats")[1]["model_stats"][0]["inference_count"]
    assert [client.infer() for client in clients * 3] == [200] * 24
    after = clients[0].ask("GET", "/v2/models/wine/stats")[1]["model_stats"][0]
    assert after["inference_count"] - before == 24
    assert sum(batch["compute_infer"]["count"] for batch in after["batch_stats"]) == after["execution_count"]
    alone = [
        client.ask("GET", "/v2/models/wine/stats", **{"x-modelhost-alone": "1"})[1]["model_stats"][0]["execution_count"]
        for client in clients
    ]
    assert len(set(workers(clients[0]).values())) == 2
    assert min(alone) > 0, "each has run some"
    memory = clients[0].ask("GET", "/memory")[1]
    assert {(row["name"], row["worker"]) for row in memory["models"]} >= {("wine", 0), ("wine", 1)}
    metrics = clients[0].ask("GET", "/metrics")[1]
    assert 'modelhost_loads_total{worker="0"}' in metrics
    assert 'modelhost_loads_total{worker="1"}' in metrics
    assert metrics.count("\nmodelhost_memory_usage_bytes ") == 1
    shown = clients[0].ask("GET", "/monitor")[1]
    row = next(row for row in shown["models"] if row["name"] == "wine")
    assert sorted(row["workers"]) == [0, 1]
    assert row["requests"] >= 24
    assert len({event["id"] for event in shown["events"]}) == len(shown["events"])
    parts = sum(shown["bar"][name] for name in ("host_bytes", "models_bytes", "loading_bytes", "activations_bytes"))
    assert parts == shown["memory"]["usage_bytes"]
    for client in clients:
        client.close()


def test_what_one_is_told_all_do(host: HostProcess) -> None:
    clients = [Client(host) for _ in range(4)]
    status, loaded = clients[0].ask("POST", "/v2/repository/models/digits/load", {})
    assert (status, loaded["state"]) == (200, "ready")
    held = clients[1].ask("GET", "/memory")[1]["models"]
    assert sorted(row["worker"] for row in held if row["name"] == "digits") == [0, 1]
    index = clients[2].ask("POST", "/v2/repository/index", {})[1]
    assert [(row["name"], row["state"]) for row in index if row["name"] == "digits"] == [("digits", "READY")]
    first = clients[2].ask("POST", "/v2/repository/index", {"limit": 2})[1]
    rest = clients[2].ask("POST", "/v2/repository/index", {"limit": len(index), "after": first[-1]["name"]})[1]
    assert len(first) == 2
    assert first + rest == index
    assert clients[3].ask("POST", "/v2/repository/models/digits/unload", {})[0] == 200
    assert not [row for row in clients[0].ask("GET", "/memory")[1]["models"] if row["name"] == "digits"]
    for client in clients:
        assert (
            client.ask("GET", "/v2/models/digits/ready")[0] == 400
            or client.ask("GET", "/v2/models/digits/ready")[0] == 503
        )
        client.close()
    clients = [Client(host)]
    assert clients[0].ask("POST", "/memory/cleanup", {})[0] == 200
    assert clients[0].ask("GET", "/memory")[1]["models"] == []
    assert clients[0].ask("POST", "/v2/repository/models/nosuch/load", {})[0] == 404
    clients[0].close()


def test_the_end_of_one_fails_what_it_was_answering_and_nothing_else(host: HostProcess) -> None:
    watcher = Client(host)
    eventually(lambda: has_both(watcher))
    outcomes: Counter[str] = Counter()
    ends = threading.Event()

    def ask() -> None:
        client = Client(host)
        while not ends.is_set():
            try:
                outcomes[str(client.infer())] += 1
            except (OSError, http.client.HTTPException):
                outcomes["lost"] += 1  # it was answered by the one that was killed; on a new connection it goes on
                client.close()
                client = Client(host)
        client.close()

    def call() -> None:
        client = RpcClient(host)
        while not ends.is_set():
            try:
                client.infer()
                outcomes["grpc"] += 1
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED), error
                outcomes["grpc lost"] += 1
        client.close()

    threads = [threading.Thread(target=one) for one in (ask, ask, call, call)]
    for thread in threads:
        thread.start()
    kills = 8 if FULL else 3  # of more in a row each waits longer for the next start
    for kill in range(kills):
        watcher.close()
        watcher = Client(host)
        eventually(lambda client=watcher: outcomes["200"] and outcomes["grpc"] and has_both(client))
        found = workers(watcher)
        victim = found[kill % 2]
        before = outcomes["200"], outcomes["grpc"]
        os.kill(victim, signal.SIGKILL)
        watcher.close()
        eventually(lambda before=before: outcomes["200"] > before[0] + 20 and outcomes["grpc"] > before[1] + 20)
        watcher = Client(host)
        eventually(lambda victim=victim, client=watcher: is_back(client, victim))
    ends.set()
    for thread in threads:
        thread.join(30)
    assert set(outcomes) <= {"200", "grpc", "lost", "grpc lost"}, outcomes
    assert outcomes["lost"] <= kills * 2, "only what the one that was killed was answering"
    assert outcomes["grpc lost"] <= kills * 4, "and of what was to be accepted by it"
    memory = watcher.ask("GET", "/memory")[1]
    assert memory["reserved_bytes"] == 0
    assert watcher.infer() == 200
    assert "was ended by SIGKILL; it is started again" in host.log
    watcher.close()


def test_a_signal_ends_all_of_them_after_their_work_and_no_request_fails(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELS, "--workers", "2", "--memory-limit", "500MB") as host:
        client = Client(host)
        assert client.infer() == 200
        pids = list(workers(client).values())
        outcomes: list[int] = []

        def ask() -> None:
            mine = Client(host)
            try:
                while True:
                    outcomes.append(mine.infer())
            except (OSError, http.client.HTTPException):
                mine.close()

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(outcomes) > 50)
        assert host.stop() == 0
        for thread in threads:
            thread.join(20)
        client.close()
        assert set(outcomes) <= {200, 503}
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_what_cannot_start_ends_the_host_with_its_reason(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*COMMAND, "serve", "--models", str(MODELS), "--port", "0", "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(MODELHOST_MODELS_PRELOAD='["nosuch"]'),
        check=False,
    )
    assert ended.returncode == 1
    assert "models.preload: 'nosuch' could not be loaded" in ended.stderr
    assert first_traceback(ended.stderr) is None


def test_over_grpc_it_is_one_host_too(host: HostProcess) -> None:
    clients = [RpcClient(host) for _ in range(8)]
    before = rpc_count(clients[0])
    assert [client.infer() for client in clients * 3] == ["wine"] * 24
    assert rpc_count(clients[0]) == before + 24
    http = Client(host)
    clients[0].call("RepositoryModelLoad", model_name="digits")
    memory = http.ask("GET", "/memory")[1]["models"]
    assert sorted(row["worker"] for row in memory if row["name"] == "digits") == [0, 1]
    index = {entry.name: entry.state for entry in clients[1].call("RepositoryIndex").models}
    assert index["digits"] == "READY"
    assert {entry.name for entry in clients[1].call("RepositoryIndex", ready=True).models} >= {"digits"}
    clients[2].call("RepositoryModelUnload", model_name="digits")
    assert not [row for row in http.ask("GET", "/memory")[1]["models"] if row["name"] == "digits"]
    with pytest.raises(grpc.RpcError) as missing:
        clients[3].call("RepositoryModelLoad", model_name="nosuch")
    assert missing.value.code() is grpc.StatusCode.NOT_FOUND
    http.close()
    for client in clients:
        client.close()


def test_a_port_for_grpc_that_is_in_use_is_said_at_once(host: HostProcess, tmp_path: Path) -> None:
    port = rpc_address(host).rpartition(":")[2]
    ended = subprocess.run(
        [*COMMAND, "serve", "--models", str(MODELS), "--port", "0", "--workers", "2", "--grpc-port", port],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert ended.returncode == 1
    assert "for gRPC: Address already in use" in ended.stderr


@pytest.mark.full
def test_one_that_is_started_again_has_the_keys_that_were_reloaded(tmp_path: Path) -> None:
    keys = {name: new_key(name, ("infer", "observe")) for name in ("old", "new")}
    file = tmp_path / "keys"

    def put(*names: str) -> None:
        file.write_text("".join(f"{keys[name][1].line()}\n" for name in names))
        file.chmod(0o600)

    put("old")
    settings = {"MODELHOST_SECURITY_KEYS_FILE": str(file)}
    with running_host(tmp_path, MODELS, "--workers", "2", "--memory-limit", "500MB", **settings) as host:

        def statuses(name: str) -> set[int]:
            clients = [Client(host) for _ in range(6)]
            path, headers = "/v2/models/wine/infer", {"authorization": f"Bearer {keys[name][0]}"}
            found = {client.ask("POST", path, WINE, **headers)[0] for client in clients}
            for client in clients:
                client.close()
            return found

        assert (statuses("old"), statuses("new")) == ({200}, {401})
        put("new")
        host.process.send_signal(signal.SIGHUP)
        eventually(lambda: host.log.count("1 API keys are in force; gone: old") >= 2)
        observer = Client(host)
        bearer = {"authorization": f"Bearer {keys['new'][0]}"}
        found = {row["worker"]: row["pid"] for row in observer.ask("GET", "/monitor", **bearer)[1]["host"]["workers"]}
        observer.close()
        for pid in found.values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: host.log.count("was ended by SIGKILL") == 2)
        assert (statuses("old"), statuses("new")) == ({401}, {200})
