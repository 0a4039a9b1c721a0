"""Runs whose activations are thousands of times their input, in a host under a limit of the kernel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.client import Client, RequestFailed
from benchmarks.process import HostProcess, running_host
from modelhost.testing import cgroup

_MB = 1 << 20
LIMIT_BYTES = 256 * _MB
CLIENTS = 50
WIDE = 1 << 14
FACTORS = np.linspace(-1, 2, WIDE, dtype=np.float32)

_REASON = cgroup.available()
pytestmark = [pytest.mark.cgroup, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]


def expanding() -> onnx.ModelProto:
    """`y[b,i] = max over j of x[b,i] · f[j]`: 1 KB in and out for each row, and 16 MB between."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["column"]),
        helper.make_node("Mul", ["column", "factors"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["y"], axes=[2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 256])],
        [numpy_helper.from_array(FACTORS, "factors"), numpy_helper.from_array(np.array([2], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def question(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 256)).astype(np.float32)


def is_right(asked: np.ndarray, answer: np.ndarray) -> bool:
    return np.array_equal(answer, np.where(asked > 0, asked * FACTORS.max(), asked * FACTORS.min()))


@pytest.fixture(scope="module")
def directory(
    tmp_path_factory: pytest.TempPathFactory, modelhost_command: Callable[..., subprocess.CompletedProcess[str]]
) -> Path:
    directory = tmp_path_factory.mktemp("expanding") / "models"
    build.save(expanding(), directory, "expanding")
    done = modelhost_command(directory.parent, "prepare", "--models", str(directory))
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture
def host(directory: Path) -> Iterator[HostProcess]:
    with running_host(directory, limit_bytes=LIMIT_BYTES) as host:
        yield host
        assert host.is_alive, host.last_words()
        figures = host.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0


def ask(host: HostProcess, rows: int) -> int:
    """Returns 0 where the answer is right, and the largest batch where it is a refusal that names it."""
    with Client(host.url) as client:
        try:
            asked = question(rows)
            assert is_right(asked, client.infer("expanding", asked))
        except RequestFailed as refused:
            return int(refusal(refused)["max_rows"])
        return 0


def refusal(error: RequestFailed) -> dict[str, Any]:
    status, _, body = str(error).partition(": ")
    found: dict[str, Any] = json.loads(body)
    assert (status, found["code"]) == ("413", "run_too_large"), error
    return found


def test_a_batch_that_cannot_fit_is_refused_with_the_largest_that_can_which_works(host: HostProcess) -> None:
    with Client(host.url) as client:
        with pytest.raises(RequestFailed) as refused:
            client.infer("expanding", question(64))
        body = refusal(refused.value)
        assert body["needed_bytes"] > 64 * 15 * _MB
        assert body["available_bytes"] == client.memory()["activation_ceiling_bytes"] == 64 * _MB
        assert body["max_rows"] == 3
        assert body["error"].startswith("expanding:1: 64 rows need ")
        assert body["error"].endswith("memory.activation_ceiling is 64.0 MB; at most 3 rows fit")
        for rows in (3, 1):
            asked = question(rows)
            assert is_right(asked, client.infer("expanding", asked))


def test_fifty_batches_at_once_that_cannot_fit_harm_nobody(host: HostProcess) -> None:
    with ThreadPoolExecutor(CLIENTS) as threads:
        assert set(threads.map(lambda _: ask(host, 64), range(CLIENTS))) == {3}
    assert ask(host, 1) == 0


def test_fifty_batches_at_once_of_which_one_fits_are_all_answered(host: HostProcess) -> None:
    with ThreadPoolExecutor(CLIENTS) as threads:
        assert set(threads.map(lambda number: ask(host, 1 + number % 3), range(CLIENTS))) == {0}
    with Client(host.url) as client:
        assert client.memory()["runs_in_flight"] == 0
