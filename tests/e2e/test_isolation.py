"""Isolated models behind HTTP: their workers end, and nothing else does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import models_for_tests as build
import numpy as np
import onnx
import pytest
from host_process import HostProcess, running_host
from onnx import helper, numpy_helper
from sizes import FULL

_MB = 1 << 20


def rows() -> onnx.ModelProto:
    """`y` is row `x` of 4 MB of weights, which are mapped: nothing is faster than that."""
    weight = numpy_helper.from_array(np.random.default_rng(1).random((1024, 1024), np.float32), "w")
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["w", "i"], ["y"]),
    ]
    face = [("x", ["n"]), ("y", ["n", 1024])]
    given, got = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in face)
    graph = helper.make_graph(nodes, "graph", [given], [got], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def deep_tree(depth: int) -> onnx.ModelProto:
    """A decision tree that is a chain so long that ONNX Runtime's stack does not suffice to open it."""
    inner, leaves = range(depth), range(depth, 2 * depth + 1)
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * (2 * depth + 1),
        nodes_nodeids=[*inner, *leaves],
        nodes_featureids=[0] * (2 * depth + 1),
        nodes_values=[float(number) for number in (*inner, *leaves)],
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * (depth + 1),
        nodes_truenodeids=[*range(1, depth), 2 * depth, *[0] * (depth + 1)],
        nodes_falsenodeids=[*range(depth, 2 * depth), *[0] * (depth + 1)],
        target_treeids=[0] * (depth + 1),
        target_nodeids=list(leaves),
        target_ids=[0] * (depth + 1),
        target_weights=[1.0] * (depth + 1),
    )
    face = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", face[:1], face[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: only `inside` is not isolated."""
    directory = tmp_path_factory.mktemp("models")
    build.save(rows(), directory, "rows")
    build.save(build.add_constant(1), directory, "add")
    build.save(build.add_constant(2), directory, "inside")
    build.save(build.heavy(64, layers=64), directory, "slow")
    for name in ("rows", "add", "slow"):
        (directory / name / "model.toml").write_text('isolation = "process"\n')
    return directory


@pytest.fixture
def host(models: Path, tmp_path: Path) -> Iterator[HostProcess]:
    with running_host(tmp_path, models, "--memory-limit", "400MB") as running:
        yield running


