"""From JSON lists to arrays and back, without coercing anything.

The loops over elements run in C (`set(map(type, ...))`, `chain`, `struct`, `numpy`); Python looks
at single elements only to name the one that is wrong.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np

from modelhost.errors import InvalidTensor, UnrepresentableOutput
from modelhost.tensors import DTYPES, Array

_INTEGERS: Final = {name for name, dtype in DTYPES.items() if dtype.kind in "iu"}
_FLOATS: Final = {"FP32", "FP64"}
_BINARY_ONLY: Final = {"FP16", "BF16"}
#: What orjson may have made of the elements of each datatype. bool is no int here: `type` is exact.
ELEMENT_TYPES: Final[dict[str, frozenset[type]]] = {
    **dict.fromkeys(_INTEGERS, frozenset({int})),
    **dict.fromkeys(_FLOATS, frozenset({int, float})),
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
}
ELEMENT_WORDS: Final = {
    **dict.fromkeys(_INTEGERS, "integers"),
    **dict.fromkeys(_FLOATS, "numbers"),
    "BOOL": "true or false",
    "BYTES": "strings",
}
_FP32_MAX: Final = float(np.finfo(np.float32).max)
_SHOWN_CHARS: Final = 60


def say(value: object) -> str:
    """Returns a JSON value as messages show it: the value itself where short, else its kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        cut = value[:_SHOWN_CHARS]
        return f'"{cut}"' if cut == value else f'"{cut}…" ({len(value)} characters)'
    return str(value)


def decode_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """Returns the array of `shape` that the nested or flat list `data` holds in row-major order.

    A nested list has to agree with the shape as deep as it goes. Raises InvalidTensor where the
    structure, the count, the type or the range of an element is wrong, naming the element.
    """
    if datatype not in ELEMENT_TYPES:
        raise InvalidTensor(name, expected=f"binary data, as JSON has no {datatype}", got="JSON data")
    if not isinstance(data, list):
        raise InvalidTensor(name, expected="'data' to be a list", got=say(data))
    return array_of(name, datatype, _flatten(name, shape, data)).reshape(shape)


def array_of(name: str, datatype: str, flat: list[object], *, first: int = 0) -> Array:
    """Returns elements as an array of one dimension; `first` is the place of the first one in the tensor.

    Raises InvalidTensor where the type or the range of an element is wrong, naming it.
    """
    if not ELEMENT_TYPES[datatype].issuperset(map(type, flat)):
        raise _wrong_type(name, datatype, flat, first)
    try:
        return _to_array(datatype, flat)
    except OverflowError:
        raise _out_of_range(name, datatype, flat, first) from None


def _to_array(datatype: str, flat: list[object]) -> Array:
    """Raises OverflowError where an element is out of the datatype's range."""
    if datatype == "FP32":
        # Standard-size packing refuses what would become infinite; numpy only warns, and turning
        # its warning into an error costs more than the conversion of a small tensor.
        return np.frombuffer(struct.pack(f"<{len(flat)}f", *flat), dtype="<f4").astype(np.float32, copy=False)
    return np.array(flat, dtype=DTYPES[datatype])


def _flatten(name: str, shape: Sequence[int], data: list[object]) -> list[object]:
    """Returns the elements; every list of one depth must have the same length.

    Lists at depth k have shape[k] entries if these are lists, and otherwise all the elements of the
    remaining dimensions, so that both nested and flat data are described by one rule.
    """
    level: list[object] = data
    lengths = {len(data)}
    depth = 0
    while True:
        types: set[type] = set(map(type, level))
        nested = list in types
        if nested and depth + 1 >= max(len(shape), 1):
            raise InvalidTensor(
                name,
                expected=f"lists nested no deeper than shape {list(shape)}",
                got=f"a list inside of level {depth + 1}",
            )
        want = shape[depth] if nested else math.prod(shape[depth:])
        if lengths and lengths != {want}:
            raise _wrong_length(name, shape, data, depth, want)
        if not nested:
            return level
        if len(types) > 1:
            index = next(i for i, entry in enumerate(level) if type(entry) is not list)
            raise InvalidTensor(
                name,
                expected=f"only lists at level {depth + 1} of the data, as its other entries are",
                got=f"{say(level[index])} as entry {index}",
            )
        lists: list[list[object]] = level  # type: ignore[assignment]  # checked just above
        lengths = set(map(len, lists))
        depth += 1
        level = lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))


def _wrong_length(name: str, shape: Sequence[int], data: list[object], depth: int, want: int) -> InvalidTensor:
    """Finds the first list at `depth` that has not `want` entries."""
    if depth == 0:
        return InvalidTensor(name, expected=f"{want} elements for shape {list(shape)}", got=f"{len(data)} elements")
    level: list[object] = data
    for _ in range(depth - 1):
        level = [entry for part in level if isinstance(part, list) for entry in part]
    index, found = next((i, len(part)) for i, part in enumerate(level) if isinstance(part, list) and len(part) != want)
    return InvalidTensor(
        name,
        expected=f"{want} elements in each list at level {depth + 1} for shape {list(shape)}",
        got=f"{found} elements in list {index}",
    )


def _wrong_type(name: str, datatype: str, flat: list[object], first: int) -> InvalidTensor:
    allowed = ELEMENT_TYPES[datatype]
    index = next(i for i, value in enumerate(flat) if type(value) not in allowed)
    return InvalidTensor(
        name,
        expected=f"{ELEMENT_WORDS[datatype]} for {datatype}",
        got=f"{say(flat[index])} as element {first + index}",
    )


def _out_of_range(name: str, datatype: str, flat: list[object], first: int) -> InvalidTensor:
    if datatype == "FP32":
        low, high = -_FP32_MAX, _FP32_MAX
        # Above the largest FP32, but rounding down to it, is still representable.
        index = next(i for i, value in enumerate(flat) if not _fits_fp32(value))
    else:
        info = np.iinfo(DTYPES[datatype].name)
        low, high = info.min, info.max
        index = next(i for i, value in enumerate(flat) if isinstance(value, int) and not low <= value <= high)
    return InvalidTensor(
        name,
        expected=f"values from {low} to {high} for {datatype}",
        got=f"{say(flat[index])} as element {first + index}",
    )


def _fits_fp32(value: object) -> bool:
    try:
        struct.pack("<f", value)
    except OverflowError:
        return False
    return True


def check_json(name: str, datatype: str, flat: Array) -> None:
    """Raises UnrepresentableOutput where JSON cannot carry the one-dimensional array `flat`."""
    if datatype in _BINARY_ONLY:
        raise UnrepresentableOutput(f"output '{name}': JSON has no {datatype}; ask for it with binary_data true")
    if datatype not in _FLOATS:
        return
    finite = np.isfinite(flat)
    if not finite.all():
        index = int(finite.argmin())
        raise UnrepresentableOutput(
            f"output '{name}': element {index} is {flat[index]}, which JSON cannot carry; "
            "ask for it with binary_data true"
        )
