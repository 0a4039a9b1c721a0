"""From V1 bodies (`instances`, or `inputs`) to named arrays; `v1_answers.py` goes back.

V1 states no names, datatypes or shapes: they are the model's, and a value has to fit them as it is.

- `instances` is a list with a value for each row. They are stacked along the first dimension, so that
  an input `[batch,13]` takes rows of 13 numbers; where a model's first dimension has a fixed size, it
  takes as many rows as that. Models with several inputs take an object for each row, name to value;
  with one input both forms are taken.
- `inputs` gives each input whole, first dimension included: an object, name to value, or the only
  input's value by itself. It is the way to inputs without dimensions, which have no rows.
- `{"b64": "..."}` is a text in base64, for BYTES; it has to be UTF-8, as ONNX strings are.
- The answer has the request's form. `predictions` has one entry for each instance: a value, or an object
  where the model has several outputs. A model whose outputs have no row for each instance answers
  `inputs` only. FP16 is written and read as numbers.

Other members (`signature_name`, `id`, ...) are ignored.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelhost.api.codec.cost import json_cost_bytes
from modelhost.api.codec.fields import parse_document
from modelhost.api.codec.json_tensors import decode_json, say
from modelhost.api.codec.messages import InferRequest, OutputRequest
from modelhost.errors import InvalidRequest, InvalidTensor, RequestTooLarge
from modelhost.tensors import DTYPES, Array, TensorSpec, check_names

_MAX_DIMS: Final = 32
_HALF_MAX: Final = float(np.finfo(np.float16).max)
_BASE64: Final = "b64"


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """A decoded V1 request; `rows` is the number of its instances, None where it came as `inputs`."""

    infer: InferRequest
    rows: int | None


def predict_cost_bytes(body: bytes) -> int:
    """Returns an upper bound for the bytes that `decode_predict` of `body` holds at its peak.

    Beyond what any JSON takes: a list for each input of what the instances' objects hold, and texts
    that came as base64. The body itself is not included. Raises nothing.
    """
    return json_cost_bytes(body) + (6 if _BASE64.encode() in body else 2) * len(body)


def decode_predict(
    body: bytes,
    *,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    max_decoded_bytes: int | None,
) -> PredictRequest:
    """Returns the request in `body` (decompressed) after checking it against the model; see the module.

    Raises RequestTooLarge where `predict_cost_bytes` is over `max_decoded_bytes` (None: the caller has claimed
    that much), InvalidTensor where a value does not fit, naming the instance, and InvalidRequest for everything else
    that is wrong.
    """
    if max_decoded_bytes is not None and (cost := predict_cost_bytes(body)) > max_decoded_bytes:
        raise RequestTooLarge(
            "decoding the request takes up to",
            size_bytes=cost,
            limit_bytes=max_decoded_bytes,
            advice="send fewer instances at once, or binary tensors (V2)",
        )
    document = parse_document(body)
    instances, whole = document.get("instances"), document.get("inputs")
    if (instances is None) == (whole is None):
        got = "neither" if whole is None else "both"
        raise InvalidRequest(f"the request must have either 'instances' or 'inputs', got {got}")
    if instances is None:
        feeds, rows = _whole(whole, inputs), None
    else:
        if not isinstance(instances, list) or not instances:
            got = "an empty list" if instances == [] else say(instances)
            raise InvalidRequest(f"'instances' must be a list of at least one instance, got {got}")
        feeds, rows = _stacked(instances, inputs), len(instances)
    asked = tuple(OutputRequest(name, binary=False) for name in outputs)
    return PredictRequest(InferRequest(id="", feeds=feeds, outputs=asked, timeout_s=None), rows)


def _whole(value: object, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Returns the arrays of `inputs`."""
    if not isinstance(value, dict) or _is_base64(value):
        if len(specs) != 1:
            raise InvalidRequest(f"'inputs' must be an object with {_said(specs)}, got {say(value)}")
        value = {next(iter(specs)): value}
    check_names(specs, value)
    feeds: dict[str, Array] = {}
    for name, given in value.items():
        spec = specs[name]
        _check_known(spec)
        plain = _with_texts(spec, given, "'inputs'")
        shape = _shape_of(spec, plain, "'inputs'")
        if not spec.accepts_shape(shape):
            raise InvalidTensor(name, expected=spec.describe(), got=f"shape {shape}")
        feeds[name] = _array(spec, shape, plain if isinstance(plain, list) else [plain])
    return feeds


