"""Every datatype through the real app and ONNX Runtime: JSON, binary and raw; scalars and empty tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import models_for_tests as build
import numpy as np
import pytest
from onnx import TensorProto
from served import Served, error_of, serve, settings, tensor

from modelhost.api.codec.binary_tensors import encode_texts
from modelhost.config import PrepareSettings
from modelhost.host import Host
from modelhost.tensors import BF16, DTYPES, from_bfloat16, to_bfloat16

ONNX = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
BINARY_ONLY = ("FP16", "BF16")
SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    "FP16": [0.1, -65504, 6e-8],
    "FP32": [0.1, -3.4028234663852886e38, 1e-45],
    "FP64": [0.1, -1.7976931348623157e308, 5e-324],
    "BF16": [0.1, -3.3895314e38, 1e-40],
    "BYTES": ["", "größe 日本 😀", 'a\x00"\\'],
}
SAMPLES |= {
    name: [int(np.iinfo(dtype.name).min), int(np.iinfo(dtype.name).max), 1]
    for name, dtype in DTYPES.items()
    if dtype.kind in "iu"
}
JSON_NAMES = [name for name in ONNX if name not in BINARY_ONLY]


def sample(datatype: str) -> np.ndarray:
    if datatype == "BF16":
        return to_bfloat16(SAMPLES[datatype])
    return np.array(SAMPLES[datatype], DTYPES[datatype])


def raw_of(array: np.ndarray) -> bytes:
    return encode_texts("x", array.ravel().tolist()) if array.dtype.kind == "O" else array.tobytes()


def array_of(datatype: str, shape: Sequence[int], raw: bytes) -> np.ndarray:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : end].decode())
        at = end
    return np.array(texts, object).reshape(shape)


def outputs_of(response: httpx.Response) -> dict[str, tuple[str, np.ndarray]]:
    """Returns datatype and value of each output of an answer that is all binary."""
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    raw, found = response.content[length:], {}
    for entry in json.loads(response.content[:length])["outputs"]:
        size = entry["parameters"]["binary_data_size"]
        found[entry["name"]] = (entry["datatype"], array_of(entry["datatype"], entry["shape"], raw[:size]))
        raw = raw[size:]
    assert not raw
    return found


def ask_binary(served: Served, model: str, feeds: dict[str, tuple[str, np.ndarray]]) -> httpx.Response:
    inputs, raw = [], b""
    for name, (datatype, array) in feeds.items():
        part = raw_of(array)
        entry = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        inputs.append(entry | {"parameters": {"binary_data_size": len(part)}})
        raw += part
    return ask(served, model, {"inputs": inputs, "parameters": {"binary_data_output": True}}, raw)


def ask(served: Served, model: str, document: Any, raw: bytes, *, spaces: int = 0) -> httpx.Response:
    """Asks with tensors behind a JSON part that has so many spaces at its end."""
    head = json.dumps(document).encode() + b" " * spaces
    return served.infer(model, head + raw, headers={"Inference-Header-Content-Length": str(len(head))})


def ask_raw(served: Served, model: str, body: bytes) -> httpx.Response:
    return served.infer(model, body, headers={"Inference-Header-Content-Length": "0"})


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model for each datatype, and some of several."""
    directory = tmp_path_factory.mktemp("kinds")
    for name, element_type in ONNX.items():
        build.save(build.identity(element_type), directory, name)
    build.save(build.identities([kind for name, kind in ONNX.items() if name != "BF16"], []), directory, "scalars")
    build.save(build.identities([TensorProto.BFLOAT16, TensorProto.FLOAT], []), directory, "scalars_bf16")
    numbers = [kind for name, kind in ONNX.items() if name != "BYTES"]
    build.save(build.identities(numbers, ["a", 0, "b"]), directory, "numbers")
    build.save(build.identities([TensorProto.STRING], ["a", 0, "b"]), directory, "texts")
    build.save(build.identities([TensorProto.BFLOAT16, TensorProto.STRING], ["n"]), directory, "bf16_beside_text")
    build.save(build.expand_bf16(), directory, "expand_bf16")
    bf16_models(directory)
    with serve(Host(settings(directory, memory={"limit": 1 << 30}))) as served:
        yield served


def bf16_models(directory: Path) -> None:
    build.save(build.cast(TensorProto.BFLOAT16, TensorProto.FLOAT), directory, "from_bf16")
    build.save(build.cast(TensorProto.FLOAT, TensorProto.BFLOAT16), directory, "to_bf16")
    build.save(build.dense_bf16(512), directory, "dense_bf16")


# --- every datatype ------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ONNX)
def test_metadata_says_the_datatype_loaded_or_not(kinds: Served, datatype: str) -> None:
    kinds.post(f"/v2/repository/models/{datatype}/unload")
    before = kinds.get(f"/v2/models/{datatype}").json()
    assert kinds.post(f"/v2/repository/models/{datatype}/load").status_code == 200
    assert kinds.get(f"/v2/models/{datatype}").json() == before
    assert before["inputs"] == [{"name": "x", "datatype": datatype, "shape": [-1]}]
    assert before["outputs"] == [{"name": "y", "datatype": datatype, "shape": [-1]}]


