"""Files that are written to, not renamed, while a session has them open."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from host_process import running_host
from onnx import TensorProto, helper, numpy_helper

ROWS, WIDTH = 4096, 64


def put_table(directory: Path, value: float) -> Path:
    """Writes a model whose answer is a row of a table in a file of its own; returns that file."""
    table = numpy_helper.from_array(np.full((ROWS, WIDTH), value, np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx", save_as_external_data=True, location="table.bin", size_threshold=0)
    return directory / "table.bin"


@pytest.mark.parametrize("on_load", ["true", "false"], ids=["prepared", "as it is"])
def test_weights_that_are_cut_off_and_written_again_change_nothing_until_they_are_taken_over(
    tmp_path: Path, on_load: str
) -> None:
    models = tmp_path / "models"
    data = put_table(models / "a/1", 1)
    after = put_table(tmp_path / "after", 2).read_bytes()
    with (
        running_host(tmp_path, models, MODELHOST_PREPARE_ON_LOAD=on_load) as host,
        httpx.Client(base_url=host.url, timeout=30) as client,
    ):

        def answer() -> set[float]:
            tensor = {"name": "x", "datatype": "INT64", "shape": [2], "data": [0, ROWS - 1]}
            answered = client.post("/v2/models/a/infer", json={"inputs": [tensor]})
            assert answered.status_code == 200, answered.text
            return set(answered.json()["outputs"][0]["data"])

        assert answer() == {1}
        with data.open("r+b") as stream:
            stream.truncate(0)
            client.post("/v2/repository/index")
            assert answer() == {1}
            stream.write(after[: len(after) // 2])
            stream.flush()
            assert answer() == {1}
            stream.write(after[len(after) // 2 :])
        assert answer() == {1}
        client.post("/v2/repository/index")
        deadline = time.monotonic() + 20
        while (found := answer()) == {1}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert found == {2}
        assert host.process.poll() is None
