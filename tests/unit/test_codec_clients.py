"""The codec against the bytes that the real client library writes and reads."""

from __future__ import annotations

import gzip
from typing import Any

import ml_dtypes  # comes with onnx, and is what the client takes and gives for BF16
import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from modelhost.api.codec import (
    InferRequest,
    OutputRequest,
    decode_request,
    decompress,
    encode_response,
)
from modelhost.tensors import BF16, DTYPES, TensorSpec

OUTPUTS = {name: TensorSpec(name, "FP32", (-1,)) for name in ("y", "z")}
LIMIT = 1 << 24


def decode(inputs: list[InferInput], specs: dict[str, TensorSpec], **rest: Any) -> InferRequest:
    body, header = InferenceServerClient.generate_request_body(inputs, **rest)
    return decode_request(body, header_length=header, inputs=specs, outputs=OUTPUTS, max_decoded_bytes=LIMIT)


def client_input(name: str, datatype: str, array: Any, *, binary: bool) -> InferInput:
    value = InferInput(name, list(array.shape), datatype)
    value.set_data_from_numpy(array, binary_data=binary)
    return value


def sample(datatype: str) -> Any:
    if datatype == "BYTES":
        return np.array([["a", "é"], ["", "日本"]], dtype=np.object_)
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else DTYPES[datatype]
    return np.array([[0, 1], [1, 0]]).astype(dtype)


def host_form(array: Any) -> Any:
    return array.view(BF16) if array.dtype == ml_dtypes.bfloat16 else array


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_inputs_of_every_datatype(datatype: str, binary: bool) -> None:
    if datatype in ("FP16", "BF16") and not binary:
        pytest.skip(f"{datatype} has no JSON form")
    array = sample(datatype)
    request = decode(
        [client_input("x", datatype, array, binary=binary)],
        {"x": TensorSpec("x", datatype, (-1, 2))},
    )
    assert host_form(array).tolist() == request.feeds["x"].tolist()
    # The client asks for all outputs as raw bytes where it names none.
    assert (OutputRequest("y", True), OutputRequest("z", True)) == request.outputs


def test_mixed_inputs_and_named_outputs() -> None:
    arrays = {"a": sample("FP32"), "b": sample("INT64"), "c": sample("BYTES")}
    datatypes = {"a": "FP32", "b": "INT64", "c": "BYTES"}
    request = decode(
        [client_input(name, datatypes[name], arrays[name], binary=name != "b") for name in arrays],
        {name: TensorSpec(name, datatypes[name], (2, 2)) for name in arrays},
        outputs=[
            InferRequestedOutput("z", binary_data=False),
            InferRequestedOutput("y", binary_data=True),
        ],
        request_id="17",
        sequence_id=3,
        sequence_start=True,
        priority=2,
        timeout=250_000,
    )
    assert (OutputRequest("z", False), OutputRequest("y", True)) == request.outputs
    assert (request.id, request.timeout_s) == ("17", 0.25)
    for name, array in arrays.items():
        assert array.tolist() == request.feeds[name].tolist()


def test_json_with_the_header_as_the_cpp_client_sends_it() -> None:
    array = sample("INT32")
    body, header = InferenceServerClient.generate_request_body([client_input("x", "INT32", array, binary=False)])
    assert header is None
    request = decode_request(
        body,
        header_length=len(body),
        inputs={"x": TensorSpec("x", "INT32", (2, 2))},
        outputs=OUTPUTS,
        max_decoded_bytes=LIMIT,
    )
    assert array.tolist() == request.feeds["x"].tolist()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_the_client_reads_outputs_of_every_datatype(datatype: str, binary: bool) -> None:
    if datatype in ("FP16", "BF16") and not binary:
        pytest.skip(f"{datatype} has no JSON form")
    array = sample(datatype)
    response = encode_response(
        model_name="m",
        model_version="1",
        request_id="5",
        outputs=[
            (OutputRequest("y", binary), TensorSpec("y", datatype, (-1, 2)), host_form(array)),
            (OutputRequest("z", True), OUTPUTS["z"], np.array([2.5], np.float32)),
        ],
    )
    result = InferenceServerClient.parse_response_body(response.body, header_length=response.header_length)
    assert isinstance(result, InferResult)
    got = result.as_numpy("y")
    want = [[text.encode() for text in row] for row in array] if datatype == "BYTES" else array
    if datatype == "BYTES" and not binary:
        want = array
    assert np.array_equal(np.asarray(want, dtype=got.dtype), got)
    assert result.as_numpy("z").tolist() == [2.5]
    assert result.get_response()["id"] == "5"


def test_the_client_reads_a_response_that_is_all_json() -> None:
    response = encode_response(
        model_name="m",
        model_version="1",
        request_id="",
        outputs=[(OutputRequest("y", False), OUTPUTS["y"], np.array([[1.5]], np.float32))],
    )
    result = InferenceServerClient.parse_response_body(response.body)
    assert result.as_numpy("y").tolist() == [[1.5]]


def test_a_compressed_body_counts_its_header_uncompressed() -> None:
    array = sample("FP32")
    body, header = InferenceServerClient.generate_request_body([client_input("x", "FP32", array, binary=True)])
    request = decode_request(
        decompress(gzip.compress(body), "gzip", max_bytes=len(body)),
        header_length=header,
        inputs={"x": TensorSpec("x", "FP32", (2, 2))},
        outputs=OUTPUTS,
        max_decoded_bytes=LIMIT,
    )
    assert array.tolist() == request.feeds["x"].tolist()
