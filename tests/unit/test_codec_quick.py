"""The quick codec gives what the general one gives, or nothing: on requests and answers of every kind."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sizes import examples

from modelhost.api.codec import InferRequest, OutputRequest, QuickCodec, decode_request, encode_response
from modelhost.errors import ModelHostError, UnrepresentableOutput
from modelhost.tensors import DTYPES, TensorSpec, datatype_of, to_bfloat16

LIMIT_BYTES = 1 << 24
OUTPUTS = {"y": TensorSpec("y", "FP32", (-1,)), "z": TensorSpec("z", "INT64", (-1,))}
KINDS = st.sampled_from([*DTYPES, "INT4"])
QUICK_KINDS = ("FP32", "FP64", "INT32", "INT64", "UINT8", "INT8")


@st.composite
def models(draw: st.DrawFn) -> dict[str, TensorSpec]:
    """Up to three inputs, mostly of datatypes and shapes that the quick way knows."""
    names = draw(st.lists(st.sampled_from(["x", "w", "é"]), min_size=1, max_size=3, unique=True))
    shapes = st.lists(st.sampled_from([-1, -1, -1, 1, 2, 3]), max_size=3).map(tuple)
    shapes |= st.sampled_from([None, (0,), (-1, 0)]) | shapes
    kinds = st.sampled_from(QUICK_KINDS) | st.sampled_from(QUICK_KINDS) | KINDS
    return {name: TensorSpec(name, draw(kinds), draw(shapes)) for name in names}


NUMBERS = (
    st.integers(-3, 300)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([3.4028235e38, 3.4028236e38, 1e39, -1e39, 1e-46, -0.0, 2**24 + 1, 2**53 + 1, 2**64 - 1])
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3))


def elements_of(datatype: str) -> st.SearchStrategy[Any]:
    """What a client would send for a datatype; now and then what it should not."""
    if datatype in ("FP32", "FP64", "FP16", "BF16"):
        right: st.SearchStrategy[Any] = NUMBERS
    elif datatype in ("BOOL", "BYTES"):
        right = st.booleans() if datatype == "BOOL" else TEXTS
    else:
        info = np.iinfo(DTYPES.get(datatype, np.dtype(np.int8)).name)
        right = st.integers(int(info.min), int(info.max)) | st.sampled_from([int(info.min) - 1, int(info.max) + 1])
    return right


def nest(flat: list[Any], shape: list[int]) -> list[Any]:
    """The elements as nested as the shape is."""
    for size in reversed(shape[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else flat
    return flat


@st.composite
def inputs_of(draw: st.DrawFn, spec: TensorSpec) -> tuple[dict[str, Any], bytes]:
    """One input that nearly fits, and its raw bytes where it is binary."""
    dims = (-1,) if spec.shape is None else spec.shape
    shape = [draw(st.integers(1, 4)) if size < 0 else size for size in dims]
    count = math.prod(shape)
    entry: dict[str, Any] = {"name": spec.name, "shape": shape, "datatype": spec.datatype}
    if spec.datatype in DTYPES and draw(st.booleans()):
        itemsize = DTYPES[spec.datatype].itemsize if spec.datatype != "BYTES" else 4
        raw = draw(st.just(bytes(count * itemsize)) | st.binary(min_size=count * itemsize, max_size=count * itemsize))
        entry["parameters"] = {"binary_data_size": len(raw)}
        return entry, raw
    if spec.datatype in QUICK_KINDS and draw(st.booleans()):
        data: list[Any] = draw(st.lists(st.integers(0, 100), min_size=count, max_size=count))
    else:
        data = draw(st.lists(elements_of(spec.datatype), min_size=count, max_size=count))
    form = draw(st.sampled_from(["flat", "flat", "flat", "nested", "wrapped"]))
    entry["data"] = data if form == "flat" else nest(data, shape) if form == "nested" else [data]
    return entry, b""


PARAMETERS = st.fixed_dictionaries(
    {}, optional={"binary_data_output": st.booleans() | SCALARS, "timeout": st.integers(0, 10**9), "priority": SCALARS}
)
ASKED = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["y", "z", "y", "z", "no"])},
        optional={
            "parameters": st.none()
            | st.fixed_dictionaries({}, optional={"binary_data": st.booleans() | SCALARS, "classification": SCALARS})
        },
    ),
    max_size=3,
)


@st.composite
def spoilt(draw: st.DrawFn, document: dict[str, Any]) -> Any:
    """The same document with a member of it, or of an input, replaced, dropped or added."""
    target = draw(st.sampled_from([document, *document["inputs"]]))
    key = draw(st.sampled_from([*target, "data", "parameters", "name", "shape", "datatype", "id", "outputs", "extra"]))
    if key in target and draw(st.booleans()):
        del target[key]
    elif key == "shape" and draw(st.booleans()):
        target[key] = draw(st.lists(st.sampled_from([0, 1, 2, -1, True, 1.0, 2**62, 2**64 - 1]), max_size=3))
    elif key == "parameters" and draw(st.booleans()):
        target[key] = {"binary_data_size": draw(st.sampled_from([0, 4, -4, True, 4.0, 2**63, None, "4"]))}
    else:
        target[key] = draw(VALUES)
    return document


def assert_same(body: Any, header_length: int | None, inputs: dict[str, TensorSpec]) -> InferRequest | None:
    """Asserts that the quick way gives nothing, or what the general way gives; returns what it gave. Each time: it
    remembers how tensors were described."""
    codec = QuickCodec("m", "1", inputs, OUTPUTS)
    quick = codec.decode(body, header_length)
    if quick is None:
        return None
    assert_as_the_general_way(quick, body, header_length, inputs)
    again = codec.decode(body, header_length)
    assert again is not None
    assert_as_the_general_way(again, body, header_length, inputs)
    return quick


def assert_as_the_general_way(
    quick: InferRequest, body: Any, header_length: int | None, inputs: dict[str, TensorSpec]
) -> None:
    general = decode_request(
        body, header_length=header_length, inputs=inputs, outputs=OUTPUTS, max_decoded_bytes=LIMIT_BYTES
    )
    assert (quick.id, quick.outputs, quick.timeout_s) == (general.id, general.outputs, general.timeout_s)
    assert list(quick.feeds) == list(general.feeds)
    for name, value in quick.feeds.items():
        expected = general.feeds[name]
        assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
        assert value.flags.aligned
        assert value.flags.c_contiguous
        if value.dtype.kind == "O":
            assert value.tolist() == expected.tolist()
        else:
            assert value.tobytes() == expected.tobytes()


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, TensorSpec], bytes, int | None]:
    inputs = draw(models())
    entries, raws = [], []
    for name in draw(st.permutations(list(inputs))):
        entry, raw = draw(inputs_of(inputs[name]))
        entries.append(entry)
        raws.append(raw)
    document: dict[str, Any] = {"inputs": entries}
    for member, values in (("parameters", st.none() | PARAMETERS), ("outputs", st.none() | ASKED), ("id", TEXTS)):
        if draw(st.integers(0, 5)) == 0:
            document[member] = draw(values)
    spoiled = draw(st.integers(0, 2)) == 0
    if spoiled:
        document = draw(spoilt(document))
    text, raw = json.dumps(document, ensure_ascii=False).encode(), b"".join(raws)
    if spoiled and draw(st.booleans()):
        raw = draw(st.sampled_from([raw + b"\0", raw[:-1], b"", raw + raw]))
    shift = draw(st.sampled_from([0, 0, 0, 0, 1, -1])) if spoiled else 0
    length = None if not raw and draw(st.booleans()) else len(text) + shift
    return inputs, text + raw, length


@given(requests(), st.booleans())
@examples(800)
def test_what_is_decoded_quickly_is_what_the_general_way_decodes(
    drawn: tuple[dict[str, TensorSpec], bytes, int | None], as_view: bool
) -> None:
    inputs, body, length = drawn
    assert_same(memoryview(bytearray(body)) if as_view else body, length, inputs)


@given(VALUES, st.binary(max_size=12), st.none() | st.integers(-3, 40), models())
@examples(500)
def test_any_json_and_any_header_length_raise_nothing(
    document: Any, raw: bytes, length: int | None, inputs: dict[str, TensorSpec]
) -> None:
    assert_same(orjson.dumps(document) + raw, length, inputs)


@given(st.binary(max_size=60), st.none() | st.integers(0, 60), models())
@example(b'{"inputs":' + b"[" * 5000, None, {"x": TensorSpec("x", "FP32", (-1,))})
@example(b'{"inputs":[{"name":"\xff"}]}', None, {"x": TensorSpec("x", "FP32", (-1,))})
def test_any_bytes_raise_nothing(body: bytes, length: int | None, inputs: dict[str, TensorSpec]) -> None:
    assert_same(body, length, inputs)


X = {"x": TensorSpec("x", "FP32", (-1, 2))}
PLAIN = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}
RAW = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("document", "raw"),
    [
        ({"inputs": [PLAIN]}, b""),
        ({"inputs": [PLAIN | {"data": [[1, 2]]}]}, b""),
        ({"inputs": [PLAIN], "id": "ü", "model_name": "m", "other": None}, b""),
        ({"inputs": [PLAIN], "outputs": [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]}, b""),
        ({"inputs": [PLAIN], "outputs": None, "parameters": None}, b""),
        ({"inputs": [PLAIN], "parameters": {"binary_data_output": True}, "outputs": [{"name": "y"}]}, b""),
        ({"inputs": [RAW]}, np.array([1, 2], "<f4").tobytes()),
        ({"inputs": [RAW], "parameters": {"binary_data_output": True}}, bytes(8)),
    ],
)
def test_common_requests_are_decoded_quickly(document: dict[str, Any], raw: bytes) -> None:
    text = orjson.dumps(document)
    quick = assert_same(text + raw, len(text) if raw else None, X)
    assert quick is not None
    assert quick.feeds["x"].shape == (1, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"data": [1, True]},
        {"data": [1, None]},
        {"data": [1, 1e39]},
        {"data": [1, 10**300]},
        {"data": [1, 2, 3]},
        {"data": [[1], [2]]},
        {"shape": [True, 2]},
        {"shape": [1, 3]},
        {"shape": [0, 2], "data": []},
        {"datatype": "FP64"},
        {"name": "y"},
        {"parameters": {"binary_data_size": 8}},
        {"parameters": {"binary_data_size": 0}, "data": None},
    ],
)
def test_what_is_wrong_or_uncommon_is_left_to_the_general_way(change: dict[str, Any]) -> None:
    body = json.dumps({"inputs": [PLAIN | change]}).encode()
    assert QuickCodec("m", "1", X, OUTPUTS).decode(body, None) is None


DESCRIBED = {name: value for name, value in PLAIN.items() if name != "data"} | {"parameters": {"binary_data_size": 8}}


def test_how_tensors_were_described_is_remembered_for_others_of_their_size() -> None:
    codec = QuickCodec("m", "1", X, OUTPUTS)
    head = orjson.dumps({"inputs": [DESCRIBED]})
    for values in ([1.0, 2.0], [3.0, 4.0]):
        found = codec.decode(head + np.array(values, np.float32).tobytes(), len(head))
        assert found is not None
        assert found.feeds["x"].ravel().tolist() == values
    assert list(codec._heads) == [head]
    for wrong in (b"", bytes(4), bytes(12)):
        assert codec.decode(head + wrong, len(head)) is None  # which the general way has the words for


def test_descriptions_with_an_id_or_in_great_number_are_not_kept() -> None:
    codec, document = QuickCodec("m", "1", X, OUTPUTS), {"inputs": [DESCRIBED]}
    for number in range(100):
        head = orjson.dumps(document | {"id": str(number)})
        assert codec.decode(head + bytes(8), len(head)) is not None
        assert not codec._heads
    for number in range(100):
        head = orjson.dumps(document | {"unknown": number})
        assert codec.decode(head + bytes(8), len(head)) is not None
        assert 1 <= len(codec._heads) <= 16
    head = orjson.dumps(document | {"unknown": "long" * 1000})
    assert codec.decode(head + bytes(8), len(head)) is not None
    assert head not in codec._heads


def test_inputs_given_twice_are_not_decoded_quickly() -> None:
    two = X | {"w": TensorSpec("w", "FP32", (-1, 2))}
    body = orjson.dumps({"inputs": [PLAIN, PLAIN]})
    assert QuickCodec("m", "1", two, OUTPUTS).decode(body, None) is None


# --- answers -----------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn, datatype: str) -> np.ndarray:
    """Values of a datatype: scalars, without elements, not in order, NaN and infinity among them."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = math.prod(shape)
    if datatype == "BYTES":
        return np.array(draw(st.lists(TEXTS, min_size=count, max_size=count)), object).reshape(shape)
    if datatype in ("FP32", "FP64", "FP16", "BF16"):
        floats = st.floats(width=16) | st.floats(-1e30, 1e30)
        values = np.array(draw(st.lists(floats, min_size=count, max_size=count)), np.float64)
        with np.errstate(over="ignore"):
            flat = to_bfloat16(values) if datatype == "BF16" else values.astype(DTYPES[datatype])
    else:
        raw = draw(st.binary(min_size=8 * count, max_size=8 * count))
        wide = np.frombuffer(raw, np.uint64)
        flat = wide % 2 == 1 if datatype == "BOOL" else wide.astype(DTYPES[datatype])
    array = flat.reshape(shape)
    order = draw(st.sampled_from(["as it is", "turned", "backwards"]))
    return array.T if order == "turned" else array[::-1] if order == "backwards" and array.ndim else array


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[tuple[OutputRequest, TensorSpec, np.ndarray]]]:
    names = draw(st.lists(st.sampled_from(["y", "z", "größe", 'q"']), min_size=1, max_size=3, unique=True))
    outputs = []
    for name in names:
        datatype = draw(st.sampled_from(["FP32", "FP64", "INT64"]) | st.sampled_from([*DTYPES]))
        spec = TensorSpec(name, datatype, None)
        outputs.append((OutputRequest(name, draw(st.booleans())), spec, draw(arrays(datatype))))
    return draw(st.just("") | TEXTS), outputs


