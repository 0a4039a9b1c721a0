"""A real host meets models that nobody has opened: it has a child prepare them, or only measure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import onnx
import pytest
from host_process import HostProcess, running_host
from onnx import TensorProto, helper, numpy_helper

from benchmarks.process import running_host as limited_host
from modelhost.testing import cgroup

_MB = 1 << 20
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def ask(url: str, name: str, data: list[float], shape: list[int] | None = None) -> tuple[int, dict[str, Any]]:
    tensor = {"name": "x", "datatype": "FP32", "shape": shape or [len(data)], "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with urllib.request.urlopen(f"{url}/v2/models/{name}/infer", body, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def answer(url: str, name: str, data: list[float], shape: list[int] | None = None) -> list[float]:
    status, body = ask(url, name, data, shape)
    assert status == 200, body
    found: list[float] = body["outputs"][0]["data"]
    return found


def memory(host: HostProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{host.url}/memory", timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def model_of(host: HostProcess, name: str) -> dict[str, Any]:
    return next(model for model in memory(host)["models"] if model["name"] == name)


def artifacts(models: Path) -> list[Path]:
    return [entry.parent for entry in (models / ".modelhost").glob("*/manifest.json")]


def dense(megabytes: int, name: str, models: Path) -> list[float]:
    """Saves a model of this size, each of its four layers unlike the others; returns an input for it."""
    side = int((megabytes * _MB / 4 / 4) ** 0.5)
    weights = [
        numpy_helper.from_array(np.full((side, side), (layer + 1) / side, np.float32), f"w{layer}")
        for layer in range(4)
    ]
    names = ["x", "h1", "h2", "h3", "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(4)],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", side])],
        weights,
    )
    build.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), models, name)
    return [1.0] * side


def times24(row: list[float]) -> Any:
    return pytest.approx([24.0] * len(row), rel=1e-3)


def test_the_first_request_has_the_model_prepared_and_later_hosts_find_it(tmp_path: Path) -> None:
    models = tmp_path / "models"
    row = dense(20, "dense", models)
    with running_host(tmp_path, models) as host:
        assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
        assert "preparing dense:1" in host.log
        found = model_of(host, "dense")
        assert found["committed_bytes"] < 2 * _MB
        assert found["weights_bytes"] > 18 * _MB
    assert len(artifacts(models)) == 1
    with running_host(tmp_path, models) as host:
        assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
        assert "preparing" not in host.log


@pytest.mark.parametrize("case", ["off", "no folder"])
def test_where_nothing_can_be_written_a_child_measures_and_the_heap_serves(tmp_path: Path, case: str) -> None:
    models = tmp_path / "models"
    row = dense(20, "dense", models)
    (tmp_path / "file").write_text("no folder can be made in a file")
    settings = (
        {"MODELHOST_PREPARE_ON_LOAD": "false"}
        if case == "off"
        else {"MODELHOST_PREPARE_CACHE": str(tmp_path / "file" / "cache")}
    )
    with running_host(tmp_path, models, **settings) as host:
        assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
        found = model_of(host, "dense")
        assert 18 * _MB < found["committed_bytes"] < 24 * _MB
        assert found["weights_bytes"] is None
        urllib.request.urlopen(f"{host.url}/v2/repository/models/dense/unload", b"", timeout=60).close()
        assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
        assert host.log.count("preparing dense:1") == 1  # what was measured is remembered
        assert [event["kind"] for event in memory(host)["events"] if event["kind"] == "misprediction"] == []
    assert artifacts(models) == []


def test_artifacts_that_came_with_the_models_are_used_where_the_cache_is_elsewhere(tmp_path: Path) -> None:
    models = tmp_path / "models"
    rows = {name: dense(5, name, models) for name in ("shipped", "new")}
    with running_host(tmp_path, models) as host:
        answer(host.url, "shipped", rows["shipped"], [1, len(rows["shipped"])])
    [shipped] = artifacts(models)
    with running_host(tmp_path, models, MODELHOST_PREPARE_CACHE=str(tmp_path / "cache")) as host:
        for name, row in rows.items():
            assert answer(host.url, name, row, [1, len(row)]) == times24(row)
        assert "preparing shipped" not in host.log
        assert "preparing new" in host.log
        assert model_of(host, "shipped")["weights_bytes"] > 4 * _MB
    assert artifacts(models) == [shipped]
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1


def test_a_damaged_artifact_is_reported_made_again_and_never_served(tmp_path: Path) -> None:
    models = tmp_path / "models"
    row = dense(5, "dense", models)
    with running_host(tmp_path, models) as host:
        expected = answer(host.url, "dense", row, [1, len(row)])
    [artifact] = artifacts(models)
    weights = artifact / "model.bin"
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 4096] = os.urandom(4096)
    weights.chmod(0o644)
    weights.write_bytes(damaged)
    with running_host(tmp_path, models) as host:
        assert answer(host.url, "dense", row, [1, len(row)]) == pytest.approx(expected, rel=1e-4)
        assert "is damaged and not used: model.bin has not the content that was written" in host.log
    [artifact] = artifacts(models)
    assert (artifact / "model.bin").read_bytes() != damaged


def test_the_cache_is_bounded_and_what_is_in_use_stays(tmp_path: Path) -> None:
    models = tmp_path / "models"
    rows = {name: dense(5, name, models) for name in "abc"}

    def use(host: HostProcess, name: str) -> None:
        assert answer(host.url, name, rows[name], [1, len(rows[name])]) == times24(rows[name])

    with running_host(tmp_path, models) as host:
        use(host, "a")
        [first] = artifacts(models)
        use(host, "b")
        both = artifacts(models)
    size_bytes = sum(file.stat().st_size for artifact in both for file in artifact.iterdir())
    with running_host(tmp_path, models, MODELHOST_PREPARE_CACHE_MAX_BYTES=str(size_bytes + _MB)) as host:
        use(host, "a")
        use(host, "b")
        urllib.request.urlopen(f"{host.url}/v2/repository/models/b/unload", b"", timeout=60).close()
        use(host, "c")
        kept = artifacts(models)
        assert first in kept  # used longest ago, but loaded
        assert len(kept) == 2
        assert set(both) - set(kept)
        use(host, "a")


def test_a_model_that_no_runtime_opens_is_broken_in_its_own_words(tmp_path: Path) -> None:
    models = tmp_path / "models"
    build.save(build.unknown_operator(), models, "odd")
    build.save(build.add_constant(1.0), models, "fine")
    with running_host(tmp_path, models) as host:
        status, body = ask(host.url, "odd", [1.0])
        assert status == 500
        assert "NoSuchOperator" in body["error"]
        assert answer(host.url, "fine", [1.0, 2.0]) == [2.0, 3.0]


def test_sizes_of_dimensions_come_from_the_models_own_file(tmp_path: Path) -> None:
    models = tmp_path / "models"
    weights = numpy_helper.from_array(np.ones((48, 4), np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, 48], np.int64), "s")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["y"])],
        "only multiples of 48",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [weights, shape],
    )
    build.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), models, "odd")
    (models / "odd" / "model.toml").write_text("[dimensions]\nlength = 96\n")
    with running_host(tmp_path, models) as host:
        assert answer(host.url, "odd", [1.0] * 96) == [48.0] * 8
    [artifact] = artifacts(models)
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["run"] is not None


@pytest.mark.cgroup
@pytest.mark.skipif(cgroup.available() is not None, reason=str(cgroup.available()))
def test_a_model_that_explodes_is_refused_with_figures_and_served_once_it_was_prepared_elsewhere(
    tmp_path: Path,
) -> None:
    """9 KB on disk, 490 MB of weights when it is opened."""
    models = tmp_path / "models"
    (models / "vgg19").mkdir(parents=True)
    shutil.copy(LIGHT / "light_vgg19.onnx", models / "vgg19" / "model.onnx")
    build.save(build.add_constant(1.0), models, "fine")
    image = [0.5] * (3 * 224 * 224)

    def ask_vgg(url: str) -> tuple[int, dict[str, Any]]:
        header = {"inputs": [{"name": "data_0", "datatype": "FP32", "shape": [1, 3, 224, 224]}]}
        raw = np.array(image, np.float32).tobytes()
        header["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}  # type: ignore[assignment]
        head = json.dumps(header).encode()
        request = urllib.request.Request(
            f"{url}/v2/models/vgg19/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    with limited_host(models, limit_bytes=256 * _MB) as host:
        status, body = ask_vgg(host.url)
        assert status == 507
        assert body["needed_bytes"] > 480 * _MB
        assert body["available_bytes"] < 192 * _MB
        assert "modelhost prepare" in body["error"]
        assert answer(host.url, "fine", [1.0]) == [2.0]
        assert host.is_alive
    done = subprocess.run(
        [sys.executable, "-c", "from modelhost.cli.main import main; main()", "prepare", "--models", str(models)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with limited_host(models, limit_bytes=256 * _MB) as host:
        status, body = ask_vgg(host.url)
        assert status == 200, body
        assert body["outputs"][0]["shape"] == [1, 1000]
        figures = host.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0
