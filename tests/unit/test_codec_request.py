"""Decoding of V2 requests: what is accepted, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from modelhost.api.codec import InferRequest, OutputRequest, decode_request, parse_header_length
from modelhost.errors import InvalidRequest, InvalidTensor, RequestTooLarge
from modelhost.tensors import DTYPES, TensorSpec

LIMIT = 1 << 30
OUTPUTS = {name: TensorSpec(name, "FP32", (-1,)) for name in ("y", "z")}


def spec(datatype: str, *shape: int) -> dict[str, TensorSpec]:
    return {"x": TensorSpec("x", datatype, shape)}


def tensor(datatype: str, shape: Any, data: Any = None, **parameters: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    if data is not None:
        entry["data"] = data
    return entry | ({"parameters": parameters} if parameters else {})


def decode(
    document: Any,
    inputs: dict[str, TensorSpec],
    raw: bytes = b"",
    *,
    limit: int = LIMIT,
) -> InferRequest:
    text = document if isinstance(document, bytes) else orjson.dumps(document)
    return decode_request(
        text + raw,
        header_length=len(text) if raw else None,
        inputs=inputs,
        outputs=OUTPUTS,
        max_decoded_bytes=limit,
    )


def one(entry: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"inputs": [entry], **rest}


# --- accepted ----------------------------------------------------------------------------------

SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False, True, True, False, False],
    "FP32": [0, -1.5, 3.4028234663852886e38, 1e-45, 7, 0.1],
    "FP64": [0, -1.5, 1.7976931348623157e308, 5e-324, 7, 0.1],
    "BYTES": ["", "a", "é", "日本", "😀", "\x00"],
}
for _name, _dtype in DTYPES.items():
    if _dtype.kind in "iu":
        SAMPLES[_name] = [
            int(np.iinfo(_dtype.name).min),
            int(np.iinfo(_dtype.name).max),
            0,
            1,
            2,
            3,
        ]


@pytest.mark.parametrize("nest", [lambda a: a.ravel(), lambda a: a, lambda a: a.reshape(2, 3)])
@pytest.mark.parametrize("datatype", SAMPLES)
def test_json_data_of_every_datatype_may_be_flat_or_nested(datatype: str, nest: Any) -> None:
    want = np.array(SAMPLES[datatype], dtype=DTYPES[datatype]).reshape(2, 3, 1)
    data = nest(np.array(SAMPLES[datatype], dtype=object).reshape(2, 3, 1)).tolist()
    got = decode(one(tensor(datatype, [2, 3, 1], data)), spec(datatype, -1, 3, 1)).feeds["x"]
    assert want.dtype == got.dtype
    assert want.shape == got.shape
    assert want.tolist() == got.tolist()


@pytest.mark.parametrize("shift", range(8))
@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
def test_raw_data_of_every_datatype_is_aligned_wherever_it_lies(datatype: str, shift: int) -> None:
    want = np.array([0, 1, 1, 0, 1, 0]).astype(DTYPES[datatype]).reshape(3, 2)
    text = orjson.dumps(one(tensor(datatype, [3, 2], binary_data_size=want.nbytes))) + b" " * shift
    got = decode(text, spec(datatype, -1, 2), want.tobytes()).feeds["x"]
    assert want.dtype == got.dtype
    assert got.ctypes.data % got.itemsize == 0
    assert want.tolist() == got.tolist()


def test_raw_numbers_are_a_view_on_the_body_where_aligned() -> None:
    want = np.arange(4, dtype=np.float32)
    text = orjson.dumps(one(tensor("FP32", [4], binary_data_size=16)))
    body = bytearray(64 + len(text) + 16)
    # Place the body so that its raw part begins at a multiple of 16.
    start = -(np.frombuffer(body, np.uint8).ctypes.data + len(text)) % 16
    body[start : start + len(text) + 16] = text + want.tobytes()
    view = memoryview(body)[start : start + len(text) + 16]
    request = decode_request(
        view,
        header_length=len(text),
        inputs=spec("FP32", 4),
        outputs=OUTPUTS,
        max_decoded_bytes=LIMIT,
    )
    assert np.shares_memory(np.frombuffer(body, np.uint8), request.feeds["x"])


def test_raw_texts_are_framed_by_their_length() -> None:
    raw = b"\x00\x00\x00\x00" + b"\x02\x00\x00\x00\xc3\xa9" + b"\x01\x00\x00\x00a"
    request = decode(one(tensor("BYTES", [3], binary_data_size=len(raw))), spec("BYTES", -1), raw)
    assert request.feeds["x"].tolist() == ["", "é", "a"]


def test_json_and_raw_inputs_mix_in_one_request() -> None:
    specs = {name: TensorSpec(name, "INT16", (2,)) for name in "abc"}
    entries = [
        {"name": "c", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
        {"name": "a", "datatype": "INT16", "shape": [2], "data": [3, 4]},
        {"name": "b", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}},
    ]
    request = decode({"inputs": entries}, specs, b"\x01\x00\x02\x00\x05\x00\x06\x00")
    assert {name: value.tolist() for name, value in request.feeds.items()} == {
        "c": [1, 2],
        "a": [3, 4],
        "b": [5, 6],
    }


@pytest.mark.parametrize(("shape", "data"), [([0, 3], []), ([2, 0], [[], []]), ([2, 0], []), ([2, 0, 3], [[], []])])
def test_empty_tensors(shape: list[int], data: list[Any]) -> None:
    inputs = spec("FP32", *[-1] * len(shape))
    assert tuple(shape) == decode(one(tensor("FP32", shape, data)), inputs).feeds["x"].shape
    entry = tensor("FP32", shape, binary_data_size=0)
    assert tuple(shape) == decode(one(entry), inputs).feeds["x"].shape


def test_scalars_are_lists_of_one() -> None:
    value = decode(one(tensor("INT64", [], [7])), spec("INT64")).feeds["x"]
    assert (value.shape, value.item()) == ((), 7)


def test_unknown_keys_reserved_parameters_and_nulls_are_ignored() -> None:
    document = one(
        tensor("INT8", [1], [1]) | {"parameters": None, "extra": 1},
        model_name="m",
        id=None,
        outputs=None,
        parameters={"sequence_id": 1, "priority": 2, "triton_x": 1, "headers": {}, "mine": []},
    )
    request = decode(document, spec("INT8", 1))
    assert (request.id, request.timeout_s) == ("", None)


def test_id_timeout_and_outputs_in_the_order_asked() -> None:
    document = one(
        tensor("INT8", [1], [1]),
        id="42",
        parameters={"timeout": 1500, "binary_data_output": True},
        outputs=[{"name": "z"}, {"name": "y", "parameters": {"binary_data": False}}],
    )
    request = decode(document, spec("INT8", 1))
    assert (request.id, request.timeout_s) == ("42", 0.0015)
    assert (OutputRequest("z", True), OutputRequest("y", False)) == request.outputs


@pytest.mark.parametrize("binary", [True, False])
def test_all_outputs_where_none_are_asked(binary: bool) -> None:
    document = one(tensor("INT8", [1], [1]), outputs=[], parameters={"binary_data_output": binary})
    outputs = decode(document, spec("INT8", 1)).outputs
    assert (OutputRequest("y", binary), OutputRequest("z", binary)) == outputs


# --- refused tensors ---------------------------------------------------------------------------

BAD_TENSORS: list[tuple[str, tuple[int, ...], Any, Any, str, str]] = [
    # model datatype, model shape, request shape, data, expected, got
    ("FP32", (2,), [3], [1, 2, 3], "FP32 [2]", "shape [3]"),
    ("FP32", (-1,), [2, 1], [1, 2], "FP32 [-1]", "shape [2, 1]"),
    ("FP32", (-1,), [3], [1, 2], "3 elements for shape [3]", "2 elements"),
    ("FP32", (-1,), [2**62], [1, 2], f"{2**62} elements", "2 elements"),
    ("FP32", (-1, -1), [2**63, 2**63], [1], f"{2**126} elements", "1 elements"),
    ("FP32", (-1, -1), [0, 2**62], [], f"at most {2**63 - 1} bytes", f"shape [0, {2**62}]"),
    ("FP32", (-1,), [-1], [1], "sizes of 0 or more", "-1"),
    ("FP32", (-1,), [True], [1], "sizes of 0 or more", "true"),
    ("FP32", (-1,), [1.0], [1], "sizes of 0 or more", "1.0"),
    ("FP32", (-1,), "1", [1], "'shape' a list", '"1"'),
    ("FP32", (-1,), None, [1], "'shape' a list", "null"),
    ("FP32", (1,) * 33, [1] * 33, [1], "at most 32 sizes", "a list of 33"),
    ("FP32", (-1,), [1], "a", "'data' to be a list", '"a"'),
    ("FP32", (-1,), [1], {}, "'data' to be a list", "an object"),
    ("FP32", (-1,), [2], [1, "2"], "numbers for FP32", '"2" as element 1'),
    ("FP32", (-1,), [2], [1, None], "numbers for FP32", "null as element 1"),
    ("FP32", (-1,), [2], [True, 1], "numbers for FP32", "true as element 0"),
    ("FP64", (-1,), [2], [{}, 1], "numbers for FP64", "an object as element 0"),
    ("FP32", (-1,), [2], [1, 1e39], "for FP32", "1e+39 as element 1"),
    ("FP32", (-1,), [1], [-3.4028236e38], "from -3.4028234663852886e+38", "-3.4028236e+38"),
    ("INT32", (-1,), [2], [1, 1.5], "integers for INT32", "1.5 as element 1"),
    ("INT32", (-1,), [1], [1.0], "integers for INT32", "1.0 as element 0"),
    ("INT32", (-1,), [1], [False], "integers for INT32", "false as element 0"),
    ("INT8", (-1,), [2], [1, 128], "values from -128 to 127 for INT8", "128 as element 1"),
    ("UINT8", (-1,), [2], [1, -1], "values from 0 to 255 for UINT8", "-1 as element 1"),
    ("INT64", (-1,), [1], [2**63], f"to {2**63 - 1}", f"{2**63} as element 0"),
    ("UINT64", (-1,), [1], [-1], "values from 0", "-1 as element 0"),
    ("BOOL", (-1,), [2], [True, 1], "true or false for BOOL", "1 as element 1"),
    ("BOOL", (-1,), [1], ["true"], "true or false for BOOL", '"true" as element 0'),
    ("BYTES", (-1,), [2], ["a", 1], "strings for BYTES", "1 as element 1"),
    ("BYTES", (-1,), [1], [[65]], "no deeper than shape [1]", "inside of level 1"),
    ("FP16", (-1,), [1], [1], "binary data, as JSON has no FP16", "JSON data"),
    ("BF16", (-1,), [1], [1], "binary data, as JSON has no BF16", "JSON data"),
    ("COMPLEX64", (-1,), [1], [1], "a datatype of this server", "COMPLEX64"),
    # ragged and misplaced nesting
    ("FP32", (-1, -1), [2, 2], [[1, 2], [3]], "2 elements in each list at level 2", "in list 1"),
    ("FP32", (-1, -1), [2, 2], [[1, 2], 3], "only lists at level 1", "3 as entry 1"),
    ("FP32", (-1, -1), [2, 3], [[1, 2], [3, 4], [5, 6]], "2 elements", "3 elements"),
    ("FP32", (-1, -1), [1, 2], [[[1], [2]]], "no deeper than shape [1, 2]", "inside of level 2"),
    (
        "FP32",
        (-1, -1, -1),
        [2, 1, 2],
        [[[1, 2]], [[3]]],
        "2 elements in each list at level 3",
        "1 elements in list 1",
    ),
    ("FP32", (-1, -1), [2, 2], [[], [], [], []], "2 elements", "4 elements"),
]


@pytest.mark.parametrize(("datatype", "dims", "shape", "data", "expected", "got"), BAD_TENSORS)
def test_a_bad_json_tensor_is_named_with_what_was_expected_and_what_came(
    datatype: str, dims: tuple[int, ...], shape: Any, data: Any, expected: str, got: str
) -> None:
    with pytest.raises(InvalidTensor) as caught:
        decode(one(tensor(datatype, shape, data)), spec(datatype, *dims))
    assert caught.value.tensor == "x"
    assert expected in caught.value.expected
    assert got in caught.value.got
    assert str(caught.value).startswith("tensor 'x': expected ")


@pytest.mark.parametrize(
    ("datatype", "expected", "got"),
    [
        ("FP64", "datatype FP32", "FP64"),
        ("float", "datatype FP32", "float"),
        (None, "datatype FP32", "null"),
        (3, "datatype FP32", "3"),
        ("F" * 999, "datatype FP32", "(999 characters)"),
    ],
)
def test_the_datatype_has_to_be_the_models(datatype: Any, expected: str, got: str) -> None:
    with pytest.raises(InvalidTensor) as caught:
        decode(one(tensor(datatype, [1], [1])), spec("FP32", 1))
    assert expected == caught.value.expected
    assert got in caught.value.got


def frame(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


BAD_RAW: list[tuple[str, list[int], bytes, str, str]] = [
    ("FP32", [2], b"\0" * 4, "8 bytes for FP32 [2]", "4 bytes"),
    ("FP32", [1], b"\0" * 5, "4 bytes for FP32 [1]", "5 bytes"),
    ("FP32", [2**62], b"\0" * 4, f"{2**64} bytes", "4 bytes"),
    ("BOOL", [3], b"\1\0\2", "bytes 0 or 1", "byte 2 as element 2"),
    ("BYTES", [2], frame(b"a"), "2 BYTES elements of at least 4 bytes", "5 bytes"),
    ("BYTES", [2**62], frame(b"a"), f"{2**62} BYTES elements", "5 bytes"),
    ("BYTES", [1], b"\x05\0\0\0ab", "5 bytes for element 0", "2 bytes left"),
    (
        "BYTES",
        [2],
        frame(b"abcd") + b"\1\0",
        "4 bytes with the length of element 1",
        "2 bytes left",
    ),
    ("BYTES", [1], b"\xff\xff\xff\xff", f"{2**32 - 1} bytes for element 0", "0 bytes left"),
    ("BYTES", [1], frame(b"a", b"b"), "5 bytes for 1 BYTES elements", "10 bytes"),
    ("BYTES", [0], frame(b"a"), "0 bytes for 0 BYTES elements", "5 bytes"),
    ("BYTES", [2], frame(b"a", b"b\xff"), "UTF-8 text", "element 1"),
]


@pytest.mark.parametrize(("datatype", "shape", "raw", "expected", "got"), BAD_RAW)
def test_a_bad_raw_tensor_is_named_with_what_was_expected_and_what_came(
    datatype: str, shape: list[int], raw: bytes, expected: str, got: str
) -> None:
    with pytest.raises(InvalidTensor) as caught:
        decode(one(tensor(datatype, shape, binary_data_size=len(raw))), spec(datatype, -1), raw)
    assert caught.value.tensor == "x"
    assert expected in caught.value.expected
    assert got in caught.value.got


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        (tensor("FP32", [1], [1], binary_data_size=4), "both"),
        (tensor("FP32", [1]), "neither"),
        (tensor("FP32", [1], binary_data_size=-1), "-1"),
        (tensor("FP32", [1], binary_data_size=True), "true"),
        (tensor("FP32", [1], binary_data_size="4"), '"4"'),
    ],
)
def test_an_input_has_either_json_or_a_size_of_raw_bytes(entry: Any, got: str) -> None:
    with pytest.raises(InvalidTensor, match="tensor 'x'") as caught:
        decode(one(entry), spec("FP32", 1), b"\0" * 4)
    assert got in caught.value.got


# --- refused requests --------------------------------------------------------------------------

GOOD = tensor("FP32", [1], [1])
BAD_REQUESTS: list[tuple[Any, tuple[str, ...]]] = [
    (b"", ("not valid JSON",)),
    (b"{", ("not valid JSON",)),
    (b'{"a": NaN}', ("not valid JSON",)),
    (b'{"inputs": [Infinity]}', ("not valid JSON",)),
    (b'{"a": "\xff"}', ("not valid JSON",)),
    (b"[" * 100_000, ("not valid JSON",)),
    (b'{"a":' * 100_000, ("not valid JSON",)),
    (b'{"inputs":' + b"[" * 900 + b"]" * 900 + b"}", ("input 0 must be an object", "a list of 1")),
    (b"[]", ("must be a JSON object", "a list of 0")),
    (b"null", ("must be a JSON object", "null")),
    ({}, ("no 'inputs'",)),
    ({"inputs": {}}, ("'inputs' must be a list", "an object")),
    ({"inputs": None}, ("'inputs' must be a list", "null")),
    ({"inputs": [1]}, ("input 0 must be an object", "1")),
    ({"inputs": [{}]}, ("input 0", "'name'", "null")),
    ({"inputs": [{"name": 1}]}, ("input 0", "'name'", "1")),
    ({"inputs": [{"name": "n" * 2000}]}, ("input 0", "2000 characters", "at most 1024")),
    ({"inputs": []}, ("missing input 'x'", "FP32 [1]")),
    ({"inputs": [GOOD, GOOD]}, ("input 'x' is given twice",)),
    ({"inputs": [GOOD | {"name": "w"}]}, ("unknown input 'w'", "'x' FP32 [1]")),
    (one(GOOD, id=5), ("'id' must be a string", "5")),
    (one(GOOD, parameters=[]), ("'parameters' of the request", "a list of 0")),
    (one(GOOD | {"parameters": 1}), ("'parameters' of input 'x'", "1")),
    (one(GOOD, parameters={"timeout": 1.5}), ("'timeout'", "whole microseconds", "1.5")),
    (one(GOOD, parameters={"timeout": -1}), ("'timeout'", "-1")),
    (one(GOOD, parameters={"timeout": True}), ("'timeout'", "true")),
    (one(GOOD, parameters={"binary_data_output": 1}), ("'binary_data_output'", "true or false")),
    (one(tensor("FP32", [1], shared_memory_region="r")), ("shared_memory_region", "input 'x'")),
    (one(GOOD, outputs={}), ("'outputs' must be a list", "an object")),
    (one(GOOD, outputs=["y"]), ("output 0 must be an object", '"y"')),
    (one(GOOD, outputs=[{"name": "w"}]), ("unknown output 'w'", "'y', 'z'")),
    (one(GOOD, outputs=[{"name": "y"}, {"name": "y"}]), ("output 'y' is given twice",)),
    (
        one(GOOD, outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        ("'binary_data' of output 'y'", '"yes"'),
    ),
    (
        one(GOOD, outputs=[{"name": "y", "parameters": {"classification": 3}}]),
        ("'classification' of output 'y'", "not supported"),
    ),
    (
        one(GOOD, outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        ("'shared_memory_region' of output 'y'", "not supported"),
    ),
    (one(tensor("FP32", [1], binary_data_size=4)), ("declare 4 bytes", "0 bytes follow")),
]


@pytest.mark.parametrize(("document", "words"), BAD_REQUESTS)
def test_a_bad_request_is_refused_with_the_place_and_both_sides(document: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(document, spec("FP32", 1))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("size", [3, 5])
def test_raw_bytes_left_over_or_missing_are_refused_with_both_numbers(size: int) -> None:
    with pytest.raises(InvalidRequest, match=f"declare {size} bytes.* 4 bytes follow"):
        decode(one(tensor("FP32", [1], binary_data_size=size)), spec("FP32", 1), b"\0" * 4)


def test_a_header_past_the_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is 9, but the body has 2 bytes"):
        decode_request(b"{}", header_length=9, inputs={}, outputs={}, max_decoded_bytes=LIMIT)


def test_a_request_that_takes_too_much_memory_to_parse_is_refused_before_parsing() -> None:
    with pytest.raises(RequestTooLarge, match="send it as binary tensors") as caught:
        decode(b"[" + b"[],[]," * 1000, spec("FP32", 1), limit=10_000)
    assert caught.value.limit_bytes == 10_000
    assert caught.value.size_bytes > 10_000


def test_no_memory_to_parse_is_not_the_clients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def loads(text: bytes) -> Any:
        raise orjson.JSONDecodeError("Not enough memory to allocate buffer for parsing", "", 0)

    monkeypatch.setattr(orjson, "loads", loads)
    with pytest.raises(MemoryError):
        decode(one(GOOD), spec("FP32", 1))


@pytest.mark.parametrize(
    ("value", "length", "want"),
    [(None, 5, None), ("0", 5, 0), ("5", 5, 5), (" 3 ", 5, 3), ("0005", 5, 5)],
)
def test_header_length(value: str | None, length: int, want: int | None) -> None:
    assert want == parse_header_length(value, length)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "must be a number"),
        ("-1", "must be a number of bytes, got '-1'"),
        ("+1", "must be a number"),
        ("1.0", "must be a number"),
        ("1_0", "must be a number"),
        ("0x1", "must be a number"),
        ("٣", "must be a number"),
        ("9" * 5000, "must be a number"),
        ("6", "is 6, but the body has only 5 bytes"),
    ],
)
def test_a_bad_header_length_is_refused(value: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_header_length(value, 5)


# --- one raw tensor as the whole body ------------------------------------------------------------


def decode_whole(body: bytes, inputs: dict[str, TensorSpec]) -> InferRequest:
    return decode_request(body, header_length=0, inputs=inputs, outputs=OUTPUTS, max_decoded_bytes=LIMIT)


@pytest.mark.parametrize(("dims", "shape"), [((-1, 2), (3, 2)), ((3, 2), (3, 2)), ((6,), (6,))])
def test_a_whole_body_is_shaped_by_its_size(dims: tuple[int, ...], shape: tuple[int, ...]) -> None:
    want = np.arange(6, dtype=np.float32)
    request = decode_whole(want.tobytes(), spec("FP32", *dims))
    assert shape == request.feeds["x"].shape
    assert want.tolist() == request.feeds["x"].ravel().tolist()
    assert (OutputRequest("y", True), OutputRequest("z", True)) == request.outputs


def test_a_whole_body_is_one_text_without_a_length_before_it() -> None:
    value = decode_whole("grün".encode(), spec("BYTES", -1, 1)).feeds["x"]
    assert (value.shape, value.item()) == ((1, 1), "grün")


@pytest.mark.parametrize(
    ("inputs", "body", "words"),
    [
        ({}, b"", "models with one input; this one has 0"),
        (spec("FP32", -1) | {"w": TensorSpec("w", "FP32", (1,))}, b"", "has 2: 'x' FP32"),
        (spec("FP32", -1, -1), b"\0" * 4, r"tensor 'x': expected JSON with a shape"),
        ({"x": TensorSpec("x", "FP32", None)}, b"", r"tensor 'x': expected JSON with a shape"),
        (spec("FP32", -1, 2), b"\0" * 12, "tensor 'x': expected a multiple of 8 .* got 12 bytes"),
        (spec("FP32", 2), b"\0" * 12, "tensor 'x': expected 8 bytes .* got 12 bytes"),
        (spec("FP32", -1, 0), b"\0" * 12, "tensor 'x': .* got 12 bytes"),
        (spec("BYTES", 2), b"a", "tensor 'x': expected 2 elements .* got one element"),
        (spec("BYTES", 1), b"\xff", "tensor 'x': expected UTF-8 text.* at byte 0"),
        (spec("BOOL", -1), b"\x02", "tensor 'x': expected bytes 0 or 1 .* got byte 2"),
        (spec("BF16", -1), b"\0\0\0", "tensor 'x': expected a multiple of 2 bytes .* got 3 bytes"),
        (spec("INT4", -1), b"\0\0", "tensor 'x': expected a datatype of this server, got INT4"),
    ],
)
def test_a_bad_whole_body_is_refused(inputs: dict[str, TensorSpec], body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode_whole(body, inputs)
