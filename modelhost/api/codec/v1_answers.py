"""From output arrays to V1 answers: `predictions` by row, or `outputs` whole; see `v1.py` for the form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import orjson

from modelhost.api.codec.messages import EncodedResponse, OutputRequest
from modelhost.api.codec.response import encode_cost_bytes
from modelhost.api.codec.structured import json_values
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import Array, TensorSpec, datatype_of

#: What an answer's row takes as an object, and each of its members besides the text: at most.
_ROW_BYTES: Final = 320
_MEMBER_BYTES: Final = 144

Outputs = Sequence[tuple[OutputRequest, TensorSpec, Array]]


def predictions_cost_bytes(outputs: Outputs, rows: int | None) -> int:
    """Returns an upper bound for the bytes that `encode_predictions` makes, the arrays not included."""
    cost = encode_cost_bytes(outputs)
    for _, _, array in outputs:
        lists = sum(math.prod(array.shape[:depth]) for depth in range(1, array.ndim))
        cost += (88 if array.dtype.kind in "OUS" else 6) * lists  # texts become Python lists first
    if rows is not None and len(outputs) > 1:
        members = sum(_MEMBER_BYTES + 12 * len(asked.name) for asked, _, _ in outputs)
        cost += rows * (_ROW_BYTES + members)
    return cost


def encode_predictions(outputs: Outputs, rows: int | None) -> EncodedResponse:
    """Returns the answer: `predictions` for so many rows, `outputs` where None.

    Raises UnrepresentableOutput where JSON has no form for a value, or an output no row for each instance.
    """
    values = {asked.name: _checked(asked.name, spec, array) for asked, spec, array in outputs}
    if rows is None:
        whole = {name: _jsonable(array) for name, array in values.items()}
        document: dict[str, object] = {"outputs": whole if len(whole) != 1 else next(iter(whole.values()))}
    else:
        for name, array in values.items():
            _check_rows(name, array, rows)
        document = {"predictions": _by_row(values)}
    try:
        return EncodedResponse(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), None)
    except orjson.JSONEncodeError as error:
        raise UnrepresentableOutput(f"the answer has no JSON form: {error}") from None


def _checked(name: str, spec: TensorSpec, array: Array) -> Array:
    """Returns the array as JSON can carry it; elements of outputs that are no tensors as values, not as texts."""
    if spec.is_structured:
        values = json_values(name, array)
        return np.fromiter(values, np.object_, len(values))
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise UnrepresentableOutput(f"output '{name}' ({spec.describe()}): JSON has no numpy {array.dtype}")
    if datatype == "BYTES":
        if strange := set(map(type, array.ravel().tolist())) - {str}:
            raise UnrepresentableOutput(f"output '{name}': an element is {strange.pop().__name__}, expected text")
        return array
    if array.dtype.kind == "f":
        flat = array.ravel()
        finite = np.isfinite(flat)
        if not finite.all():
            index = int(finite.argmin())
            raise UnrepresentableOutput(
                f"output '{name}': element {index} is {flat[index]}, which JSON cannot carry; V2 does, as binary data"
            )
    return array.astype(np.float32) if datatype == "FP16" else array


def _check_rows(name: str, array: Array, rows: int) -> None:
    if array.ndim == 0 or len(array) != rows:
        raise UnrepresentableOutput(
            f"output '{name}' has shape {list(array.shape)}, which is not a row for each of {rows} instances; "
            "send 'inputs' in place of 'instances'"
        )


def _by_row(values: Mapping[str, Array]) -> object:
    """Returns the only output's rows, or an object for each row."""
    if len(values) == 1:
        return _jsonable(next(iter(values.values())))
    names = tuple(values)
    # A row of numbers stays a view on the array; single numbers and texts become Python's.
    columns = (
        array.tolist() if array.ndim == 1 or array.dtype.kind in "OUS" else list(np.ascontiguousarray(array))
        for array in values.values()
    )
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _jsonable(array: Array) -> object:
    if array.ndim == 0 or array.dtype.kind in "OUS":
        return array.tolist()
    return np.ascontiguousarray(array)
