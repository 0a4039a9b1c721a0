"""The face of a saved model put right: its inputs are the original's again.

For old IR versions (below 4) ONNX Runtime saves initialisers as required inputs too. Giving the saved
graph a newer IR version and only the original's inputs makes them plain initialisers; nothing else of
the file changes. Works on the bytes of the protocol buffer, whose weights lie in another file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

#: From this IR version on an initialiser need not be an input as well.
_IR_VERSION: Final = 8

_MODEL_IR_VERSION: Final = 1
_MODEL_GRAPH: Final = 7
_GRAPH_INPUT: Final = 11
_VALUE_NAME: Final = 1

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def with_inputs(model: bytes, inputs: Collection[str]) -> bytes:
    """Returns the model with only these graph inputs. Raises ValueError where it is no model."""
    out, has_graph = bytearray(), False
    for number, kind, value, raw in _fields(model):
        if number == _MODEL_IR_VERSION and kind == _VARINT:
            out += _tag(_MODEL_IR_VERSION, _VARINT) + _varint(max(_number(value), _IR_VERSION))
        elif number == _MODEL_GRAPH and kind == _LENGTH:
            graph = b"".join(
                field_raw
                for field, _, field_value, field_raw in _fields(value)
                if field != _GRAPH_INPUT or _name_of(field_value) in inputs
            )
            out += _tag(_MODEL_GRAPH, _LENGTH) + _varint(len(graph)) + graph
            has_graph = True
        else:
            out += raw
    if not has_graph:
        raise ValueError("it has no graph")
    return bytes(out)


def _name_of(value_info: bytes) -> str:
    for number, _, value, _ in _fields(value_info):
        if number == _VALUE_NAME:
            return value.decode()
    return ""


def _fields(message: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Yields number, wire type, value and the raw bytes of each field."""
    position = 0
    while position < len(message):
        begin = position
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            start = position
            _, position = _read_varint(message, position)
        elif kind == _LENGTH:
            size, start = _read_varint(message, position)
            position = start + size
        elif kind in (_FIXED32, _FIXED64):
            start = position
            position += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind} at byte {begin}")
        if position > len(message):
            raise ValueError(f"cut short at byte {len(message)}")
        yield tag >> 3, kind, message[start:position], message[begin:position]


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"no number at byte {position}")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _number(raw: bytes) -> int:
    return _read_varint(raw, 0)[0]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)
