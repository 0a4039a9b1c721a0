"""Preparing in real children: what they make, how they fail, and what a host does with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import onnx
import pytest
from host_process import COMMAND, MODELS, HostProcess, environment, running_host
from onnx import TensorProto, helper, numpy_helper

from benchmarks.tracebacks import first_traceback
from modelhost.config import ModelOptions, PrepareSettings
from modelhost.prepare import Artifact, ArtifactStore, Identity, child, launcher
from modelhost.prepare.footprint import RunFootprint, RunPoint
from modelhost.prepare.launcher import Bounds, Child, PrepareFailed, measure, prepare
from modelhost.prepare.manifest import Manifest, Variant
from modelhost.runtime import preparing
from modelhost.runtime.base import CancelToken, LoadError, NeedsMemory

_MB = 1 << 20
BOUNDS = Bounds(memory_bytes=1 << 30, seconds=60)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


# --- models ----------------------------------------------------------------------------------------------


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    weights: dict[str, np.ndarray],
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "graph", list(inputs), [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def tensor(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def conv_net() -> onnx.ModelProto:
    """5 MB in nine convolutions."""
    names = ["x", *(f"h{layer}" for layer in range(1, 9)), "y"]
    return model(
        [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1] * 4) for i in range(9)],
        [tensor("x", "n", 128, 4, 4)],
        tensor("y", "n", 128, 4, 4),
        {f"w{i}": random(128, 128, 3, 3, seed=i) for i in range(9)},
    )


def dense(megabytes: int) -> onnx.ModelProto:
    """So many megabytes in four multiplications, each with weights of its own."""
    side = int((megabytes * _MB / 16) ** 0.5)
    names = ["x", "h1", "h2", "h3", "y"]
    return model(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)],
        [tensor("x", "n", side)],
        tensor("y", "n", side),
        {f"w{i}": random(side, side, seed=i) for i in range(4)},
    )


def old_ir() -> onnx.ModelProto:
    """Of IR version 3, where initialisers are inputs too."""
    return model(
        [helper.make_node("Conv", ["x", "w"], ["h"], pads=[1] * 4), helper.make_node("Relu", ["h"], ["y"])],
        [tensor("x", "n", 32, 4, 4), tensor("w", 32, 32, 3, 3)],
        tensor("y", "n", 32, 4, 4),
        {"w": random(32, 32, 3, 3)},
        opset=8,
        ir_version=3,
    )


def branches() -> onnx.ModelProto:
    """An If whose branches use weights of the outer graph."""

    def branch(weight: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", weight], [weight + "_out"])
        return helper.make_graph([node], weight, [], [tensor(weight + "_out", "n", 64)])

    return model(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["is_more"]),
            helper.make_node("If", ["is_more"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
        ],
        [tensor("x", "n", 64)],
        tensor("y", "n", 64),
        {"zero": np.array(0, np.float32), "a": random(64, 64), "b": random(64, 64, seed=1)},
    )


def loop(times: int = 3) -> onnx.ModelProto:
    """`y = x·W·…·W`, so many times: an own graph with a weight of its own, and for ever with enough of them."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["next"]), helper.make_node("Identity", ["go_on"], ["going_on"])],
        "body",
        [tensor("i", kind=INT64), tensor("go_on", kind=BOOL), tensor("state", "n", 64)],
        [tensor("going_on", kind=BOOL), tensor("next", "n", 64)],
        [numpy_helper.from_array(random(64, 64), "w")],
    )
    return model(
        [helper.make_node("Loop", ["times", "yes", "x"], ["y"], body=body)],
        [tensor("x", "n", 64)],
        tensor("y", "n", 64),
        {"times": np.array(times, np.int64), "yes": np.array(True)},
    )


def quantised() -> onnx.ModelProto:
    return model(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w", "scale"], ["wd"]),
            helper.make_node("MatMul", ["xd", "wd"], ["h"]),
            helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["hq"]),
            helper.make_node("DequantizeLinear", ["hq", "scale", "zero"], ["y"]),
        ],
        [tensor("x", "n", 256)],
        tensor("y", "n", 256),
        {
            "scale": np.array(0.02, np.float32),
            "zero": np.array(128, np.uint8),
            "w": (random(256, 256) * 1000).astype(np.int8),
        },
    )


def half() -> onnx.ModelProto:
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", "n", 128, kind=TensorProto.FLOAT16)],
        tensor("y", "n", 128, kind=TensorProto.FLOAT16),
        {"w": random(128, 128).astype(np.float16)},
    )


def without_inputs() -> onnx.ModelProto:
    return model(
        [helper.make_node("Neg", ["a"], ["y"])],
        [],
        tensor("y", 600),
        {"a": random(600)},
    )


