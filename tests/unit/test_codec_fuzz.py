"""Whatever comes in, decoding gives a request or one of our own errors. Long with MODELHOST_TEST_FULL=1."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from sizes import FULL, examples

from benchmarks.fuzz import corpus
from benchmarks.fuzz.corpus import Message
from modelhost.api.codec import (
    QuickCodec,
    compress,
    decode_request,
    decompress,
    decompressed_size_bytes,
    foresee,
    parse_header_length,
)
from modelhost.api.codec.v1 import decode_predict
from modelhost.errors import ModelHostError
from modelhost.tensors import DTYPES, TensorSpec, check_feeds

OUTPUTS = {"y": TensorSpec("y", "FP32", (-1,))}
SPECS = st.dictionaries(
    st.sampled_from(["x", "w"]),
    st.tuples(
        st.sampled_from([*DTYPES, "INT4"]),
        st.none() | st.lists(st.integers(-1, 3), max_size=3).map(tuple),
    ),
    min_size=1,
).map(lambda drawn: {name: TensorSpec(name, *rest) for name, rest in drawn.items()})

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=5)
SCALARS = st.none() | st.booleans() | st.integers(-3, 300) | NUMBERS | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3))


def fields(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each field may be missing, right or anything."""
    return st.fixed_dictionaries({}, optional={name: strategy | VALUES for name, strategy in strategies.items()})


INPUT = fields(
    name=st.sampled_from(["x", "w"]),
    datatype=st.sampled_from([*DTYPES]),
    shape=st.lists(st.integers(0, 3) | st.integers(0, 2**64 - 1), max_size=3),
    data=st.lists(SCALARS, max_size=6),
    parameters=fields(binary_data_size=st.integers(0, 12)),
)
OUTPUT = fields(name=st.just("y"), parameters=fields(binary_data=st.booleans()))
DOCUMENT = fields(
    id=TEXTS,
    inputs=st.lists(INPUT, max_size=3),
    outputs=st.lists(OUTPUT, max_size=2),
    parameters=fields(timeout=st.integers(0, 10**9), binary_data_output=st.booleans()),
)


def decode(body: bytes, header: str | None, specs: dict[str, TensorSpec]) -> None:
    try:
        length = parse_header_length(header, len(body))
        request = decode_request(body, header_length=length, inputs=specs, outputs=OUTPUTS, max_decoded_bytes=1 << 22)
    except ModelHostError:
        return
    check_feeds(specs, request.feeds)
    assert all(value.flags.aligned for value in request.feeds.values())
    assert foresee(body, header_length=length, inputs=specs).cost_bytes <= 1 << 22


@given(st.binary(max_size=100), st.none() | st.text(max_size=5) | st.integers().map(str), SPECS)
def test_random_bytes(body: bytes, header: str | None, specs: dict[str, TensorSpec]) -> None:
    decode(body, header, specs)


@given(DOCUMENT | VALUES, st.binary(max_size=24), st.booleans(), SPECS)
@examples(500)
def test_random_documents(document: Any, raw: bytes, given_header: bool, specs: dict[str, TensorSpec]) -> None:
    text = orjson.dumps(document)
    decode(text + raw, str(len(text)) if given_header else None, specs)


@given(st.data(), SPECS)
@examples(300)
def test_requests_that_nearly_fit(data: st.DataObject, specs: dict[str, TensorSpec]) -> None:
    inputs, raw = [], b""
    for spec in specs.values():
        dims = spec.shape if spec.shape is not None else (-1,)
        shape = [data.draw(st.integers(0, 3)) if size < 0 else size for size in dims]
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        if data.draw(st.booleans()):
            part = data.draw(st.binary(max_size=24))
            entry["parameters"] = {"binary_data_size": len(part)}
            raw += part
        else:
            entry["data"] = data.draw(st.lists(SCALARS | st.lists(SCALARS, max_size=3), max_size=9))
        inputs.append(entry)
    text = orjson.dumps({"inputs": inputs})
    decode(text + raw, str(len(text)), specs)


# --- bodies that were right once -----------------------------------------------------------------------

#: Those of the shipped models, which the seeds are written for.
MODELS = {
    "digits": {"image": TensorSpec("image", "FP32", (-1, 1, 8, 8))},
    "wine": {"measurements": TensorSpec("measurements", "FP32", (-1, 13))},
    "iris_petals": {
        "species": TensorSpec("species", "BYTES", (-1, 1)),
        "sepal": TensorSpec("sepal", "FP32", (-1, 2)),
    },
}
PIECES = (
    *(b"{", b"}", b"[" * 1100, b"]", b'"', b",", b":", b"null", b"true", b"-1", b"0.5", b"1e400", b"9" * 5000, b"\x00"),
    *(b"\xff", b"\x7f\xff\xff\xff", b'"\\ud800"', b'"b64"', b'"data"', b'"shape"', b'"parameters"', b'"BYTES"', b"NaN"),
)
SEEDS = [message for message in corpus.read().framed if message.method == b"POST"]
INFER = [message for message in SEEDS if b"/infer" in message.target]
PREDICT = [message for message in SEEDS if b":predict" in message.target]
MANY = settings(max_examples=50_000 if FULL else 60)

pytestmark = pytest.mark.timeout(900 if FULL else 120)


@st.composite
def changed(draw: st.DrawFn, messages: list[Message]) -> tuple[str | None, bytes]:
    """The length of the JSON as it was stated, and a body that may have another one now."""
    message = draw(st.sampled_from(messages))
    stated = dict(message.headers).get(b"Inference-Header-Content-Length")
    return None if stated is None else stated.decode(), draw(damaged([message.body], PIECES))


QUICK = {name: QuickCodec(name, "1", specs, OUTPUTS) for name, specs in MODELS.items()}


@given(changed(INFER), st.sampled_from(sorted(MODELS)))
@MANY
def test_damaged_bodies(message: tuple[str | None, bytes], name: str) -> None:
    header, body = message
    specs = MODELS[name]
    decode(body, header, specs)
    try:
        length = parse_header_length(header, len(body))
    except ModelHostError:
        return
    quick = QUICK[name].decode(body, length)  # which has seen others before
    if quick is not None:
        thorough = decode_request(body, header_length=length, inputs=specs, outputs=OUTPUTS, max_decoded_bytes=1 << 24)
        assert {key: str(value.tolist()) for key, value in quick.feeds.items()} == {
            key: str(value.tolist()) for key, value in thorough.feeds.items()
        }


@given(changed(PREDICT), st.sampled_from(sorted(MODELS)))
@MANY
def test_damaged_bodies_of_v1(message: tuple[str | None, bytes], name: str) -> None:
    specs = MODELS[name]
    try:
        request = decode_predict(message[1], inputs=specs, outputs=OUTPUTS, max_decoded_bytes=1 << 22)
    except ModelHostError:
        return
    check_feeds(specs, request.infer.feeds)


@given(damaged([compress(message.body, coding) for message in INFER for coding in ("gzip", "deflate")]), st.booleans())
@MANY
def test_damaged_compressed_bodies(body: bytes, is_gzip: bool) -> None:
    try:
        found = decompress(body, "gzip" if is_gzip else "deflate", max_bytes=1 << 16)
    except ModelHostError:
        return
    assert len(found) <= 1 << 16
    assert decompressed_size_bytes(body, "gzip" if is_gzip else "deflate", max_bytes=1 << 16) == len(found)