@pytest.mark.parametrize("datatype", JSON_NAMES)
def test_json_comes_back_as_it_went(kinds: Served, datatype: str) -> None:
    (output,) = kinds.infer(datatype, tensor("x", datatype, [3], SAMPLES[datatype])).json()["outputs"]
    assert (output["datatype"], output["shape"]) == (datatype, [3])
    assert np.array_equal(np.array(output["data"], DTYPES[datatype]), sample(datatype))


@pytest.mark.parametrize("datatype", ONNX)
def test_bytes_come_back_as_they_went(kinds: Served, datatype: str) -> None:
    want = sample(datatype)
    ((name, got),) = outputs_of(ask_binary(kinds, datatype, {"x": (datatype, want)})).values()
    assert name == datatype
    assert got.tolist() == want.tolist()


@pytest.mark.parametrize("datatype", ONNX)
def test_a_body_of_nothing_but_the_tensor_comes_back(kinds: Served, datatype: str) -> None:
    want = np.array(["größe 😀"], object) if datatype == "BYTES" else sample(datatype)
    body = want[0].encode() if datatype == "BYTES" else want.tobytes()
    ((name, got),) = outputs_of(ask_raw(kinds, datatype, body)).values()
    assert (name, got.tolist()) == (datatype, want.tolist())


@pytest.mark.parametrize("datatype", ONNX)
def test_an_empty_tensor_comes_back_empty(kinds: Served, datatype: str) -> None:
    empty = np.empty(0, DTYPES[datatype])
    ((_, got),) = outputs_of(ask_binary(kinds, datatype, {"x": (datatype, empty)})).values()
    assert got.shape == (0,)
    if datatype not in BINARY_ONLY:
        (output,) = kinds.infer(datatype, tensor("x", datatype, [0], [])).json()["outputs"]
        assert (output["datatype"], output["shape"], output["data"]) == (datatype, [0], [])
    if datatype != "BYTES":
        ((_, got),) = outputs_of(ask_raw(kinds, datatype, b"")).values()
        assert got.shape == (0,)


@pytest.mark.parametrize("model", ["numbers", "texts"])
def test_a_shape_with_a_zero_in_it_is_kept(kinds: Served, model: str) -> None:
    names = [name for name in ONNX if (name == "BYTES") is (model == "texts")]
    feeds = {f"x{ONNX[name]}": (name, np.empty((2, 0, 3), DTYPES[name])) for name in names}
    found = outputs_of(ask_binary(kinds, model, feeds))
    assert {name: (kind, value.shape) for name, (kind, value) in found.items()} == {
        f"y{ONNX[name]}": (name, (2, 0, 3)) for name in names
    }


@pytest.mark.parametrize("model", ["scalars", "scalars_bf16"])
def test_scalars_are_tensors_without_dimensions(kinds: Served, model: str) -> None:
    faces = kinds.get(f"/v2/models/{model}").json()["inputs"]
    assert all(face["shape"] == [] for face in faces)
    feeds = {face["name"]: (face["datatype"], sample(face["datatype"])[1:2].reshape(())) for face in faces}
    found = outputs_of(ask_binary(kinds, model, feeds))
    assert len(found) == len(feeds)
    for name, (datatype, value) in feeds.items():
        assert found[name.replace("x", "y")] == (datatype, value)


def test_json_scalars_are_lists_of_one(kinds: Served) -> None:
    faces = kinds.get("/v2/models/scalars").json()["inputs"]
    binary = {face["name"]: face["datatype"] in BINARY_ONLY for face in faces}
    inputs, raw = [], b""
    for face in faces:
        value = sample(face["datatype"])[1:2]
        entry = {"name": face["name"], "datatype": face["datatype"], "shape": []}
        if binary[face["name"]]:
            inputs.append(entry | {"parameters": {"binary_data_size": value.nbytes}})
            raw += value.tobytes()
        else:
            inputs.append(entry | {"data": value.tolist()})
    asked = [{"name": name.replace("x", "y"), "parameters": {"binary_data": binary[name]}} for name in binary]
    response = ask(kinds, "scalars", {"inputs": inputs, "outputs": asked}, raw)
    outputs = json.loads(response.content[: int(response.headers["inference-header-content-length"])])["outputs"]
    assert all(output["shape"] == [] for output in outputs)
    for output in outputs:
        datatype = output["datatype"]
        if not binary[output["name"].replace("y", "x")]:
            assert np.array(output["data"], DTYPES[datatype]) == sample(datatype)[1:2]
    assert len(outputs) == len(faces)