def tied_dimensions() -> onnx.ModelProto:
    """`y = ids of a table * k + c`: indices, a scalar, and dimensions that have to be equal."""
    return model(
        [
            helper.make_node("Gather", ["table", "ids"], ["g"]),
            helper.make_node("Mul", ["g", "k"], ["h"]),
            helper.make_node("Add", ["h", "c"], ["y"]),
        ],
        [tensor("ids", "t", "n", kind=INT64), tensor("k"), tensor("c", "n", 64)],
        tensor("y", "t", "n", 64),
        {"table": random(100, 64)},
    )


def unguessable() -> onnx.ModelProto:
    """Runs with 100 columns and no others, and does not say so."""
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [tensor("x", "n", "columns")],
        tensor("y", "n", 64),
        {"w": random(100, 64)},
    )


def dice() -> onnx.ModelProto:
    """Answers differently each time."""
    return model(
        [helper.make_node("RandomNormalLike", ["x"], ["y"])],
        [tensor("x", "n", 8)],
        tensor("y", "n", 8),
        {},
    )


def exploding() -> onnx.ModelProto:
    """1 KB in and 1 KB out for each row, 4 MB between them."""
    return model(
        [
            helper.make_node("Unsqueeze", ["x", "axis"], ["one"]),
            helper.make_node("Expand", ["one", "many"], ["all"]),
            helper.make_node("Relu", ["all"], ["kept"]),
            helper.make_node("ReduceSum", ["kept", "axis"], ["y"], keepdims=0),
        ],
        [tensor("x", "n", 256)],
        tensor("y", "n", 256),
        {"axis": np.array([1], np.int64), "many": np.array([1, 4096, 256], np.int64)},
    )


def attention() -> onnx.ModelProto:
    """Each step of a sequence looks at all others: what it takes is quadratic in the sequence."""
    return model(
        [
            helper.make_node("MatMul", ["x", "q"], ["queries"]),
            helper.make_node("Transpose", ["x"], ["keys"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["queries", "keys"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
            helper.make_node("MatMul", ["weights", "x"], ["y"]),
        ],
        [tensor("x", "batch", "steps", 32)],
        tensor("y", "batch", "steps", 32),
        {"q": random(32, 32)},
    )


def rows_in_touch() -> onnx.ModelProto:
    """Takes the mean of all rows off each."""
    return model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [tensor("x", "n", 64)],
        tensor("y", "n", 64),
        {},
    )


def images() -> onnx.ModelProto:
    """Images of any size, without names for height and width."""
    return model(
        [helper.make_node("Conv", ["x", "w"], ["h"], pads=[1] * 4), helper.make_node("Relu", ["h"], ["y"])],
        [helper.make_tensor_value_info("x", FLOAT, [None, 3, None, None])],
        helper.make_tensor_value_info("y", FLOAT, [None, 16, None, None]),
        {"w": random(16, 3, 3, 3)},
    )


# --- what a child makes ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache", tmp_path, Identity("tests", "any"))


def prepared(
    store: ArtifactStore, directory: Path, made: onnx.ModelProto, bounds: Bounds = BOUNDS, **more: Any
) -> Artifact:
    return prepare(store, build.save(made, directory, "model"), (), bounds, **more)


def failure(store: ArtifactStore, directory: Path, made: onnx.ModelProto, bounds: Bounds = BOUNDS) -> PrepareFailed:
    with pytest.raises(PrepareFailed) as failed:
        prepared(store, directory, made, bounds)
    assert left_aside(store) == []
    return failed.value


def left_aside(store: ArtifactStore) -> list[str]:
    return [path.name for path in store.cache.iterdir() if path.name.startswith("tmp-")]


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (conv_net, (1, 8)),
        (old_ir, (1, 8)),
        (branches, (1, 8)),
        (loop, (1, 8)),
        (quantised, (1, 8)),
        (half, (1, 8)),
        (without_inputs, (1,)),
        (tied_dimensions, (1, 8)),
    ],
)
# The onnx package does not know the key with which ONNX Runtime marks packed copies.
@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key:UserWarning")
def test_models_of_many_kinds_are_mapped(
    store: ArtifactStore, tmp_path: Path, make: Any, rows: tuple[int, ...]
) -> None:
    found = prepared(store, tmp_path, make())
    manifest = found.manifest
    assert manifest.variant != "heap", manifest.reason
    assert left_aside(store) == []
    figures = {figures.variant: figures for figures in manifest.figures}
    assert all(tuple(run.rows for run in measured.runs) == rows for measured in figures.values())
    assert manifest.resident_bytes == figures[manifest.variant].resident_bytes < figures["heap"].resident_bytes
    assert all(measured.peak_bytes >= measured.resident_bytes for measured in figures.values())
    assert manifest.tolerance < 1e-5
    original = make()
    saved = onnx.load(found.model_file)
    initialisers = {weight.name for weight in original.graph.initializer}
    assert list(saved.graph.input) == [value for value in original.graph.input if value.name not in initialisers]
    assert [value.name for value in saved.graph.output] == [value.name for value in original.graph.output]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dice, "differs by more than the tolerance"),
        (unguessable, "nothing to compare answers by: it ran on none of the inputs made up for it: .*MatMul"),
    ],
)
def test_what_cannot_be_compared_stays_in_the_heap_and_says_why(
    store: ArtifactStore, tmp_path: Path, make: Any, reason: str
) -> None:
    found = prepared(store, tmp_path, make())
    assert found.manifest.variant == "heap"
    assert found.manifest.resident_bytes > 0
    assert re.search(reason, found.manifest.reason)
    assert sorted(path.name for path in found.directory.iterdir()) == ["manifest.json"]


