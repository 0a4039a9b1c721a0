"""V1 bodies: both forms in, both forms out, nothing coerced, the wrong instance named."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sizes import examples

from modelhost.api.codec import v1, v1_answers
from modelhost.api.codec.messages import OutputRequest
from modelhost.errors import InvalidRequest, ModelHostError, RequestTooLarge, UnrepresentableOutput
from modelhost.tensors import DTYPES, Array, TensorSpec, check_feeds

ROWS = TensorSpec("x", "FP32", (-1, 2), ("batch", ""))
TEXTS = TensorSpec("t", "BYTES", (-1,))
SCALAR = TensorSpec("s", "INT64", ())


def decode(body: Any, *specs: TensorSpec, max_decoded_bytes: int = 1 << 22) -> v1.PredictRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    inputs = {spec.name: spec for spec in specs}
    outputs = {name: TensorSpec(name, "FP32", (-1,)) for name in ("y", "z")}
    return v1.decode_predict(text, inputs=inputs, outputs=outputs, max_decoded_bytes=max_decoded_bytes)


def feeds(body: Any, *specs: TensorSpec) -> dict[str, Any]:
    decoded = decode(body, *specs).infer.feeds
    check_feeds({spec.name: spec for spec in specs}, decoded)
    return {name: value.tolist() for name, value in decoded.items()}


def encode(rows: int | None, **arrays: Array) -> Any:
    outputs = [
        (OutputRequest(name, False), TensorSpec(name, "FP32", None), np.asarray(array))
        for name, array in arrays.items()
    ]
    encoded = v1_answers.encode_predictions(outputs, rows)
    assert encoded.header_length is None
    assert len(encoded.body) <= v1_answers.predictions_cost_bytes(outputs, rows)
    return json.loads(encoded.body)


# --- instances -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[1, 2], [3, 4.5]]},
        {"instances": [{"x": [1, 2]}, {"x": [3, 4.5]}]},
        {"inputs": [[1, 2], [3, 4.5]]},
        {"inputs": {"x": [[1, 2], [3, 4.5]]}},
        {"signature_name": "serving_default", "id": 7, "instances": [[1, 2], [3, 4.5]], "inputs": None},
    ],
)
def test_an_only_input_takes_every_form(body: Any) -> None:
    assert feeds(body, ROWS) == {"x": [[1, 2], [3, 4.5]]}
    assert decode(body, ROWS).rows == (2 if "instances" in body else None)


def test_all_outputs_are_asked_for_as_json() -> None:
    asked = decode({"instances": [[1, 2]]}, ROWS).infer.outputs
    assert asked == (OutputRequest("y", False), OutputRequest("z", False))


def test_several_inputs_come_as_an_object_for_each_row() -> None:
    body = {"instances": [{"x": [1, 2], "t": "a"}, {"t": "b", "x": [3, 4]}]}
    assert feeds(body, ROWS, TEXTS) == {"x": [[1, 2], [3, 4]], "t": ["a", "b"]}


def test_several_inputs_come_whole_and_need_not_have_as_many_rows() -> None:
    body = {"inputs": {"x": [[1, 2]], "t": ["a", "b"], "s": 3}}
    assert feeds(body, ROWS, TEXTS, SCALAR) == {"x": [[1, 2]], "t": ["a", "b"], "s": 3}


@pytest.mark.parametrize(
    ("spec", "body", "expected"),
    [
        (TensorSpec("x", "FP32", (-1,)), {"instances": [1, 2]}, [1, 2]),
        (TensorSpec("x", "FP32", (2, 1)), {"instances": [[1], [2]]}, [[1], [2]]),
        (TensorSpec("x", "FP32", None), {"instances": [[[1]], [[2]]]}, [[[1]], [[2]]]),
        (TensorSpec("x", "FP32", (-1, -1)), {"instances": [[], []]}, [[], []]),
        (TensorSpec("x", "FP32", (-1, -1)), {"inputs": []}, None),
        (TensorSpec("x", "FP32", (-1,)), {"inputs": []}, []),
        (TensorSpec("x", "BOOL", (-1,)), {"instances": [True, False]}, [True, False]),
        (TensorSpec("x", "UINT64", (-1,)), {"instances": [2**64 - 1]}, [2**64 - 1]),
        (TensorSpec("x", "FP16", (-1,)), {"instances": [0.5, 65504]}, [0.5, 65504]),
        (SCALAR, {"inputs": 5}, 5),
        (SCALAR, {"inputs": {"s": 5}}, 5),
    ],
)
def test_shapes_and_datatypes_are_the_models(spec: TensorSpec, body: Any, expected: Any) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest, match=r"got shape \[0\]"):
            decode(body, spec)
    else:
        assert feeds(body, spec) == {spec.name: expected}


@pytest.mark.parametrize("form", [lambda text: text, lambda text: {"b64": base64.b64encode(text.encode()).decode()}])
def test_texts_come_as_strings_or_in_base64(form: Any) -> None:
    texts = ["", "größe", "\x00😀"]
    given = [form(text) for text in texts]
    for body in ({"instances": given}, {"inputs": given}, {"inputs": {"t": given}}):
        assert feeds(body, TEXTS) == {"t": texts}
    assert feeds({"instances": [{"t": text} for text in given]}, TEXTS) == {"t": texts}


def test_an_input_may_be_called_like_the_base64_form() -> None:
    spec = TensorSpec("b64", "FP32", (-1,))
    assert feeds({"instances": [{"b64": 1}, {"b64": 2}]}, spec) == {"b64": [1, 2]}


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either 'instances' or 'inputs', got neither"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, "got both"),
        ([], "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"instances":' + b"[" * 2000, "not valid JSON"),
        (b'{"instances":[[NaN,1]]}', "not valid JSON"),
        ({"instances": []}, "at least one instance, got an empty list"),
        ({"instances": {"x": 1}}, "must be a list of at least one instance, got an object"),
        ({"instances": [[1, 2], [3]]}, r"expected shape \[2\] in every instance, as in the first, got shape \[1\] in"),
        ({"instances": [[1, 2], 3]}, r"got shape \[\] in instance 1"),
        ({"instances": [[1, 2], [1, [2]]]}, "of instance 1"),
        ({"instances": [[1, 2]] * 9 + [[1, "2"]]}, 'expected numbers for FP32, got "2" as element 1 of instance 9'),
        ({"instances": [[1, 2], [None, 1]]}, "got null as element 0 of instance 1"),
        ({"instances": [[1, True]]}, "got true as element 1 of instance 0"),
        ({"instances": [[1, 1e39]]}, r"expected values from .* got 1e\+39 as element 1 of instance 0"),
        ({"instances": [[1, 2, 3]]}, r"expected FP32 \[batch,2\], got 1 instance, the first of shape \[3\]"),
        ({"instances": [1, 2]}, r"got 2 instances, the first of shape \[\]"),
        ({"instances": [[1, 2], {"x": [1, 2]}]}, "in instance 1"),
        ({"instances": [{"x": [1, 2]}, [1, 2]]}, r"instance 1 must be an object with 'x' FP32 \[batch,2\], got a list"),
        ({"instances": [{"x": [1, 2]}, {}]}, "instance 1: missing input 'x'"),
        ({"instances": [{"x": [1, 2], "w": 1}]}, "instance 0: unknown input 'w'"),
        ({"instances": [{"b64": "AAAA"}]}, "the first of shape"),
        ({"inputs": {"w": 1}}, "unknown input 'w'"),
        ({"inputs": {}}, "missing input 'x'"),
        ({"inputs": [[1, 2], [3]]}, "got 1 elements in list 1"),
        ({"inputs": [[1, 2], [3, "4"]]}, 'got "4" as element 3'),
        ({"inputs": 1}, r"got shape \[\]"),
        (b'{"inputs":' + b"[" * 40 + b"]" * 40 + b"}", "lists in over 32 levels in 'inputs'"),
    ],
)
def test_what_does_not_fit_is_named(body: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode(body, ROWS)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [("INT64", 1.0), ("INT64", 1.5), ("INT8", 128), ("UINT8", -1), ("BOOL", 1), ("BOOL", "true"), ("BYTES", 1)],
)
def test_nothing_is_coerced(datatype: str, value: Any) -> None:
    for body in ({"instances": [value]}, {"inputs": [value]}):
        with pytest.raises(InvalidRequest, match=f"for {datatype}"):
            decode(body, TensorSpec("x", datatype, (-1,)))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"b64": "*"}, "expected base64 in 'b64', got \"\\*\" in instance 1"),
        ({"b64": "AAA"}, "expected base64 in 'b64'"),
        ({"b64": "ä"}, "expected base64 in 'b64'"),
        ({"b64": "/w=="}, "expected UTF-8 text, .* got invalid start byte at byte 0 of a base64 text in instance 1"),
        ({"b64": 1}, "got another object in instance 1"),
        ({"b64": "AAAA", "c": 1}, "got another object in instance 1"),
        ({"B64": "AAAA"}, "got another object in instance 1"),
    ],
)
def test_base64_that_is_no_text_is_named(value: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decode({"instances": ["a", value]}, TEXTS)


def test_deep_texts_are_refused_before_they_are_followed() -> None:
    for body in ({"instances": ["a", nest(900)]}, {"inputs": nest(900)}):
        with pytest.raises(InvalidRequest, match="lists in over 32 levels"):
            decode(body, TEXTS)


def nest(depth: int) -> Any:
    value: Any = "a"
    for _ in range(depth):
        value = [value]
    return value


def test_several_inputs_take_no_plain_rows() -> None:
    with pytest.raises(
        InvalidRequest, match=r"instance 0 must be an object with 'x' FP32 .*, 't' BYTES .*, got a list"
    ):
        decode({"instances": [[1, 2]]}, ROWS, TEXTS)
    with pytest.raises(InvalidRequest, match="'inputs' must be an object with"):
        decode({"inputs": [[1, 2]]}, ROWS, TEXTS)


def test_an_input_without_dimensions_has_no_rows() -> None:
    with pytest.raises(InvalidRequest, match="tensor 's': expected one value for all rows, given as 'inputs'"):
        decode({"instances": [1]}, SCALAR)


@pytest.mark.parametrize("value", [65520, -1e5, 1e39])
def test_half_precision_has_a_range(value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"as element 0 of instance 1|as element 1"):
        decode({"instances": [1, value]}, TensorSpec("x", "FP16", (-1,)))


def test_a_datatype_that_is_not_served_is_named() -> None:
    with pytest.raises(InvalidRequest, match="expected a datatype of this server, got COMPLEX64"):
        decode({"instances": [1]}, TensorSpec("x", "COMPLEX64", (-1,)))


def test_what_takes_too_much_is_refused_before_it_is_parsed() -> None:
    body = orjson.dumps({"instances": [[1, 2]] * 1000})
    with pytest.raises(RequestTooLarge, match="send fewer instances at once"):
        decode(body, ROWS, max_decoded_bytes=v1.predict_cost_bytes(body) - 1)
    assert decode(body, ROWS, max_decoded_bytes=v1.predict_cost_bytes(body)).rows == 1000


# --- answers -------------------------------------------------------------------------------------------


def test_one_output_is_a_value_for_each_row() -> None:
    rows = np.array([[1, 2], [3, 4.5]], np.float32)
    assert encode(2, y=rows) == {"predictions": [[1, 2], [3, 4.5]]}
    assert encode(None, y=rows) == {"outputs": [[1, 2], [3, 4.5]]}


def test_several_outputs_are_an_object_for_each_row() -> None:
    arrays = {
        "label": np.array(["a", "b"], object),
        "p": np.array([[0.25, 0.75], [1, 0]], np.float64).T.copy().T,  # not contiguous
        "n": np.array([1, 2], np.uint8),
        "is": np.array([True, False]),
    }
    assert encode(2, **arrays) == {
        "predictions": [
            {"label": "a", "p": [0.25, 0.75], "n": 1, "is": True},
            {"label": "b", "p": [1, 0], "n": 2, "is": False},
        ]
    }
    assert encode(None, **arrays) == {
        "outputs": {"label": ["a", "b"], "p": [[0.25, 0.75], [1, 0]], "n": [1, 2], "is": [True, False]}
    }


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array(5, np.int64), 5),
        (np.array("a", object), "a"),
        (np.zeros((0, 3), np.float32), []),
        (np.zeros((2, 0), np.float32), [[], []]),
        (np.array([0.5, 65504], np.float16), [0.5, 65504]),
        (np.array([["a"], ["b"]], object), [["a"], ["b"]]),
        (np.array([2**64 - 1], np.uint64), [2**64 - 1]),
        (np.arange(4, dtype=np.int16)[::2], [0, 2]),
    ],
)
def test_an_output_of_any_shape_is_written_whole(array: Array, expected: Any) -> None:
    assert encode(None, y=array) == {"outputs": expected}


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (0,)])
def test_an_output_without_a_row_for_each_instance_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnrepresentableOutput, match="is not a row for each of 2 instances; send 'inputs'"):
        encode(2, y=np.zeros(shape, np.float32), z=np.zeros(2, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_json_cannot_carry_is_refused(value: float, dtype: Any) -> None:
    with pytest.raises(UnrepresentableOutput, match=r"output 'y': element 1 is -?(nan|inf)"):
        encode(2, y=np.array([0, value], dtype))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array(["\ud800"], object), "has no JSON form"),
        (np.array([b"a"], object), "an element is bytes, expected text"),
        (np.array([1j], np.complex64), "JSON has no numpy complex64"),
    ],
)
def test_what_is_no_v1_value_is_refused(array: Array, words: str) -> None:
    with pytest.raises(UnrepresentableOutput, match=words):
        encode(1, y=array)


@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1, 1), (2, 0)])
def test_the_bound_of_an_answer_holds(rows: int, shape: tuple[int, ...]) -> None:
    numbers = np.full((rows, *shape), -1.2345678901234567e-300)
    texts = np.full((rows, *shape), "\x1f" * 5, object)
    encode(rows, y=numbers, z=texts)  # which holds the answer against its bound
    encode(None, y=numbers, z=texts)
    encode(rows, y=texts)


# --- anything ------------------------------------------------------------------------------------------

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-3, 300) | NUMBERS | st.text(max_size=5)
KEYS = st.sampled_from(["x", "w", "b64"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3))
SPECS = st.dictionaries(
    KEYS,
    st.tuples(st.sampled_from([*DTYPES]), st.none() | st.lists(st.integers(-1, 3), max_size=3).map(tuple)),
    min_size=1,
).map(lambda drawn: {name: TensorSpec(name, *rest) for name, rest in drawn.items()})


@given(st.sampled_from(["instances", "inputs"]), VALUES | st.lists(VALUES, max_size=5), SPECS)
@examples(500)
def test_any_document_gives_a_request_or_one_of_our_errors(form: str, value: Any, specs: dict[str, TensorSpec]) -> None:
    try:
        body = orjson.dumps({form: value})
    except TypeError:  # text that has no UTF-8 form
        return
    try:
        decoded = v1.decode_predict(body, inputs=specs, outputs={}, max_decoded_bytes=1 << 22)
    except ModelHostError:
        return
    check_feeds(specs, decoded.infer.feeds)