@pytest.mark.parametrize("datatype", BINARY_ONLY)
def test_what_json_has_no_numbers_for_is_binary_only(kinds: Served, datatype: str) -> None:
    error = error_of(kinds.infer(datatype, tensor("x", datatype, [1], [1])), 400)
    assert error["error"] == f"tensor 'x': expected binary data, as JSON has no {datatype}, got JSON data"
    raw = sample(datatype).tobytes()
    entry = {"name": "x", "datatype": datatype, "shape": [3], "parameters": {"binary_data_size": len(raw)}}
    response = ask(kinds, datatype, {"inputs": [entry]}, raw)
    assert f"output 'y': JSON has no {datatype}; ask for it with binary_data true" in response.json()["error"]
    assert response.json()["code"] == "unrepresentable_output"


# --- BF16 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The models of BF16, measured and not prepared."""
    directory = tmp_path_factory.mktemp("measured")
    bf16_models(directory)
    chosen = settings(directory, memory={"limit": 1 << 30})
    with serve(Host(chosen.model_copy(update={"prepare": PrepareSettings(on_load=False)}))) as served:
        yield served


@pytest.fixture(params=["prepared", "measured"])
def served(request: pytest.FixtureRequest) -> Served:
    return request.getfixturevalue("kinds" if request.param == "prepared" else "measured")


def artifacts(served: Served) -> list[Path]:
    return list(served.host.settings.models.directory.glob(".modelhost/*/model.bin"))


def test_bf16_in_and_numbers_out(served: Served) -> None:
    want = sample("BF16")
    body = ask_binary(served, "from_bf16", {"x": ("BF16", want)})
    assert outputs_of(body)["y"][1].tolist() == from_bfloat16(want).tolist()
    entry = {"name": "x", "datatype": "BF16", "shape": [1], "parameters": {"binary_data_size": 2}}
    response = ask(served, "from_bf16", {"inputs": [entry]}, b"\xc0\x3f")
    assert response.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.5]}]


def test_numbers_in_and_bf16_out(served: Served) -> None:
    wide = np.array([0.1, -1, 1e30], np.float32)
    assert outputs_of(ask_raw(served, "to_bf16", wide.tobytes()))["y"] == ("BF16", pytest.approx(to_bfloat16(wide)))


def test_bf16_in_and_out_of_a_model_with_weights(served: Served) -> None:
    numbers = np.arange(3 * 512, dtype=np.float32).reshape(3, 512) % 100
    kind, got = outputs_of(ask_raw(served, "dense_bf16", to_bfloat16(numbers).tobytes()))["y"]
    assert (kind, got.dtype) == ("BF16", BF16)
    assert np.array_equal(from_bfloat16(got), 2 * numbers)
    is_prepared = served.host.settings.prepare.on_load
    assert bool(artifacts(served)) is is_prepared
    (model,) = (model for model in served.snapshot().models if model.name == "dense_bf16")
    assert (model.committed_bytes < 512 * 512 * 4) is is_prepared  # the weights are a file's pages, or on the heap


def test_bf16_wherever_it_lies_in_a_body(kinds: Served) -> None:
    want = sample("BF16")
    entry = {"name": "x", "datatype": "BF16", "shape": [3], "parameters": {"binary_data_size": 6}}
    document = {"inputs": [entry], "parameters": {"binary_data_output": True}}
    for spaces in range(4):
        got = outputs_of(ask(kinds, "BF16", document, want.tobytes(), spaces=spaces))["y"][1]
        assert got.tolist() == want.tolist()


def test_a_bf16_tensor_of_the_wrong_size_or_shape_is_refused(kinds: Served) -> None:
    assert "expected a multiple of 2 bytes" in error_of(ask_raw(kinds, "BF16", b"\0" * 3), 400)["error"]
    wrong = np.zeros((1, 2), BF16)
    error = error_of(ask_binary(kinds, "BF16", {"x": ("BF16", wrong)}), 400)
    assert (error["expected"], error["got"]) == ("BF16 [n]", "shape [1, 2]")
    error = error_of(ask_binary(kinds, "BF16", {"x": ("FP16", np.zeros(2, np.float16))}), 400)
    assert (error["expected"], error["got"]) == ("datatype BF16", "FP16")


def test_the_activation_ceiling_holds_for_bf16(kinds: Served) -> None:
    feeds = {"x": ("BF16", to_bfloat16([3])), "times": ("INT64", np.array([5]))}
    assert from_bfloat16(outputs_of(ask_binary(kinds, "expand_bf16", feeds))["y"][1]).tolist() == [3] * 5
    feeds["times"] = ("INT64", np.array([10**10]))
    error = error_of(ask_binary(kinds, "expand_bf16", feeds), 413)
    assert error["code"] == "run_too_large"


def test_what_the_binding_cannot_run_is_refused_at_the_load(kinds: Served) -> None:
    error = error_of(kinds.post("/v2/repository/models/bf16_beside_text/load"), 500)
    assert error["code"] == "model_broken"
    assert "output 'y16' is BF16" in error["error"]
    assert "does not carry the input 'x8', tensor(string)" in error["error"]
