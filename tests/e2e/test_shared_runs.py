"""Requests that share runs of real models, over HTTP: the answers stay each one's own, and right."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from host_process import HostProcess, running_host
from onnx import TensorProto, helper, numpy_helper

SIDE, LAYERS = 1024, 6
CLIENTS, EACH = 16, 6
ROWS_TOO = (1, 1, 1, 2)


def dense(*, centred: bool = False) -> onnx.ModelProto:
    """Gemms, each followed by a Tanh: most of a run is reading weights. `centred`: minus the batch's mean first."""
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array((random.standard_normal((SIDE, SIDE)) / SIDE**0.5).astype(np.float32), f"w{layer}")
        for layer in range(LAYERS)
    ]
    nodes, value = [], "x"
    if centred:
        nodes.append(helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Sub", ["x", "mean"], ["centred"]))
        value = "centred"
    for layer in range(LAYERS):
        nodes.append(helper.make_node("Gemm", [value, f"w{layer}"], [f"g{layer}"]))
        value = "y" if layer == LAYERS - 1 else f"h{layer}"
        nodes.append(helper.make_node("Tanh", [f"g{layer}"], [value]))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIDE])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def directory(
    tmp_path_factory: pytest.TempPathFactory, modelhost_command: Callable[..., subprocess.CompletedProcess[str]]
) -> Path:
    directory = tmp_path_factory.mktemp("batching") / "models"
    for name in ("dense", "alone"):
        build.save(dense(), directory, name)
    build.save(dense(centred=True), directory, "centred")
    (directory / "alone" / "model.toml").write_text("batching = false\n")
    done = modelhost_command(directory.parent, "prepare", "--models", str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def host(directory: Path) -> Iterator[HostProcess]:
    with running_host(directory.parent, directory, MODELHOST_SERVER_RUN_THREADS="2") as running:
        yield running


def get(host: HostProcess, path: str) -> Any:
    with urllib.request.urlopen(host.url + path, timeout=30) as answer:
        return json.loads(answer.read())


def question(client: int, number: int) -> np.ndarray:
    """Nobody else's."""
    rows = ROWS_TOO[number % len(ROWS_TOO)]
    return np.random.default_rng((client, number)).standard_normal((rows, SIDE)).astype(np.float32)


def ask_all(host: HostProcess, name: str) -> dict[tuple[int, int], np.ndarray]:
    """Has every client ask its questions one after the other, all clients at the same time; returns the answers."""

    def ask(client: int) -> list[np.ndarray]:
        connection = HTTPConnection(host.address, timeout=60)
        answers = []
        for number in range(EACH):
            feed = question(client, number)
            entry: dict[str, Any] = {"name": "x", "shape": list(feed.shape), "datatype": "FP32"}
            text = json.dumps(
                {
                    "inputs": [entry | {"parameters": {"binary_data_size": feed.nbytes}}],
                    "parameters": {"binary_data_output": True},
                }
            ).encode()
            headers = {"Inference-Header-Content-Length": str(len(text))}
            connection.request("POST", f"/v2/models/{name}/infer", text + feed.tobytes(), headers)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body[:300]
            raw = body[int(response.headers["Inference-Header-Content-Length"]) :]
            answers.append(np.frombuffer(raw, np.float32).reshape(feed.shape))
        connection.close()
        return answers

    with ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(ask, range(CLIENTS)))
    return {(client, number): answer for client, answers in enumerate(found) for number, answer in enumerate(answers)}


def check(host: HostProcess, directory: Path, name: str) -> dict[str, Any]:
    """Asserts that every answer is what ONNX Runtime says to its question alone; returns the statistics."""
    session = ort.InferenceSession(directory / name / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for (client, number), answer in ask_all(host, name).items():
        (expected,) = session.run(["y"], {"x": question(client, number)})
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    (totals,) = get(host, f"/v2/models/{name}/stats")["model_stats"]
    asked = CLIENTS * EACH
    assert totals["inference_stats"]["success"]["count"] == asked
    assert totals["inference_count"] == sum(ROWS_TOO[number % 4] for number in range(EACH)) * CLIENTS
    assert sum(batch["compute_infer"]["count"] for batch in totals["batch_stats"]) == totals["execution_count"]
    return totals


def test_clients_of_a_model_with_independent_rows_share_runs_and_each_gets_its_own(
    host: HostProcess, directory: Path
) -> None:
    totals = check(host, directory, "dense")
    assert totals["execution_count"] < CLIENTS * EACH
    assert max(batch["batch_size"] for batch in totals["batch_stats"]) > 2
    assert "dynamic_batching" in get(host, "/v2/models/dense/config")


@pytest.mark.parametrize("name", ["alone", "centred"])
def test_a_model_whose_rows_need_each_other_or_that_says_no_runs_one_request_at_a_time(
    host: HostProcess, directory: Path, name: str
) -> None:
    totals = check(host, directory, name)
    assert totals["execution_count"] == CLIENTS * EACH
    assert {batch["batch_size"] for batch in totals["batch_stats"]} == {1, 2}
    assert "dynamic_batching" not in get(host, f"/v2/models/{name}/config")