@given(answers(), st.randoms(use_true_random=False))
@examples(500)
def test_what_is_answered_quickly_is_what_the_general_way_answers(
    drawn: tuple[str, list[tuple[OutputRequest, TensorSpec, np.ndarray]]], random: Any
) -> None:
    request_id, outputs = drawn
    specs = [spec for _, spec, _ in outputs]
    random.shuffle(specs)  # the order asked for is not the model's
    codec = QuickCodec("mödel", "3", {}, {spec.name: spec for spec in specs})
    request = InferRequest(request_id, {}, tuple(asked for asked, _, _ in outputs), None)
    quick = codec.encode(request, [array for _, _, array in outputs])
    again = codec.encode(request, [array for _, _, array in outputs])
    assert again == quick  # what is remembered of the first says the same
    if quick is None:
        return
    general = encode_response(model_name="mödel", model_version="3", request_id=request_id, outputs=outputs)
    assert quick == general


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_refused_by_the_general_way(dtype: type, bad: float) -> None:
    array = np.array([1, bad], dtype)
    spec = TensorSpec("y", datatype_of(array.dtype) or "", (-1,))
    codec = QuickCodec("m", "1", {}, {"y": spec})
    as_json, as_binary = OutputRequest("y", False), OutputRequest("y", True)
    assert codec.encode(InferRequest("", {}, (as_json,), None), [array]) is None
    with pytest.raises(UnrepresentableOutput):
        encode_response(model_name="m", model_version="1", request_id="", outputs=[(as_json, spec, array)])
    answered = codec.encode(InferRequest("", {}, (as_binary,), None), [array])
    assert answered is not None
    assert answered.body[answered.header_length :] == array.tobytes()