# --- what runs take --------------------------------------------------------------------------------------


def taken(file: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns the bytes of a run, measured in a process of its own; the model has one input of floats."""
    ((name, shape),) = shapes.items()
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from modelhost.runtime.building_runs import measured_run\n"
        "from modelhost.runtime.building_sessions import Engine, open_only\n"
        "engine = Engine(4 << 30)\n"
        "session = open_only(Path(sys.argv[1]), 'heap')\n"
        f"feed = {{{name!r}: np.ones({shape!r}, np.float32)}}\n"
        "session.run(None, feed)\n"
        "print(measured_run(session, feed, engine)[0])"
    )
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "1048576"}
    command = [sys.executable, "-c", code, str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (exploding, [{"x": (24, 256)}]),
        (attention, [{"x": (1, 384, 32)}, {"x": (16, 200, 32)}, {"x": (1, 1024, 32)}]),
        (images, [{"x": (1, 3, 300, 200)}, {"x": (16, 3, 100, 100)}]),
        (conv_net, [{"x": (300, 128, 4, 4)}]),
    ],
)
def test_runs_of_sizes_that_were_not_measured_are_foreseen(
    tmp_path: Path, make: Any, shapes: list[dict[str, tuple[int, ...]]]
) -> None:
    file = build.save(make(), tmp_path, "model")
    run = measure(file, BOUNDS).run
    assert run is not None
    for shape in shapes:
        foreseen, really = run.predict(shape), taken(file, shape)
        assert foreseen is not None
        assert really > _MB / 2, "too little to compare"
        assert 0.8 * really < foreseen < 1.5 * really, (shape, run)


def test_a_model_whose_rows_are_large_is_foreseen_from_the_few_that_fit(tmp_path: Path) -> None:
    run = measure(build.save(exploding(), tmp_path, "model"), Bounds(60 * _MB, 60)).run
    assert run is not None
    assert max(point.sizes["n"] for point in run.measured) < 8
    assert run.largest_rows({"x": (64, 256)}, 64 * _MB) in range(12, 17)


@pytest.mark.parametrize(
    ("make", "rows", "dims", "independent"),
    [
        (conv_net, "n", {"n": (("x", 0),)}, True),
        (rows_in_touch, "n", {"n": (("x", 0),)}, False),
        (loop, "n", {"n": (("x", 0),)}, True),
        (attention, "batch", {"batch": (("x", 0),), "steps": (("x", 1),)}, True),
        (images, "x:0", {"x:0": (("x", 0),), "x:2": (("x", 2),), "x:3": (("x", 3),)}, True),
        (tied_dimensions, "t", {"t": (("ids", 0),), "n": (("ids", 1), ("c", 0))}, True),
        (without_inputs, "", {}, None),
    ],
)
def test_free_dimensions_and_rows_are_found(
    store: ArtifactStore, tmp_path: Path, make: Any, rows: str, dims: Any, independent: bool | None
) -> None:
    for run in (prepared(store, tmp_path, make()).manifest.run, measure(tmp_path / "model/1/model.onnx", BOUNDS).run):
        assert run is not None
        assert (run.rows, run.dims, run.rows_independent) == (rows, dims, independent)
        assert all(point.bytes <= foreseen(run, point) for point in run.measured)
        assert len(run.measured) > 2 * len(dims)


def foreseen(run: RunFootprint, point: RunPoint) -> int:
    shapes: dict[str, list[int]] = {}
    for name, places in run.dims.items():
        for at, axis in places:
            shape = shapes.setdefault(at, [])
            shape += [1] * (axis + 1 - len(shape))
            shape[axis] = point.sizes[name]
    predicted = run.predict(shapes)
    assert predicted is not None
    return predicted


def test_given_sizes_make_a_model_run_that_nobody_could_guess(store: ArtifactStore, tmp_path: Path) -> None:
    guessed = prepared(store, tmp_path, unguessable())
    found = prepared(store, tmp_path, unguessable(), dimensions={"columns": 100})
    assert found.manifest.run is not None
    assert {point.sizes["columns"] for point in found.manifest.run.measured} == {100}
    assert found.manifest.key != guessed.manifest.key
    named_by_place = prepared(store, tmp_path, unguessable(), dimensions={"x:1": 100})
    assert named_by_place.manifest.run is not None


def test_a_size_of_no_dimension_is_refused_with_those_there_are(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match=r"no dimension 'rows' of any size; it has 'n', 'columns'") as failed:
        prepared(store, tmp_path, unguessable(), dimensions={"rows": 100})
    assert failed.value.kind == "model"


# --- measured only ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimization", ["all", "none"])
def test_measuring_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimization: str) -> None:
    file = build.save(conv_net(), tmp_path, "model")
    (tmp_path / "empty").mkdir()
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path / "empty")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    manifest = measure(file, BOUNDS, optimization=optimization)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert (manifest.variant, manifest.key, manifest.weights_bytes) == ("heap", "", 0)
    assert 5 * _MB < manifest.resident_bytes < 7 * _MB
    # The other layout of the weights, which full optimisation makes, is held beside the first for a while.
    assert (manifest.peak_bytes > 9 * _MB) == (optimization == "all")
    assert manifest.run is not None


def test_what_does_not_run_is_measured_all_the_same(tmp_path: Path) -> None:
    manifest = measure(build.save(unguessable(), tmp_path, "model"), BOUNDS)
    assert manifest.run is None
    assert manifest.resident_bytes > 0
    assert "could not be run" in manifest.reason


def test_measuring_fails_for_the_same_reasons(tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match="NoSuchOperator") as failed:
        measure(build.save(build.unknown_operator(), tmp_path, "model"), BOUNDS)
    assert failed.value.kind == "model"
    with pytest.raises(PrepareFailed, match=r"more than its 80\.0 MB") as failed:
        measure(build.save(build.heavy(100), tmp_path, "heavy"), Bounds(80 * _MB, 60))
    assert failed.value.kind == "memory"
    with pytest.raises(PrepareFailed) as failed:
        measure(tmp_path / "nowhere.onnx", BOUNDS)
    assert failed.value.kind == "changed"


# --- the handle ------------------------------------------------------------------------------------------


def wait_until(is_so: Any) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_is_killed_from_another_thread_and_says_what_it_holds(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = Child()
    assert handle.committed_bytes() == 0
    with ThreadPoolExecutor(1) as workers:
        future = workers.submit(prepared, store, tmp_path, loop(1 << 50), child=handle)
        wait_until(lambda: len(builders(tmp_path)) == 2)
        wait_until(lambda: handle.committed_bytes() > 10 * _MB)
        handle.kill()
        with pytest.raises(PrepareFailed) as failed:
            future.result(20)
    assert failed.value.kind == "cancelled"
    assert handle.committed_bytes() == 0
    assert left_aside(store) == []
    assert_no_child(tmp_path)


def test_a_child_killed_before_it_was_born_is_not_born(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd_child(monkeypatch, tmp_path, "import pathlib; pathlib.Path('born').touch()")
    monkeypatch.chdir(tmp_path)
    handle = Child()
    handle.kill()
    with pytest.raises(PrepareFailed) as failed:
        measure(build.save(dice(), tmp_path, "model"), BOUNDS, child=handle)
    assert failed.value.kind == "cancelled"
    assert not (tmp_path / "born").exists()


def test_one_handle_serves_several_calls_on_a_thread_that_lives_on(store: ArtifactStore, tmp_path: Path) -> None:
    handle = Child()
    with ThreadPoolExecutor(1) as workers:
        first = workers.submit(prepared, store, tmp_path, conv_net(), child=handle).result(60)
        second = workers.submit(measure, tmp_path / "model/1/model.onnx", BOUNDS, child=handle).result(60)
    assert first.manifest.resident_bytes < second.resident_bytes


# --- how a child fails -----------------------------------------------------------------------------------


def test_a_model_that_no_runtime_knows_fails_with_its_reason(store: ArtifactStore, tmp_path: Path) -> None:
    failed = failure(store, tmp_path, build.unknown_operator())
    assert "NoSuchOperator" in str(failed)
    assert failed.kind == "model"


def test_more_memory_than_the_ceiling_is_refused_with_the_ceiling(store: ArtifactStore, tmp_path: Path) -> None:
    failed = failure(store, tmp_path, build.heavy(100), Bounds(80 * _MB, 60))
    assert str(failed).startswith("it needs more than its 80.0 MB of memory: ")
    assert failed.kind == "memory"


def resident_bytes(manifest: Manifest, variant: Variant) -> int:
    """What a variant that worked was measured to hold; which one is chosen is a matter of times, too."""
    return next(figures.resident_bytes for figures in manifest.figures if figures.variant == variant)


def test_a_ceiling_that_the_original_fits_under_is_enough_for_the_best_variant(tmp_path: Path) -> None:
    onnx.save(dense(60), tmp_path / "model.onnx")
    store = ArtifactStore(tmp_path / "cache", tmp_path, Identity("runtime", "cpu"))
    # Pages of the packed form, twice the weights, are not held against the child.
    made = prepare(store, tmp_path / "model.onnx", (), Bounds(125 * _MB, 60), is_last=False)
    assert made.manifest.ceiling_bytes == 0  # nothing was left out for want of memory
    assert resident_bytes(made.manifest, "mapped_prepacked") < 2 * _MB


def test_saving_takes_no_more_memory_than_opening(store: ArtifactStore, tmp_path: Path) -> None:
    manifest = prepared(store, tmp_path, dense(48), Bounds(100 * _MB, 60)).manifest
    assert resident_bytes(manifest, "mapped_prepacked") < 2 * _MB


def test_a_run_that_does_not_end_meets_the_deadline_and_leaves_no_process(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    failed = failure(store, tmp_path, loop(1 << 50), Bounds(1 << 30, 2))
    assert str(failed) == "it took longer than 2 s"
    assert failed.kind == "time"
    assert_no_child(tmp_path)


def assert_no_child(directory: Path) -> None:
    """Waits until no child is left of those that were started in a directory."""
    end = time.monotonic() + 5
    while children := builders(directory):
        assert time.monotonic() < end, f"still there: {children}"
        time.sleep(0.02)


def builders(directory: Path) -> list[int]:
    """Returns the children, and their forks, that were started in a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"modelhost.runtime.build" in command and (entry / "cwd").readlink() == directory:
                found.append(int(entry.name))
    return found


def odd_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Has children run this code instead."""
    (tmp_path / "odd_builder.py").write_text(code)
    monkeypatch.setattr(child, "_BUILDER", "odd_builder")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "memory", "signal 9, as the kernel does where .* it said nothing"),
        (
            "import os, sys; print('a', 'last', sep='\\n', file=sys.stderr, flush=True); os.abort()",
            "crash",
            "signal 6: last",
        ),
        ("raise SystemExit('no such thing')", "crash", "^no such thing$"),
        ("pass", "crash", "^it said nothing$"),
        ("print('fine')", "crash", "its report cannot be read"),
        ("print('[]')", "crash", "its report cannot be read"),
        ("print('{}')", "crash", "its report cannot be read"),
        ("[0] * (1 << 60)", "memory", "^it needs more than its .* of memory: MemoryError"),
        ("import time; time.sleep(60)", "time", "longer than 1 s"),
        ("import sys\nwhile True: sys.stderr.write('x' * 65536)", "time", "longer than 1 s"),
        ("while True: print('x' * 65536)", "time", "longer than 1 s"),
    ],
)
def test_however_a_child_ends_there_is_a_reason_and_nothing_else(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: str, reason: str
) -> None:
    odd_child(monkeypatch, tmp_path, code)
    failed = failure(store, tmp_path, dice(), Bounds(1 << 30, 1))
    assert re.search(reason, str(failed))
    assert failed.kind == kind
    assert [path.name for path in store.cache.iterdir()] == ["index"]


def test_a_cache_that_cannot_be_written_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    store = ArtifactStore(tmp_path / "cache", tmp_path, Identity("tests", "any"))
    with pytest.raises(PrepareFailed, match="cache") as failed:
        prepared(store, tmp_path, dice())
    assert failed.value.kind == "disk"


def test_a_model_that_changes_meanwhile_is_not_taken_for_the_old_one(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import json, pathlib, sys\n"
        "job = json.load(sys.stdin)\n"
        "pathlib.Path(job['file']).write_bytes(b'another')\n"
        f"print({measure(build.save(dice(), tmp_path, 'model'), BOUNDS).to_json()!r})"
    )
    odd_child(monkeypatch, tmp_path, code)
    failed = failure(store, tmp_path, dice())
    assert "changed while it was prepared" in str(failed)
    assert failed.kind == "changed"


#: A builder that is as it is but for what stands before its start.
_BUILD = "import os, resource\nfrom modelhost.runtime import build\n{}\nbuild.main()"


@pytest.mark.parametrize(
    ("make", "most_bytes", "reason"),
    [
        (lambda: dense(5), 7 * _MB, r"saving \(packed\)"),  # the plain form fits
        (conv_net, 16 << 10, "requested and"),  # not even the answers fit
    ],
)
def test_a_full_disk_is_no_finding_about_a_model(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, most_bytes: int, reason: str
) -> None:
    odd_child(monkeypatch, tmp_path, _BUILD.format(f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes},) * 2)"))
    failed = failure(store, tmp_path, make())
    assert failed.kind == "disk"
    assert re.search(reason, str(failed)), failed


def killing(place: str, name: str, flag: Path) -> str:
    """A builder whose function is killed at its first call."""
    return _BUILD.format(
        f"really = {place}.{name}\n"
        "def killed(*given):\n"
        f"    if not os.path.exists({str(flag)!r}):\n"
        f"        open({str(flag)!r}, 'w').close()\n"
        "        os.kill(os.getpid(), 9)\n"
        "    return really(*given)\n"
        f"{place}.{name} = killed"
    )


@pytest.mark.parametrize("step", ["save", "save_packed", "difference_to_kept", "Points"])
def test_a_step_that_is_killed_once_leaves_no_gap_in_the_artifact(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    odd_child(monkeypatch, tmp_path, killing("build", step, tmp_path / "killed"))
    manifest = prepared(store, tmp_path, dense(1)).manifest
    assert (tmp_path / "killed").exists()
    assert {figures.variant for figures in manifest.figures} == {
        "heap",
        "mapped",
        "mapped_unpacked",
        "mapped_prepacked",
    }
    assert "signal" not in manifest.reason
    assert manifest.run is not None
    assert len(manifest.run.measured) > 2


def test_half_a_finding_about_the_original_is_not_kept(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd_child(monkeypatch, tmp_path, killing("build", "rows_independent", tmp_path / "killed"))
    assert failure(store, tmp_path, dense(1)).kind == "memory"
    assert prepared(store, tmp_path, dense(1)).manifest.run is not None


def test_a_cache_that_goes_while_a_model_is_prepared_is_the_disks_failure(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = f"import shutil\nbuild.find_asking = lambda *_: shutil.rmtree({str(store.cache)!r})"
    odd_child(monkeypatch, tmp_path, _BUILD.format(removing))
    with pytest.raises(PrepareFailed) as failed:
        prepared(store, tmp_path, conv_net())
    assert failed.value.kind == "disk"


def test_what_another_host_made_meanwhile_is_used(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = build.save(dice(), tmp_path, "model")
    reported, others = launcher._reported, list[Artifact]()

    def slower(*given: Any) -> Any:
        monkeypatch.setattr(launcher, "_reported", reported)
        others.append(prepare(store, file, (), BOUNDS))
        return reported(*given)

    monkeypatch.setattr(launcher, "_reported", slower)
    # As where the cache's file system has no locks: else the second one would wait for the first.
    monkeypatch.setattr(ArtifactStore, "turn", lambda *_, **__: contextlib.nullcontext())
    assert prepare(store, file, (), BOUNDS) == others[0]
    again = prepare(store, file, (), BOUNDS)
    assert (again.directory, again.manifest.key) == (others[0].directory, others[0].manifest.key)
    assert again != others[0]


def test_a_child_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(PrepareFailed, match="no child process can be started: No such file") as failed:
        measure(build.save(dice(), tmp_path, "model"), BOUNDS)
    assert failed.value.kind == "crash"


@pytest.mark.parametrize("kind", ["changed", "model", "crash", "memory"])
def test_a_model_that_is_replaced_while_a_child_has_it_open_is_looked_at_again(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    file = build.save(dice(), tmp_path, "model")
    replaced = [True, False]

    def failing(*_: object, **__: object) -> Artifact:
        if replaced.pop(0):
            build.save(conv_net(), tmp_path, "model")
        raise PrepareFailed("for some reason", kind)

    monkeypatch.setattr(preparing, "prepare", failing)
    preparer = preparing.Preparer(store, PrepareSettings())

    def look() -> None:
        preparer.prepare(file, ModelOptions(), ceiling_bytes=1 << 30, is_last=False, cancel=CancelToken())

    look()
    assert preparer.inspect(file, ModelOptions()).plan is None
    with pytest.raises(NeedsMemory if kind == "memory" else LoadError, match="for some reason"):
        look()


def test_the_child_is_no_heir(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import json, os\nraise SystemExit(json.dumps([sorted(os.environ), os.listdir('/proc/self/fd')]))"
    odd_child(monkeypatch, tmp_path, code)
    monkeypatch.setenv("SECRET", "s")
    with (tmp_path / "open").open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        with pytest.raises(PrepareFailed) as ended:
            prepared(store, tmp_path, dice())
    names, descriptors = json.loads(str(ended.value))
    assert "SECRET" not in names
    assert len(descriptors) == 4  # the fourth lists them


def test_killing_the_host_ends_its_child_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    models = tmp_path / "models"
    build.save(loop(1 << 50), models, "endless")
    cache = models / ".modelhost"
    process = subprocess.Popen(
        [*COMMAND, "prepare", "--models", str(models)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        cwd=tmp_path,
    )
    end = time.monotonic() + 20
    while len(builders(tmp_path)) < 2:  # the builder, and the step that asks the model
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = ArtifactStore(cache, models, Identity("tests", "any"))
    assert_no_child(tmp_path)
    assert len(left_aside(store)) == 2  # what it was building, and its turn
    store.clean_up()
    assert left_aside(store) == []


# --- the command and the host ----------------------------------------------------------------------------

#: A host that does not prepare what it finds unprepared.
UNPREPARED = {"MODELHOST_PREPARE__ON_LOAD": "false"}
MAPPED = [["prepared", variant] for variant in ("mapped", "mapped_prepacked", "mapped_unpacked")]
Command = Callable[..., subprocess.CompletedProcess[str]]
MADE = {"conv": conv_net, "old": old_ir, "branches": branches, "loop": loop}


@pytest.fixture(scope="module")
def shelf(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped models and some more, prepared; one of them is broken."""
    models = tmp_path_factory.mktemp("shelf") / "models"
    shutil.copytree(MODELS, models, ignore=shutil.ignore_patterns(".modelhost"))
    for name, make in MADE.items():
        build.save(make(), models, name)
    build.save(build.unknown_operator(), models, "broken")
    checked = command(models, "--check")
    assert checked.returncode == 1
    assert checked.stdout.count("missing") == 8
    assert not (models / ".modelhost").exists()
    ended = command(models)
    assert ended.returncode == 1
    assert row(ended.stdout, "broken")[2] == "failed"
    assert "NoSuchOperator" in ended.stdout
    for name in MADE:
        assert row(ended.stdout, name)[2:4] in MAPPED, ended.stdout
    return models


@pytest.fixture
def models(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the shelf that a test may damage; copied as `cp -r` does, with times of its own."""
    shutil.copytree(shelf, tmp_path / "models", copy_function=shutil.copyfile)
    return tmp_path / "models"


@pytest.fixture(scope="module")
def command(modelhost_command: Callable[..., subprocess.CompletedProcess[str]]) -> Command:
    """`modelhost prepare` for a directory of models."""
    return lambda models, *flags: modelhost_command(models.parent, "prepare", "--models", str(models), *flags)


def row(table: str, name: str) -> list[str]:
    (found,) = [line.split() for line in table.splitlines() if line.startswith(f"{name} ")]
    return found


@contextlib.contextmanager
def host(models: Path, directory: Path, **settings: str) -> Iterator[HostProcess]:
    with running_host(directory, models, "--memory-limit", "500MB", **settings) as running:
        yield running


def ask(host: HostProcess, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(host.url + path, data=data), timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def answers(host: HostProcess, name: str) -> list[Any]:
    """What a model answers to two rows of seeded input."""
    inputs = []
    for spec in ask(host, f"/v2/models/{name}")["inputs"]:
        shape = [2 if size < 0 else size for size in spec["shape"]]
        values = np.random.default_rng(7).random(shape).astype(np.float32)
        inputs.append({"name": spec["name"], "shape": shape, "datatype": spec["datatype"], "data": values.tolist()})
    return ask(host, f"/v2/models/{name}/infer", {"inputs": inputs})["outputs"]


def committed(host: HostProcess) -> dict[str, int]:
    return {entry["name"]: entry["committed_bytes"] for entry in ask(host, "/memory")["models"]}


def test_check_says_what_is_prepared_and_what_is_missing(command: Command, shelf: Path) -> None:
    checked = command(shelf, "--check")
    assert checked.returncode == 1
    assert row(checked.stdout, "broken")[2] == "missing"
    assert row(checked.stdout, "conv")[2:4] in MAPPED
    chosen = command(shelf, "--check", "conv", "loop")
    assert chosen.returncode == 0
    assert "digits" not in chosen.stdout


def test_what_is_prepared_is_not_prepared_again(command: Command, shelf: Path) -> None:
    manifests = sorted((shelf / ".modelhost").glob("*/manifest.json"))
    before = [file.stat().st_mtime_ns for file in manifests]
    assert command(shelf, "conv", "old").returncode == 0
    assert [file.stat().st_mtime_ns for file in manifests] == before


def test_names_that_nobody_knows_and_folders_without_a_model_fail(command: Command, models: Path) -> None:
    ended = command(models, "nobody")
    assert ended.returncode == 1
    assert "nobody" in ended.stderr
    (models / "empty").mkdir()
    shutil.rmtree(models / "broken")
    ended = command(models)
    assert ended.returncode == 1
    assert "broken: empty: " in ended.stderr


def test_a_cache_that_cannot_be_made_fails_with_its_name(command: Command, models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = command(models, "--cache", str(tmp_path / "file" / "cache"), "conv")
    assert ended.returncode == 1
    assert "file" in row(ended.stdout, "conv")[-1] or "Not a directory" in ended.stdout
    assert first_traceback(ended.stderr) is None


def test_a_host_answers_from_artifacts_exactly_as_without_them(shelf: Path, tmp_path: Path) -> None:
    names = ["conv", "old", "branches", "loop", "digits", "wine"]
    bare = shutil.copytree(shelf, tmp_path / "bare", ignore=shutil.ignore_patterns(".modelhost"))
    with host(bare, tmp_path, **UNPREPARED) as plain:
        expected = {name: answers(plain, name) for name in names}
        from_heap = committed(plain)
    with host(shelf, tmp_path) as prepared:
        assert {name: answers(prepared, name) for name in names} == expected
        mapped = committed(prepared)
    assert from_heap["conv"] > 5 * _MB
    assert mapped["conv"] < _MB / 2
    assert all(mapped[name] <= from_heap[name] + _MB / 4 for name in names)


@pytest.mark.parametrize("damage", ["removed", "flipped", "cut"])
def test_without_a_whole_artifact_the_original_is_served(
    command: Command, models: Path, tmp_path: Path, damage: str
) -> None:
    (weights,) = [file for file in models.glob(".modelhost/*/model.bin") if file.stat().st_size > 4 * _MB]
    if damage == "removed":
        shutil.rmtree(weights.parent)
    elif damage == "flipped":
        data = bytearray(weights.read_bytes())
        data[_MB] ^= 0x40
        weights.chmod(0o644)
        weights.write_bytes(data)
    else:
        weights.chmod(0o644)
        os.truncate(weights, _MB)
    with host(models, tmp_path, **UNPREPARED) as running:
        assert [output["shape"] for output in answers(running, "conv")] == [[2, 128, 4, 4]]
        assert committed(running)["conv"] > 5 * _MB
    state = "missing" if damage == "removed" else "damaged"
    checked = command(models, "--check", "conv")
    assert (row(checked.stdout, "conv")[2], checked.returncode) == (state, 1)
    assert ("model.bin has" in checked.stdout) == (state == "damaged")
    again = command(models, "conv")
    assert (row(again.stdout, "conv")[2], again.returncode) == ("prepared", 0)
    assert ("it was damaged: model.bin has" in again.stdout) == (state == "damaged")
    with host(models, tmp_path) as running:
        answers(running, "conv")
        assert committed(running)["conv"] < _MB


def test_a_model_with_other_content_or_sizes_is_stale_until_it_is_prepared_again(
    command: Command, models: Path
) -> None:
    assert row(command(models, "--check", "conv").stdout, "conv")[2] == "prepared"
    (models / "conv" / "model.toml").write_text("dimensions = { n = 2 }")
    checked = command(models, "--check", "conv")
    assert (row(checked.stdout, "conv")[2], checked.returncode) == ("stale", 1)
    assert command(models, "conv").returncode == 0
    assert command(models, "--check", "conv").returncode == 0
    build.save(attention(), models, "old")
    assert row(command(models, "--check", "old").stdout, "old")[2] == "stale"


def test_options_that_name_no_dimension_or_want_no_artifact_are_told(command: Command, models: Path) -> None:
    (models / "conv" / "model.toml").write_text("dimensions = { rows = 2 }")
    (models / "old" / "model.toml").write_text('optimization = "basic"')
    ended = command(models, "conv", "old")
    assert ended.returncode == 1
    assert "no dimension 'rows' of any size; it has 'n'" in ended.stdout
    assert "it asks for optimization 'basic'" in ended.stdout
    (models / "conv" / "model.toml").unlink()
    assert command(models, "conv", "old").returncode == 0


def test_artifacts_over_the_bound_go_and_that_is_told(command: Command, models: Path) -> None:
    (models.parent / "small.toml").write_text('[prepare]\ncache_max_bytes = "1MB"')
    ended = command(models, "--config", str(models.parent / "small.toml"), "conv", "loop", "branches")
    assert ended.returncode == 1
    assert "prepare.cache_max_bytes is too small" in ended.stderr
    assert not [file for file in models.glob(".modelhost/*/model.bin") if file.stat().st_size > 4 * _MB]
