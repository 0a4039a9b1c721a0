"""Outputs that are no tensors, as scikit-learn exports have them: one JSON text for each element."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import models_for_tests as build
import numpy as np
import pytest
from onnx import TensorProto
from served import Served, error_of, serve, settings, tensor
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from modelhost.host import Host

ROWS = [0.25, 0.75, 0.5, 0.5, 1, 0]
ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("structured")
    build.save(build.zip_map(["no", 'größe "1"\n']), directory, "by_text")
    build.save(build.zip_map([-5, 7]), directory, "by_number")
    for name, kind in ELEMENT_TYPES.items():
        build.save(build.pair(kind, ["n"]), directory, f"pair_{name}")
    build.save(build.pair(TensorProto.FLOAT, ["a", "b", "c"]), directory, "pair")
    build.save(build.pair(TensorProto.FLOAT, []), directory, "pair_of_scalars")
    build.save(build.optionals(), directory, "optionals")
    build.save(build.map_input(), directory, "map_input")
    build.save(build.pair_of_reciprocals(), directory, "to_infinity")
    with serve(Host(settings(directory, memory={"limit": 1 << 30}))) as running:
        yield running


def elements(output: dict[str, Any]) -> list[Any]:
    assert output["datatype"] == "BYTES"
    assert output["shape"] == [len(output["data"])]
    return [json.loads(text) for text in output["data"]]


@pytest.mark.parametrize("name", ["by_text", "by_number", "pair", "pair_BYTES", "optionals"])
def test_metadata_lists_them_as_texts_loaded_or_not(served: Served, name: str) -> None:
    served.post(f"/v2/repository/models/{name}/unload")
    before = served.get(f"/v2/models/{name}").json()
    configured = served.get(f"/v2/models/{name}/config").json()
    assert served.post(f"/v2/repository/models/{name}/load").status_code == 200
    assert served.get(f"/v2/models/{name}").json() == before
    assert served.get(f"/v2/models/{name}/config").json() == configured
    *_, last = before["outputs"]
    assert (last["datatype"], last["shape"]) == ("BYTES", [-1])
    assert configured["output"][-1]["data_type"] == "TYPE_STRING"


@pytest.mark.parametrize(("name", "keys"), [("by_text", ["no", 'größe "1"\n']), ("by_number", ["-5", "7"])])
def test_a_classifiers_maps_are_objects_in_the_order_of_the_rows(served: Served, name: str, keys: list[str]) -> None:
    label, probabilities = served.infer(name, tensor("x", "FP32", [3, 2], ROWS)).json()["outputs"]
    assert (label["name"], label["datatype"], label["data"]) == ("label", "INT64", [1, 0, 0])
    assert probabilities["name"] == "probabilities"
    rows = [(0.25, 0.75), (0.5, 0.5), (1, 0)]
    assert elements(probabilities) == [dict(zip(keys, row, strict=True)) for row in rows]


def test_v1_has_them_as_json_itself(served: Served) -> None:
    rows = [[0.25, 0.75], [1, 0]]
    wanted = [{"-5": 0.25, "7": 0.75}, {"-5": 1.0, "7": 0.0}]
    by_row = served.post("/v1/models/by_number:predict", {"instances": rows})
    assert by_row.json() == {
        "predictions": [
            {"label": label, "probabilities": element} for label, element in zip([1, 0], wanted, strict=True)
        ]
    }
    whole = served.post("/v1/models/by_number:predict", {"inputs": rows})
    assert whole.json() == {"outputs": {"label": [1, 0], "probabilities": wanted}}
    tensors = served.post("/v1/models/pair:predict", {"inputs": [[[1.5]], [[2]]]})
    assert tensors.json() == {"outputs": [[[[1.5]], [[2]]]] * 2}


def test_v1_says_which_element_json_cannot_carry(served: Served) -> None:
    assert served.post("/v1/models/pair_FP32:predict", {"inputs": [3e38]}).json() == {"outputs": [[3e38], [3e38]]}
    wrong = served.post("/v1/models/to_infinity:predict", {"inputs": [0]})
    assert "element 0 holds inf" in error_of(wrong, 400)["error"]


def test_no_rows_are_no_elements(served: Served) -> None:
    _, probabilities = served.infer("by_text", tensor("x", "FP32", [0, 2], [])).json()["outputs"]
    assert elements(probabilities) == []


@pytest.mark.parametrize("binary", [True, False])
def test_a_client_reads_them_as_it_reads_texts(served: Served, binary: bool) -> None:
    client = InferenceServerClient(f"127.0.0.1:{served.port}")
    try:
        value = InferInput("x", [3, 2], "FP32")
        value.set_data_from_numpy(np.array(ROWS, np.float32).reshape(3, 2), binary_data=binary)
        asked = InferRequestedOutput("probabilities", binary_data=binary)
        found = client.infer("by_text", [value], outputs=[asked]).as_numpy("probabilities")
    finally:
        client.close()
    assert [json.loads(text)["no"] for text in found] == [0.25, 0.5, 1]


def test_the_other_outputs_may_be_asked_for_alone(served: Served) -> None:
    request = tensor("x", "FP32", [3, 2], ROWS) | {"outputs": [{"name": "label"}]}
    assert [out["name"] for out in served.infer("by_text", request).json()["outputs"]] == ["label"]


@pytest.mark.parametrize("binary", [True, False])
def test_what_json_cannot_carry_is_refused_by_name(served: Served, binary: bool) -> None:
    infinite = np.array([[0.5, 0.5], [np.inf, 0]], np.float32)
    head = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}]}
    text = json.dumps(head | {"parameters": {"binary_data_output": binary}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    asked = served.infer("by_text", text + infinite.tobytes(), headers=headers)
    body = error_of(asked, 400)
    assert body["code"] == "unrepresentable_output"
    assert "output 'probabilities': element 1 holds inf, which JSON cannot carry" in body["error"]


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP32", [0.1, -3e38]),
        ("FP64", [0.1, 5e-324]),
        ("BYTES", ["", 'größe "😀"\\']),
    ],
)
def test_a_sequence_of_tensors_is_a_text_for_each(served: Served, datatype: str, values: list[Any]) -> None:
    (output,) = served.infer(f"pair_{datatype}", tensor("x", datatype, [2], values)).json()["outputs"]
    assert elements(output) == [values, values]


def test_half_precision_numbers_within_a_sequence_are_numbers(served: Served) -> None:
    raw = np.array([0.5, -65504], np.float16).tobytes()
    response = served.infer("pair_FP16", raw, headers={"Inference-Header-Content-Length": "0"})
    length = int(response.headers["inference-header-content-length"])
    assert response.content[length:] == (b"\x0e\x00\x00\x00[0.5,-65504.0]") * 2


@pytest.mark.parametrize("shape", [(2, 1, 3), (0, 2, 1), (1, 0, 2), (1, 2, 0)])
def test_tensors_within_a_sequence_are_nested_lists(served: Served, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (output,) = served.infer("pair", tensor("x", "FP32", shape, array.ravel().tolist())).json()["outputs"]
    assert elements(output) == [array.tolist()] * 2


def test_scalars_within_a_sequence_are_numbers(served: Served) -> None:
    (output,) = served.infer("pair_of_scalars", tensor("x", "FP32", [], [1.5])).json()["outputs"]
    assert elements(output) == [1.5, 1.5]


def test_an_optional_is_its_value_or_null(served: Served) -> None:
    outputs = served.infer("optionals", tensor("x", "FP32", [2], [1, 2])).json()["outputs"]
    assert {out["name"]: elements(out) for out in outputs} == {
        "some": [[1, 2]],
        "none": [None],
        "several": [[1, 2]],
        "empty": [],
    }


def test_a_large_answer_is_refused_before_it_is_written(served: Served) -> None:
    rows = 60_000
    text = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [rows, 2], "parameters": {"binary_data_size": rows * 8}}
            ],
            "outputs": [{"name": "probabilities"}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    error = error_of(served.infer("by_text", text + bytes(rows * 8), headers=headers), 413)
    assert error["code"] == "request_too_large"
    assert "the answer takes" in error["error"]


def test_what_takes_a_map_is_refused_with_its_reason(served: Served) -> None:
    error = error_of(served.post("/v2/repository/models/map_input/load"), 500)
    assert "inputs 'x' are no tensors, which the V2 protocol cannot carry" in error["error"]