def test_the_common_answers_are_quick_whatever_shapes_came_before() -> None:
    codec = QuickCodec("m", "1", {}, OUTPUTS)
    request = InferRequest("7", {}, (OutputRequest("z", False), OutputRequest("y", True)), None)
    for rows in range(1, 200):
        outputs = [np.arange(rows), np.ones(rows, np.float32)]
        asked = [(out, OUTPUTS[out.name], value) for out, value in zip(request.outputs, outputs, strict=True)]
        expected = encode_response(model_name="m", model_version="1", request_id="7", outputs=asked)
        assert codec.encode(request, outputs) == expected
    assert len(codec._templates) <= 64


def test_a_model_of_no_outputs_structured_ones_and_other_datatypes_take_the_general_way() -> None:
    nothing = InferRequest("", {}, (), None)
    assert QuickCodec("m", "1", {}, {}).encode(nothing, []) is None
    structured = QuickCodec("m", "1", {}, {"y": TensorSpec.structured("y")})
    asked = InferRequest("", {}, (OutputRequest("y", False),), None)
    assert structured.encode(asked, [np.array([{"a": 1}], object)]) is None
    other = QuickCodec("m", "1", {}, {"y": TensorSpec("y", "FP32", (-1,))})
    assert other.encode(asked, [np.ones(2)]) is None


def test_errors_of_the_general_way_are_ours_where_the_quick_way_gives_nothing() -> None:
    """What is refused stays refused with words: the two ways are asked one after the other."""
    body = orjson.dumps({"inputs": [PLAIN | {"data": [1, "2"]}]})
    assert QuickCodec("m", "1", X, OUTPUTS).decode(body, None) is None
    with pytest.raises(ModelHostError, match='got "2" as element 1'):
        decode_request(body, header_length=None, inputs=X, outputs=OUTPUTS, max_decoded_bytes=LIMIT_BYTES)
