"""Tensors in shared memory: where each lies, and nothing that would have to be executed to read it.

Numbers lie as they are. Texts are their lengths and then their bytes, as one tensor. Elements of outputs that are
no tensors (maps, sequences) are JSON with marks. What is read was written by somebody less trusted: every place
and size is checked, and what is checked is copied first, as the other side can still write.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelhost.runtime.worker.wire import BrokenWire
from modelhost.tensors import DTYPES, Array, datatype_of

#: Where a tensor begins: a multiple of this, as vector instructions like it.
_ALIGNED_BYTES: Final = 64
_MAX_DIMENSIONS: Final = 64
_LENGTH: Final = np.dtype("<u4")

#: Stands in the place of a datatype for elements that are no tensor.
STRUCTURED: Final = "STRUCTURED"

Place = list[Any]
"""One tensor in a message: datatype, shape, offset, size in bytes."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be written: tensors in order, and what they take together."""

    parts: tuple[tuple[str, Array, bytes | None], ...]
    size_bytes: int

    @classmethod
    def of(cls, arrays: Sequence[Array], structured: Sequence[bool] = ()) -> Parcel:
        """Measures tensors; `structured` marks those whose elements are no tensor's. Raises ValueError."""
        parts, end = [], 0
        marks = structured or [False] * len(arrays)
        for array, is_structured in zip(arrays, marks, strict=True):
            datatype = STRUCTURED if is_structured else datatype_of(array.dtype)
            if datatype is None:
                raise ValueError(f"no tensor has elements of {array.dtype}")
            text = None
            if datatype == STRUCTURED:
                text = json.dumps([_marked(element) for element in array.tolist()]).encode()
            elif datatype == "BYTES":
                text = _joined(array)
            parts.append((datatype, array, text))
            end = _aligned(end) + (array.nbytes if text is None else len(text))
        return cls(tuple(parts), end)

    def write(self, memory: NDArray[np.uint8]) -> list[Place]:
        """Writes them at the beginning of `memory`, which is large enough; returns where each lies."""
        places: list[Place] = []
        start = 0
        for datatype, array, text in self.parts:
            start = _aligned(start)
            size = array.nbytes if text is None else len(text)
            if text is not None:
                memory[start : start + size] = np.frombuffer(text, np.uint8)
            elif size:
                dtype = DTYPES[datatype]
                there = memory[start : start + size].view(dtype).reshape(array.shape)
                np.copyto(there, array if array.dtype == dtype else array.view(dtype))
            places.append([datatype, list(array.shape), start, size])
            start += size
        return places


def read(place: object, memory: NDArray[np.uint8]) -> tuple[str, Array]:
    """Returns the datatype of a tensor and the tensor, numbers as a view. Raises BrokenWire."""
    datatype, shape, start, size = _checked(place, len(memory))
    count = math.prod(shape)
    lies = memory[start : start + size]
    if datatype == STRUCTURED:
        return datatype, _elements(lies.tobytes())
    if datatype == "BYTES":
        return datatype, _parted(lies, count).reshape(shape)
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != size:
        raise BrokenWire(f"a tensor of {datatype} {list(shape)} has {size} bytes")
    return datatype, lies.view(dtype).reshape(shape)


def _checked(place: object, memory_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    match place:
        case [str() as datatype, list() as shape, int() as start, int() as size] if (
            (datatype in DTYPES or datatype == STRUCTURED)
            and len(shape) <= _MAX_DIMENSIONS
            and all(type(dim) is int and 0 <= dim < 1 << 62 for dim in shape)
            and 0 <= start <= start + size <= memory_bytes
            and start % _ALIGNED_BYTES == 0
        ):
            return datatype, tuple(shape), start, size
    raise BrokenWire(f"this is no place of a tensor in {memory_bytes} bytes: {str(place)[:200]}")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED_BYTES) * _ALIGNED_BYTES


# --- texts -------------------------------------------------------------------------------------------------


def _joined(array: Array) -> bytes:
    texts = [_encoded(element) for element in array.ravel().tolist()]
    lengths = np.fromiter(map(len, texts), _LENGTH, len(texts))
    return lengths.tobytes() + b"".join(texts)


def _encoded(element: Any) -> bytes:
    if isinstance(element, bytes):
        return element
    return (element if isinstance(element, str) else str(element)).encode()


def _parted(lies: NDArray[np.uint8], count: int) -> Array:
    head = count * _LENGTH.itemsize
    if head > len(lies):
        raise BrokenWire(f"{count} texts cannot lie in {len(lies)} bytes")
    copied = lies.tobytes()
    ends = np.cumsum(np.frombuffer(copied, _LENGTH, count), dtype=np.int64) + head
    if (int(ends[-1]) if count else head) != len(copied):
        raise BrokenWire(f"the lengths of {count} texts do not fill {len(copied)} bytes")
    texts = np.empty(count, np.object_)
    start = head
    try:
        for index, end in enumerate(ends.tolist()):
            texts[index] = copied[start:end].decode()
            start = end
    except UnicodeDecodeError as error:
        raise BrokenWire(f"a text is not UTF-8: {error}") from None
    return texts


# --- maps and sequences --------------------------------------------------------------------------------------


def _marked(value: Any) -> Any:
    """Returns what JSON can carry: what it has no form for is an object of one mark."""
    if isinstance(value, dict):
        return {"map": [[_marked(key), _marked(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_marked(item) for item in value]}
    if isinstance(value, np.ndarray):
        datatype = datatype_of(value.dtype)
        if datatype is None:
            raise ValueError(f"no tensor has elements of {value.dtype}")
        data = _joined(value) if datatype == "BYTES" else value.tobytes()
        return {"tensor": [datatype, list(value.shape), base64.b64encode(data).decode()]}
    return value.item() if isinstance(value, np.generic) else value


def _elements(data: bytes) -> Array:
    try:
        values = _unmarked({"list": json.loads(data)})
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BrokenWire(f"elements cannot be read: {error}") from None
    return np.fromiter(values, np.object_, len(values))


def _unmarked(value: Any) -> Any:
    match value:
        case {"map": pairs}:
            return {_unmarked(key): _unmarked(item) for key, item in pairs}
        case {"list": [*items]}:
            return [_unmarked(item) for item in items]
        case {"tensor": [datatype, shape, data]}:
            memory = np.frombuffer(base64.b64decode(data), np.uint8)
            # Writable and its own, as ONNX Runtime's are.
            return read([datatype, shape, 0, len(memory)], memory)[1].copy()
        case None | str() | bool() | int() | float():
            return value
    raise ValueError(f"{type(value).__name__} is no element")
