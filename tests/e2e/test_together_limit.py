"""A host of several processes in a group of 256 MB, with models on the heap that fit once each."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models_for_tests import heavy, save
from sizes import FULL

from benchmarks.process import HostProcess, running_host
from modelhost.testing import cgroup

_MB = 1 << 20
LIMIT_BYTES, MODEL_MB = 256 * _MB, 36
SIDE = int((MODEL_MB * _MB / 4 / 8) ** 0.5)

_REASON = cgroup.available()
pytestmark = [
    pytest.mark.cgroup,
    pytest.mark.full,
    pytest.mark.skipif(not FULL, reason="a minute of two processes under load; MODELHOST_TEST_FULL=1"),
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork"),
]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    for name in "ab":
        save(heavy(MODEL_MB, is_noisy=True), tmp_path, name)
    with running_host(tmp_path, limit_bytes=LIMIT_BYTES, settings={"SERVER_WORKERS": "2"}) as found:
        yield found
        assert found.is_alive, found.last_words()
        figures = found.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0


class Client:
    """One connection, which stays with the process that accepted it."""

    def __init__(self, host: HostProcess) -> None:
        self._host = host
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host.url.removeprefix("http://"), timeout=60)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def infer(self, name: str, rows: int, value: float, *, binary: bool) -> str:
        """Asks with rows of one number, which the model answers with as many of the same; returns what came of it."""
        values = np.full((rows, SIDE), value, "<f4")
        entry: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [rows, SIDE]}
        path, wanted = f"/v2/models/{name}/infer", np.full((rows, SIDE), value)
        if not binary:
            text = json.dumps({"inputs": [entry | {"data": values.ravel().tolist()}]}).encode()
            status, body = self.ask("POST", path, text)
            if status == 200:
                np.testing.assert_allclose(json.loads(body)["outputs"][0]["data"], wanted.ravel(), rtol=1e-4)
            return str(status)
        entry["parameters"] = {"binary_data_size": values.nbytes}
        text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        status, body = self.ask("POST", path, text + values.tobytes(), **headers)
        if status == 200:
            np.testing.assert_allclose(np.frombuffer(body[-values.nbytes :], "<f4"), wanted.ravel(), rtol=1e-4)
        return str(status)

    def renew(self) -> None:
        self._connection.close()
        self._connection = self._connect()

    def sample(self, name: str) -> float:
        """Returns a metric's sum over the processes."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0] == name)

    def pids(self) -> dict[int, int]:
        rows = json.loads(self.ask("GET", "/monitor")[1])["host"]["workers"]
        return {row["worker"]: row["pid"] for row in rows}

    def close(self) -> None:
        self._connection.close()


def drive(host: HostProcess, seconds: float, outcomes: Counter[str]) -> list[threading.Thread]:
    """Begins to ask for both models, from eight connections, small and large, in both forms."""
    until = time.monotonic() + seconds

    def ask(number: int) -> None:
        client, rng = Client(host), np.random.default_rng(number)
        while time.monotonic() < until:
            rows, binary = (300, True) if rng.random() < 0.1 else (1, bool(rng.random() < 0.5))
            try:
                outcomes[client.infer("ab"[rng.integers(2)], rows, float(rng.integers(1, 9)), binary=binary)] += 1
            except (OSError, http.client.HTTPException):
                outcomes["lost"] += 1
                client.renew()
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    return threads


def test_both_are_answered_whichever_process_is_asked_and_loaded_a_few_times(host: HostProcess) -> None:
    outcomes: Counter[str] = Counter()
    for thread in drive(host, 8, outcomes):
        thread.join()
    client = Client(host)
    assert set(outcomes) == {"200"}, outcomes
    # A second copy of one may come while there is room, and leaves for the other; none comes for each request.
    assert client.sample("modelhost_loads_total") <= 8
    assert client.sample("modelhost_handed_over_total") > 0
    assert client.sample("nv_inference_request_success") == outcomes["200"]
    assert client.sample("nv_inference_exec_count") <= outcomes["200"]
    memory = json.loads(client.ask("GET", "/memory")[1])
    assert memory["usage_bytes"] < memory["critical_bytes"]
    client.close()


@pytest.mark.timeout(300)
def test_one_that_is_killed_takes_what_it_was_answering_and_the_model_is_loaded_again(host: HostProcess) -> None:
    outcomes: Counter[str] = Counter()
    threads, kills = drive(host, 40, outcomes), 0
    watcher, until = Client(host), time.monotonic() + 38
    while time.monotonic() < until:
        time.sleep(5)
        try:
            found = watcher.pids()
        except (OSError, http.client.HTTPException, KeyError):
            watcher.renew()
            continue
        if len(found) == 2:
            os.kill(found[kills % 2], signal.SIGKILL)
            kills += 1
            watcher.renew()
    for thread in threads:
        thread.join()
    assert kills >= 5
    assert outcomes["200"] > 500
    assert outcomes["lost"] <= kills * 8
    assert sum(outcomes[status] for status in outcomes if status not in ("200", "lost")) <= kills * 8, outcomes
    watcher.renew()
    assert json.loads(watcher.ask("GET", "/memory")[1])["reserved_bytes"] == 0
    watcher.close()
