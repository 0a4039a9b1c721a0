"""Encoding of V2 responses: the bytes, and what has no V2 form."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import orjson
import pytest

from modelhost.api.codec import EncodedResponse, OutputRequest, decode_request, encode_cost_bytes, encode_response
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import DTYPES, TensorSpec, datatype_of


def encode(*outputs: tuple[Any, bool], request_id: str = "") -> EncodedResponse:
    return encode_response(
        model_name="m",
        model_version="1",
        request_id=request_id,
        outputs=[
            (OutputRequest(f"y{i}", binary), TensorSpec(f"y{i}", "FP32", None), np.asarray(array))
            for i, (array, binary) in enumerate(outputs)
        ],
    )


def test_json_response_to_the_byte() -> None:
    response = encode((np.array([[0.1, 2]], np.float32), False), request_id="7")
    assert response.header_length is None
    assert response.body == (
        b'{"model_name":"m","model_version":"1","id":"7","outputs":'
        b'[{"name":"y0","datatype":"FP32","shape":[1,2],"data":[0.1,2.0]}]}'
    )


def test_raw_response_to_the_byte() -> None:
    response = encode((np.array([[1], [2]], np.int16), True), ([True], False), (np.array([3], np.uint8), True))
    text = (
        b'{"model_name":"m","model_version":"1","outputs":'
        b'[{"name":"y0","datatype":"INT16","shape":[2,1],"parameters":{"binary_data_size":4}},'
        b'{"name":"y1","datatype":"BOOL","shape":[1],"data":[true]},'
        b'{"name":"y2","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}}]}'
    )
    assert response.header_length == len(text)
    assert text + b"\x01\x00\x02\x00\x03" == response.body


def test_an_empty_raw_output_still_has_the_header() -> None:
    response = encode((np.empty((0, 2), np.float32), True))
    assert response.header_length == len(response.body)


@pytest.mark.parametrize(
    "array",
    [np.float32(3), np.arange(6.0).reshape(2, 3).T, np.arange(10)[::2], np.empty((2, 0))],
)
@pytest.mark.parametrize("binary", [True, False])
def test_any_memory_layout_is_written_row_major(array: Any, binary: bool) -> None:
    array = np.asarray(array)
    response = encode((array, binary))
    output = orjson.loads(response.body[: response.header_length])["outputs"][0]
    assert list(array.shape) == output["shape"]
    if binary:
        assert array.tobytes() == response.body[response.header_length :]
    else:
        assert array.ravel().tolist() == output["data"]


VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False],
    "FP16": [1.5, -65504],
    "FP32": [0.1, 3.4e38],
    "FP64": [0.1, 5e-324],
    "BF16": [b"\x80\x3f", b"\x00\x80"],
    "BYTES": ["", "日\x00😀"],
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_what_is_encoded_decodes_to_the_same(datatype: str, binary: bool) -> None:
    dtype = DTYPES[datatype]
    limits = [np.iinfo(dtype.name).min, np.iinfo(dtype.name).max] if dtype.kind in "iu" else VALUES[datatype]
    array = np.array(limits, dtype=dtype).reshape(2, 1)
    if datatype in ("FP16", "BF16") and not binary:
        pytest.skip(f"{datatype} has no JSON form")
    response = encode((array, binary))
    # A response's outputs have the form of a request's inputs.
    body = response.body.replace(b'"outputs"', b'"inputs"')
    header = None if response.header_length is None else response.header_length - 1
    request = decode_request(
        body,
        header_length=header,
        inputs={"y0": TensorSpec("y0", datatype, (2, 1))},
        outputs={},
        max_decoded_bytes=1 << 20,
    )
    assert datatype_of(request.feeds["y0"].dtype) == datatype
    assert array.tolist() == request.feeds["y0"].tolist()


@pytest.mark.parametrize(
    ("array", "binary", "words"),
    [
        (np.array([[1, np.nan]], np.float32), False, ("element 1 is nan", "binary_data")),
        (np.array([np.inf], np.float64), False, ("element 0 is inf", "binary_data")),
        (np.array([1], np.float16), False, ("FP16", "binary_data")),
        (np.array([b"\x80\x3f"], "V2"), False, ("JSON has no BF16", "binary_data")),
        (np.array([b"\x80\x3f\0"], "V3"), True, ("no datatype for numpy",)),
        (np.array([1], np.complex64), True, ("no datatype for numpy complex64",)),
        (np.array([b"a"], dtype=object), True, ("element 0 is bytes",)),
        (np.array([1, "a"], dtype=object), False, ("element 0 is int",)),
        (np.array(["a", "\ud800"], dtype=object), True, ("element 1", "no UTF-8 form")),
        (np.array(["a", "\ud800"], dtype=object), False, ("element 1", "no UTF-8 form")),
    ],
)
def test_what_has_no_form_is_refused_by_name(array: Any, binary: bool, words: Any) -> None:
    with pytest.raises(UnrepresentableOutput) as caught:
        encode(([1], False), (array, binary))
    assert "output 'y1'" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_nan_is_fine_in_raw_bytes() -> None:
    array = np.array([np.nan], np.float32)
    response = encode((array, True))
    assert response.body.endswith(array.tobytes())


@pytest.mark.parametrize("is_in_order", [True, False])
def test_a_raw_output_takes_its_bytes_and_those_of_a_copy_only_where_it_is_not_in_order(is_in_order: bool) -> None:
    square = np.zeros((500, 500), np.float32)
    output = square if is_in_order else square.T
    outputs = [(OutputRequest("y", True), TensorSpec("y", "FP32", None), output)]
    bound = encode_cost_bytes(outputs)
    assert 0 <= bound - (1 if is_in_order else 2) * square.nbytes <= 16 << 10
    peaks = []
    for _ in range(3):  # threads that other tests have left allocate too, now and then
        tracemalloc.start()
        try:
            encode((output, True))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert min(peaks) <= bound
