"""Outputs that are no tensors (sequences, maps, optionals) as JSON: one text for each element.

A map is an object whose keys are text, a tensor nested lists, an optional without a value null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import orjson

from modelhost.api.codec.cost import longest_text
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import Array, datatype_of

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY

#: What a string holds besides its characters, with its place in a list.
_STRING_BYTES: Final = 80
#: A map, and the place of an entry in its key table, which is at most a third full.
_MAP_BYTES, _ENTRY_BYTES = 240, 112
#: An array without its numbers, and what the writer holds for each list that it makes of one.
_ARRAY_BYTES, _LIST_BYTES = 160, 128


def json_values(name: str, elements: Array) -> list[object]:
    """Returns the elements of an output as orjson writes them with OPT_SERIALIZE_NUMPY; maps have text as keys.

    Maps are copied. Raises UnrepresentableOutput where an element holds NaN or Infinity, which JSON cannot carry.
    """
    return [_json_value(name, index, element) for index, element in enumerate(elements.ravel().tolist())]


def json_texts(name: str, elements: Array) -> list[str]:
    """Returns the JSON text of each element. Raises UnrepresentableOutput as `json_values`, and for bad Unicode."""
    texts = []
    for index, element in enumerate(elements.ravel().tolist()):
        try:
            texts.append(orjson.dumps(_json_value(name, index, element), option=_OPTIONS).decode())
        except orjson.JSONEncodeError as error:
            raise UnrepresentableOutput(f"output '{name}': element {index} has no JSON form: {error}") from None
    return texts


def structured_cost_bytes(elements: Array) -> int:
    """Returns an upper bound for the bytes that elements hold, their texts, and those within a response.

    A text is written as JSON, kept, and written once more, with its quotes escaped and into a buffer that
    grows by doubling; or framed, each length and text as an object of its own.
    """
    held = characters = 0
    for element in elements.ravel().tolist():
        element_held, element_characters = _size(element)
        held += element_held + 3 * _STRING_BYTES
        characters += element_characters
    return held + 7 * characters


def _json_value(name: str, index: int, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _json_value(name, index, item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _json_array(name, index, value)
    if isinstance(value, list):
        return [_json_value(name, index, item) for item in value]
    if isinstance(value, (float, np.floating)) and not math.isfinite(value):
        raise UnrepresentableOutput(f"output '{name}': element {index} holds {value}, which JSON cannot carry")
    return value


def _json_array(name: str, index: int, array: Array) -> object:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = array.ravel()[int(np.isfinite(array).argmin())]
        raise UnrepresentableOutput(f"output '{name}': element {index} holds {first}, which JSON cannot carry")
    if array.dtype.kind == "O":
        return array.tolist()
    # The writer takes no arrays without dimensions, nor any that are not in order.
    return np.ascontiguousarray(array) if array.ndim else array[()]


def _size(value: object) -> tuple[int, int]:
    """Returns the bytes that a value holds, and the characters of its JSON at most."""
    if isinstance(value, Mapping):
        held, characters = _MAP_BYTES + _ENTRY_BYTES * len(value), 3 + 3 * len(value)
        return _sum(held, characters, [*value, *value.values()])
    if isinstance(value, np.ndarray):
        lists = _lists(value.shape)
        held, characters = _ARRAY_BYTES + value.nbytes + _LIST_BYTES * lists, 3 * lists
        if value.dtype.kind != "O":
            return held, characters + longest_text(datatype_of(value.dtype)) * value.size
        return _sum(held, characters, value.ravel().tolist())
    if isinstance(value, list):
        return _sum(8 * len(value), 3, value)
    if isinstance(value, str):
        return _STRING_BYTES + 4 * len(value), 6 * len(value) + 3
    return _STRING_BYTES, longest_text(None)


def _sum(held: int, characters: int, values: list[object]) -> tuple[int, int]:
    """Adds the sizes of values to those given."""
    for value in values:
        more_held, more_characters = _size(value)
        held += more_held
        characters += more_characters
    return held, characters


def _lists(shape: tuple[int, ...]) -> int:
    """Returns how many lists an array of a shape is as nested lists."""
    lists = count = 1
    for size in shape[:-1]:
        count *= size
        lists += count
    return lists
