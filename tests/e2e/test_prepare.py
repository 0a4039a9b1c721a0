"""Preparing in real children: what they make, how they fail, and what a host does with it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import onnx
import pytest
from host_process import COMMAND, MODELS, HostProcess, environment, running_host
from onnx import TensorProto, helper, numpy_helper

from modelhost.prepare import Artifact, ArtifactStore, Identity, launcher
from modelhost.prepare.launcher import Bounds, PrepareFailed, prepare

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


# --- what a child makes ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache", tmp_path, Identity("tests", "any"))


def prepared(store: ArtifactStore, directory: Path, made: onnx.ModelProto, bounds: Bounds = BOUNDS) -> Artifact:
    return prepare(store, build.save(made, directory, "model"), (), bounds)


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


# --- how a child fails -----------------------------------------------------------------------------------


def test_a_model_that_no_runtime_knows_fails_with_its_reason(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match="NoSuchOperator"):
        prepared(store, tmp_path, build.unknown_operator())
    assert left_aside(store) == []


def test_more_memory_than_the_ceiling_is_refused_with_the_ceiling(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match=r"^it needs more than its 80\.0 MB of memory: "):
        prepared(store, tmp_path, build.heavy(100), Bounds(80 * _MB, 60))
    assert left_aside(store) == []


def test_memory_for_opening_but_not_for_saving_is_no_reason_to_stay_in_the_heap(
    store: ArtifactStore, tmp_path: Path
) -> None:
    with pytest.raises(PrepareFailed, match=r"^it needs more than its 120\.0 MB of memory: saving"):
        prepared(store, tmp_path, dense(48), Bounds(120 * _MB, 60))
    assert left_aside(store) == []


def test_a_run_that_does_not_end_meets_the_deadline_and_leaves_no_process(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(PrepareFailed, match="longer than 2 s"):
        prepared(store, tmp_path, loop(1 << 50), Bounds(1 << 30, 2))
    assert left_aside(store) == []
    assert_no_child(store)


def assert_no_child(store: ArtifactStore) -> None:
    """Waits until no process has the cache in its command line, which forks have as well."""
    end = time.monotonic() + 5
    while children := builders(store.cache):
        assert time.monotonic() < end, f"still there: {children}"
        time.sleep(0.02)


def builders(cache: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"modelhost.runtime.build" in command and os.fsencode(cache) in command:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "signal 9, as the kernel does where memory runs out: it said nothing"),
        ("import os; print('a', flush=True); print('last', flush=True); os.abort()", "signal 6: last"),
        ("raise SystemExit('no such thing')", "^no such thing$"),
        ("print('fine')", "^fine$"),  # without a report
        ("[0] * (1 << 60)", "^it needs more than its .* of memory: MemoryError"),
        ("import time; time.sleep(60)", "longer than 1 s"),
    ],
)
def test_however_a_child_ends_there_is_a_reason_and_nothing_else(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "odd_builder.py").write_text(code)
    monkeypatch.setattr(launcher, "_BUILDER", "odd_builder")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PrepareFailed, match=reason):
        prepared(store, tmp_path, dice(), Bounds(1 << 30, 1))
    assert left_aside(store) == []
    assert [path.name for path in store.cache.iterdir()] == ["index"]


def test_a_model_that_changes_meanwhile_is_not_taken_for_the_old_one(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_builder.py").write_text(
        "import json, pathlib, sys\n"
        "job = json.loads(pathlib.Path(sys.argv[1]).read_text())\n"
        "pathlib.Path(job['file']).write_bytes(b'another')\n"
        "pathlib.Path(job['report']).write_text('{}')\n"
    )
    monkeypatch.setattr(launcher, "_BUILDER", "odd_builder")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(PrepareFailed, match="changed while it was prepared"):
        prepared(store, tmp_path, dice())


def test_the_child_is_no_heir(store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_builder.py").write_text(
        "import json, os\nraise SystemExit(json.dumps([sorted(os.environ), os.listdir('/proc/self/fd')]))"
    )
    monkeypatch.setattr(launcher, "_BUILDER", "odd_builder")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
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
    while len(builders(cache)) < 2:  # the builder, and the step that asks the model
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = ArtifactStore(cache, models, Identity("tests", "any"))
    assert_no_child(store)
    assert len(left_aside(store)) == 1
    store.clean_up()
    assert left_aside(store) == []


# --- the command and the host ----------------------------------------------------------------------------

MADE = {"conv": conv_net, "old": old_ir, "branches": branches, "loop": loop}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped models and some more, prepared; one of them is broken."""
    models = tmp_path_factory.mktemp("shelf") / "models"
    shutil.copytree(MODELS, models)
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
        assert row(ended.stdout, name)[2].startswith("mapped"), ended.stdout
    return models


