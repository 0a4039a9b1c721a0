"""Runs of ONNX Runtime at their deadline: stopped between nodes, or counted until they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pool_stage import soon, until

from modelhost.errors import DeadlineExceeded
from modelhost.memory import MemoryManager
from modelhost.pool import Lease, ModelKey, Runner
from modelhost.pool.activations import ActivationGate
from modelhost.pool.runs import ModelRuns
from modelhost.pool.statistics import ModelStatistics, Timing
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.base import CancelToken, Inspection, LoadPlan
from modelhost.runtime.fake import FakeMemory
from modelhost.runtime.ort import OrtRuntime

pytestmark = pytest.mark.anyio

MB = 1 << 20
#: What is told to stop does so within this, on a busy machine too; by themselves the runs here take far longer.
BOUND_S = 5.0


def value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **weights: Any) -> bytes:
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializer=constants)
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def counting_loop() -> bytes:
    """Adds 1 to `x`, `n` times."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "one"], ["w"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, [None])],
        [value("on", TensorProto.BOOL, []), value("w", TensorProto.FLOAT, [None])],
        initializer=[numpy_helper.from_array(np.float32(1), "one")],
    )
    return model_of(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)],
        [value("n", TensorProto.INT64, []), value("x", TensorProto.FLOAT, [None])],
        [value("y", TensorProto.FLOAT, [None])],
        yes=np.array(True),
    )


def chain(count: int) -> bytes:
    """Multiplies `x` by one matrix, so many times in a row."""
    names = ["x", *(f"x{index}" for index in range(1, count)), "y"]
    nodes = [helper.make_node("MatMul", [names[index], "w"], [names[index + 1]]) for index in range(count)]
    face = [value(name, TensorProto.FLOAT, [None, 256]) for name in "xy"]
    return model_of(nodes, face[:1], face[1:], w=np.eye(256, dtype=np.float32))


def one_node() -> bytes:
    """Multiplies `x` by itself."""
    face = [value(name, TensorProto.FLOAT, [None, None]) for name in "xy"]
    return model_of([helper.make_node("MatMul", ["x", "x"], ["y"])], face[:1], face[1:])


class Scene:
    """Models of ONNX Runtime before one inference thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._runtime = OrtRuntime(activation_ceiling_bytes=64 * MB)
        self.runner = Runner(threads=1, max_waiting=16)
        memory = MemoryManager(probe=FakeMemory())
        memory.set_baseline()
        self.gate = ActivationGate(64 * MB, max_waiting=16, memory=memory)
        self.open_leases = 0

    def load(self, content: bytes) -> ModelRuns:
        file = self._directory / "model.onnx"
        file.write_bytes(content)
        plan = LoadPlan(0, 0, run=RunFootprint((Term(1 << 10),), {}))
        model = self._runtime.load(file, plan, Inspection({}, {}, None, ()), CancelToken())
        return ModelRuns(ModelKey("a", "1"), model, self.runner, self.gate, ModelStatistics(), None)

    def lease(self, runs: ModelRuns) -> Lease:
        self.open_leases += 1

        def release() -> None:
            self.open_leases -= 1

        return Lease(runs, release=release)

    @property
    def held(self) -> tuple[int, int, int]:
        """Jobs, leases and bytes that are held."""
        return self.runner.in_flight, self.open_leases, self.gate.claimed_bytes


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    await until(lambda: scene.runner.in_flight == 0)
    assert scene.held == (0, 0, 0)
    scene.runner.close()


def long_loop() -> dict[str, np.ndarray]:
    return {"n": np.array(10**12), "x": np.zeros(2, np.float32)}


CASES = {
    "loop": (counting_loop, long_loop),
    "nodes": (lambda: chain(600), lambda: {"x": np.ones((4096, 256), np.float32)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["deadline", "cancellation"])
async def test_a_run_of_many_steps_stops_and_its_thread_is_free(scene: Scene, case: str, how: str) -> None:
    content, feeds = CASES[case]
    lease = scene.lease(scene.load(content()))
    deadline = asyncio.get_running_loop().time() + 0.05 if how == "deadline" else None
    task = asyncio.ensure_future(lease.run(feeds(), deadline=deadline))
    await until(lambda: scene.runner.in_flight)
    if how == "deadline":
        with pytest.raises(DeadlineExceeded, match="the run did not finish within"):
            await soon(task)
    else:
        task.cancel()
        await asyncio.wait([task])
    lease.end()
    began = time.monotonic()
    await until(lambda: scene.held == (0, 0, 0))
    assert time.monotonic() - began < BOUND_S


async def test_one_long_node_is_answered_at_the_deadline_and_counted_until_it_ends(scene: Scene) -> None:
    runs, feeds = scene.load(one_node()), {"x": np.ones((2500, 2500), np.float32)}
    found = (0, 0, 0)
    for time_s in (0.005, 0.01, 0.02, 0.04, 0.05, 0.06, 0.08):  # until its time ends within the node, not before
        lease = scene.lease(runs)
        with pytest.raises(DeadlineExceeded):
            await soon(lease.run(feeds, deadline=asyncio.get_running_loop().time() + time_s))
        lease.end()
        found = scene.held
        await until(lambda: scene.held == (0, 0, 0), seconds=30)
        if found[0]:
            break
    assert found == (1, 1, 1 << 10)


async def test_a_loop_that_was_short_and_is_long_does_not_hold_up_the_event_loop(scene: Scene) -> None:
    runs = scene.load(counting_loop())
    feeds, timing = {"n": np.array(1), "x": np.zeros(2, np.float32)}, Timing(0)
    for _ in range(2):
        runs.demand.look(feeds).note(1000, 8)
    arrays = runs.try_in_place(feeds, ["y"], timing)
    assert arrays is not None
    assert arrays[0].tolist() == [1, 1]
    began = time.monotonic()
    assert runs.try_in_place(long_loop(), ["y"], timing) is None
    assert time.monotonic() - began < BOUND_S
    assert runs.try_in_place(feeds, ["y"], timing) is None  # on a thread from here on
    scene.runner.refuse()