def _stacked(instances: list[object], specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Returns the arrays of `instances`, one row for each."""
    first = instances[0]
    is_plain = len(specs) == 1 and (not isinstance(first, dict) or _is_base64(first))
    columns = {next(iter(specs)): instances} if is_plain else _columns(instances, specs)
    return {name: _rows(specs[name], column) for name, column in columns.items()}


def _columns(instances: list[object], specs: Mapping[str, TensorSpec]) -> dict[str, list[object]]:
    """Turns objects by row into lists by input."""
    rows: list[dict[str, object]] = []
    names = specs.keys()
    for index, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise InvalidRequest(f"instance {index} must be an object with {_said(specs)}, got {say(instance)}")
        if instance.keys() != names:
            try:
                check_names(specs, instance)
            except InvalidRequest as error:
                raise InvalidRequest(f"instance {index}: {error}") from None
        rows.append(instance)
    return {name: [row[name] for row in rows] for name in specs}


def _rows(spec: TensorSpec, rows: list[object]) -> Array:
    """Returns one input's array: `rows` stacked."""
    _check_known(spec)
    if spec.shape == ():
        raise InvalidTensor(
            spec.name, expected="one value for all rows, given as 'inputs', as it has no dimensions", got="'instances'"
        )
    rows = [_with_texts(spec, row, f"instance {index}") for index, row in enumerate(rows)] if _has_texts(spec) else rows
    row_shape = _shape_of(spec, rows[0], "instance 0")
    shape = [len(rows), *row_shape]
    if not spec.accepts_shape(shape):
        got = f"{len(rows)} {'instance' if len(rows) == 1 else 'instances'}, the first of shape {row_shape}"
        raise InvalidTensor(spec.name, expected=spec.describe(), got=got)
    try:
        return _array(spec, shape, rows)
    except InvalidTensor:
        index = _first_wrong(spec, rows, row_shape)
    raise _wrong_instance(spec, rows, row_shape, index)


def _first_wrong(spec: TensorSpec, rows: list[object], row_shape: list[int]) -> int:
    """Returns the index of the first row that does not fit, by halves: some row does not."""
    good, bad = 0, len(rows)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _array(spec, [middle - good, *row_shape], rows[good:middle])
        except InvalidTensor:
            bad = middle
        else:
            good = middle
    return good


def _wrong_instance(spec: TensorSpec, rows: list[object], row_shape: list[int], index: int) -> InvalidTensor:
    """Says what is wrong with the row at `index`."""
    found = _shape_of(spec, rows[index], f"instance {index}")
    if found != row_shape:
        expected = f"shape {row_shape} in every instance, as in the first"
        return InvalidTensor(spec.name, expected=expected, got=f"shape {found} in instance {index}")
    try:
        _array(spec, [1, *row_shape], [rows[index]])
    except InvalidTensor as error:
        return InvalidTensor(spec.name, expected=error.expected, got=f"{error.got} of instance {index}")
    raise AssertionError("a row that fits by itself and not in its half")


def _shape_of(spec: TensorSpec, value: object, where: str) -> list[int]:
    """Returns the shape that a nested list has if it is regular: the lengths of its first lists."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _MAX_DIMS:
            raise InvalidTensor(spec.name, expected=spec.describe(), got=f"lists in over {_MAX_DIMS} levels in {where}")
        if not value:
            break
        value = value[0]
    return shape


def _array(spec: TensorSpec, shape: list[int], data: list[object]) -> Array:
    """Returns the array; raises InvalidTensor where an element or the structure is wrong."""
    if spec.datatype != "FP16":
        return decode_json(spec.name, spec.datatype, shape, data)
    wide = decode_json(spec.name, "FP32", shape, data)
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    finite = np.isfinite(half).ravel()
    if not finite.all():
        index = int(finite.argmin())
        expected = f"values from {-_HALF_MAX} to {_HALF_MAX} for FP16"
        raise InvalidTensor(spec.name, expected=expected, got=f"{wide.ravel()[index]} as element {index}")
    return half


def _check_known(spec: TensorSpec) -> None:
    if spec.datatype not in DTYPES:
        raise InvalidTensor(spec.name, expected="a datatype of this server", got=spec.datatype)


def _said(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"'{spec.name}' {spec.describe()}" for spec in specs.values())


# --- texts in base64 -------------------------------------------------------------------------------


def _has_texts(spec: TensorSpec) -> bool:
    return spec.datatype == "BYTES"


def _is_base64(value: dict[str, object]) -> bool:
    """Tells a text in base64 from an object of inputs, one of which might be called so."""
    return value.keys() == {_BASE64} and isinstance(value[_BASE64], str)


def _with_texts(spec: TensorSpec, value: object, where: str, depth: int = 0) -> object:
    """Returns `value` with texts in place of objects of base64; as it is where the input holds no texts."""
    if isinstance(value, str) or not _has_texts(spec):
        return value
    if isinstance(value, list):
        if depth >= _MAX_DIMS:
            raise InvalidTensor(spec.name, expected=spec.describe(), got=f"lists in over {_MAX_DIMS} levels in {where}")
        return [_with_texts(spec, entry, where, depth + 1) for entry in value]
    if isinstance(value, dict):
        return _from_base64(spec, value, where)
    return value


def _from_base64(spec: TensorSpec, value: dict[str, object], where: str) -> str:
    text = value.get(_BASE64)
    if len(value) != 1 or not isinstance(text, str):
        raise InvalidTensor(
            spec.name, expected='a string or {"b64": a string in base64}', got=f"another object in {where}"
        )
    try:
        return base64.b64decode(text.encode(), validate=True).decode()
    except UnicodeDecodeError as error:
        got = f"{error.reason} at byte {error.start} of a base64 text in {where}"
        expected = "UTF-8 text, which is what ONNX string tensors hold"
    except (binascii.Error, UnicodeEncodeError) as error:
        got, expected = f"{say(text)} in {where}: {error}", "base64 in 'b64'"
    raise InvalidTensor(spec.name, expected=expected, got=got)