@pytest.fixture
def models(shelf: Path, tmp_path: Path) -> Path:
    """A copy of the shelf that a test may damage; copied as `cp -r` does, with times of its own."""
    shutil.copytree(shelf, tmp_path / "models", copy_function=shutil.copyfile)
    return tmp_path / "models"


def command(models: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "prepare", "--models", str(models), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=models.parent,
        env=environment(),
        check=False,
    )


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


def test_check_says_what_is_prepared_and_what_is_missing(shelf: Path) -> None:
    checked = command(shelf, "--check")
    assert checked.returncode == 1
    assert row(checked.stdout, "broken")[2] == "missing"
    assert row(checked.stdout, "conv")[2].startswith("mapped")
    chosen = command(shelf, "--check", "conv", "loop")
    assert chosen.returncode == 0
    assert "digits" not in chosen.stdout


def test_what_is_prepared_is_not_prepared_again(shelf: Path) -> None:
    manifests = sorted((shelf / ".modelhost").glob("*/manifest.json"))
    before = [file.stat().st_mtime_ns for file in manifests]
    assert command(shelf, "conv", "old").returncode == 0
    assert [file.stat().st_mtime_ns for file in manifests] == before


def test_names_that_nobody_knows_and_folders_without_a_model_fail(models: Path) -> None:
    ended = command(models, "nobody")
    assert ended.returncode == 1
    assert "nobody" in ended.stderr
    (models / "empty").mkdir()
    shutil.rmtree(models / "broken")
    ended = command(models)
    assert ended.returncode == 1
    assert "broken: empty: " in ended.stderr


def test_a_cache_that_cannot_be_made_fails_with_its_name(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = command(models, "--cache", str(tmp_path / "file" / "cache"), "conv")
    assert ended.returncode == 1
    assert "file" in row(ended.stdout, "conv")[-1] or "Not a directory" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_a_host_answers_from_artifacts_exactly_as_without_them(shelf: Path, tmp_path: Path) -> None:
    names = ["conv", "old", "branches", "loop", "digits", "wine"]
    with host(shelf, tmp_path, MODELHOST_PREPARE__CACHE=str(tmp_path / "none")) as plain:
        expected = {name: answers(plain, name) for name in names}
        from_heap = committed(plain)
    with host(shelf, tmp_path) as prepared:
        assert {name: answers(prepared, name) for name in names} == expected
        mapped = committed(prepared)
    assert from_heap["conv"] > 5 * _MB
    assert mapped["conv"] < _MB / 2
    assert all(mapped[name] <= from_heap[name] + _MB / 4 for name in names)


@pytest.mark.parametrize("damage", ["removed", "flipped", "cut"])
def test_without_a_whole_artifact_the_original_is_served(models: Path, tmp_path: Path, damage: str) -> None:
    (weights,) = [file for file in models.glob(".modelhost/*/model.bin") if file.stat().st_size > 4 * _MB]
    if damage == "removed":
        shutil.rmtree(weights.parent)
    elif damage == "flipped":
        data = bytearray(weights.read_bytes())
        data[_MB] ^= 0x40
        weights.write_bytes(data)
    else:
        os.truncate(weights, _MB)
    with host(models, tmp_path) as running:
        assert [output["shape"] for output in answers(running, "conv")] == [[2, 128, 4, 4]]
        assert committed(running)["conv"] > 5 * _MB
    assert row(command(models, "--check").stdout, "conv")[2] == "missing"
    assert command(models, "conv").returncode == 0
    with host(models, tmp_path) as running:
        answers(running, "conv")
        assert committed(running)["conv"] < _MB