def ask(host: HostProcess, name: str, rows: np.ndarray, **parameters: Any) -> httpx.Response:
    tensor = {"name": "x", "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
    body = {"inputs": [tensor], "parameters": parameters}
    return httpx.post(f"{host.url}/v2/models/{name}/infer", json=body, trust_env=False, timeout=60)


def until_answered(host: HostProcess, name: str, rows: np.ndarray) -> list[float]:
    end = time.monotonic() + 20
    while (answer := ask(host, name, rows)).status_code != 200:
        assert answer.status_code == 503, answer.text
        assert answer.json()["code"] == "worker_restarting"
        assert int(answer.headers["retry-after"]) >= 1
        assert time.monotonic() < end
        time.sleep(0.02)
    data: list[float] = answer.json()["outputs"][0]["data"]
    return data


def workers(host: HostProcess) -> list[int]:
    """The workers, which are the children of the one child that stays."""
    found = []
    for template in Path(f"/proc/{host.process.pid}/task").glob("*/children"):
        for pid in template.read_text().split():
            found += [int(worker) for worker in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found


_ONE = np.ones((1,), np.float32)


def test_a_crash_in_the_middle_of_a_run_is_502_for_that_run_alone(host: HostProcess) -> None:
    assert until_answered(host, "add", _ONE) == [2]
    others = set(workers(host))
    side = httpx.get(f"{host.url}/v2/models/slow", trust_env=False).json()["inputs"][0]["shape"][1]
    assert ask(host, "slow", np.ones((1, side), np.float32)).status_code == 200
    assert ask(host, "inside", _ONE).json()["outputs"][0]["data"] == [3]
    (slow,) = set(workers(host)) - others
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, host, "slow", np.ones((2000, side), np.float32))
        begun = cpu_s(slow)
        while cpu_s(slow) < begun + 0.05:
            assert not running.done(), running.result().text
            time.sleep(0.002)
        os.kill(slow, signal.SIGSEGV)
        assert ask(host, "add", _ONE).status_code == 200
        assert ask(host, "inside", _ONE).status_code == 200
        crashed = running.result()
    assert crashed.status_code == 502
    assert crashed.json() == {
        "error": "the model's worker process ended during the run: it ended with signal 11 (SIGSEGV)",
        "code": "worker_crashed",
        "reason": "it ended with signal 11 (SIGSEGV)",
    }
    assert len(until_answered(host, "slow", np.ones((1, side), np.float32))) == side
    assert set(workers(host)) >= others
    memory = httpx.get(f"{host.url}/memory", trust_env=False).json()
    assert [event["cause"] for event in memory["events"] if event["kind"] == "worker_crash"] == ["slow:1"]


def test_weights_that_are_cut_off_while_they_are_mapped_end_the_worker_and_are_made_again(
    host: HostProcess,
) -> None:
    last = np.float32([1000])
    expected = until_answered(host, "rows", last)
    (worker,) = workers(host)
    mapped = [line.split()[-1] for line in Path(f"/proc/{worker}/maps").read_text().splitlines() if "model.bin" in line]
    weights = Path(mapped[0])
    weights.chmod(0o600)
    os.truncate(weights, 4096)
    crashed = ask(host, "rows", last)
    assert crashed.status_code == 502, crashed.text
    assert "SIGBUS" in crashed.json()["reason"]
    assert ask(host, "inside", _ONE).status_code == 200
    assert until_answered(host, "rows", last) == pytest.approx(expected)
    assert workers(host) != [worker]


@pytest.mark.skipif(not FULL, reason="MODELHOST_TEST_FULL=1 has it run")
def test_in_the_host_itself_they_end_it_and_the_next_one_makes_them_again(tmp_path: Path) -> None:
    models, last = tmp_path / "models", np.float32([1000])
    build.save(rows(), models, "rows")
    with running_host(tmp_path, models, "--memory-limit", "400MB") as host:
        expected = until_answered(host, "rows", last)
        (weights,) = models.glob(".modelhost/*/model.bin")
        weights.chmod(0o600)
        os.truncate(weights, 4096)
        with pytest.raises(httpx.TransportError):
            ask(host, "rows", last)
        assert host.process.wait(10) == -signal.SIGBUS
    with running_host(tmp_path, models, "--memory-limit", "400MB") as host:
        assert until_answered(host, "rows", last) == pytest.approx(expected)


def test_a_model_that_segfaults_when_it_is_opened_never_gets_so_far(tmp_path: Path) -> None:
    models = tmp_path / "models"
    build.save(deep_tree(200_000), models, "deep")
    build.save(build.add_constant(2), models, "inside")
    with running_host(tmp_path, models, "--memory-limit", "800MB") as host:
        answer = ask(host, "deep", np.ones((1, 1), np.float32))
        assert answer.status_code == 500
        assert answer.json()["code"] == "model_broken"
        assert "signal 11 (SIGSEGV)" in answer.json()["error"]
        assert ask(host, "inside", _ONE).status_code == 200
        assert workers(host) == []


def test_ctrl_c_and_the_end_of_the_host_leave_no_worker(models: Path, tmp_path: Path) -> None:
    with running_host(tmp_path, models, "--memory-limit", "400MB", MODELHOST_RUNTIME_ISOLATION="process") as host:
        assert until_answered(host, "inside", _ONE) == [3]
        (worker,) = workers(host)
        assert os.getsid(worker) != os.getsid(host.process.pid)  # the terminal's signals are not for it
        # Who starts it lets others go first, and it is not to.
        assert os.getpriority(os.PRIO_PROCESS, worker) == os.getpriority(os.PRIO_PROCESS, host.process.pid)
        loaded = httpx.get(f"{host.url}/memory", trust_env=False).json()["models"]
        assert [model["committed_bytes"] > _MB for model in loaded] == [True]
        assert host.stop() == 0
        assert not Path(f"/proc/{worker}").exists()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
