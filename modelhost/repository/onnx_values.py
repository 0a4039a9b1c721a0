"""The inputs and outputs of a graph: from ONNX's description of a value to a TensorSpec."""

from __future__ import annotations

from modelhost.repository.element_types import datatype
from modelhost.repository.onnx_tensors import MAX_RANK, shown
from modelhost.repository.wire import (
    OnnxFormatError,
    WireReader,
    length_field,
    signed,
    varint_field,
)
from modelhost.tensors import TensorSpec

# ValueInfoProto
_NAME, _TYPE = length_field(1), length_field(2)
# TypeProto
_TENSOR_TYPE = length_field(1)
_STRUCTURED_TYPES = frozenset(map(length_field, (4, 5, 9)))  # sequence, map, optional
_OPAQUE_TYPES = frozenset(map(length_field, (7, 8)))  # opaque, sparse tensor
# TypeProto.Tensor
_ELEMENT_TYPE, _SHAPE = varint_field(1), length_field(2)
# TensorShapeProto and its Dimension
_DIM = length_field(1)
_DIM_VALUE, _DIM_PARAM = varint_field(1), length_field(2)


def value_name(wire: WireReader, start: int, end: int) -> bytes:
    """Returns the name of the ValueInfoProto at `start:end`, as it is in the file."""
    name = b""
    for tag, value, last in wire.fields(start, end):
        if tag == _NAME:
            name = wire.read(value, last)
    return name


def read_value(wire: WireReader, start: int, end: int) -> TensorSpec | str:
    """Returns the tensor, sequence, map or optional that the ValueInfoProto describes, of another value the name.

    `dim_names` is as long as the shape. A type that the file leaves open is `UNDEFINED`. Raises
    OnnxFormatError.
    """
    name = ""
    tensor_type: tuple[int, int] | None = None
    is_structured = is_opaque = False
    for tag, value, last in wire.fields(start, end):
        if tag == _NAME:
            name = wire.text(value, last)
        elif tag == _TYPE:
            for kind, first, behind in wire.fields(value, last):
                if kind == _TENSOR_TYPE or kind in _STRUCTURED_TYPES or kind in _OPAQUE_TYPES:
                    # The last one counts, as protobuf has it where a choice is made twice.
                    tensor_type = (first, behind)
                    is_structured, is_opaque = kind in _STRUCTURED_TYPES, kind in _OPAQUE_TYPES
    if is_opaque:
        return name
    if is_structured:
        return TensorSpec.structured(name)
    if tensor_type is None:
        return TensorSpec(name, "UNDEFINED", None)
    return _tensor_spec(wire, name, *tensor_type)


def _tensor_spec(wire: WireReader, name: str, start: int, end: int) -> TensorSpec:
    element_type = 0
    shape: tuple[int, ...] | None = None
    dim_names: tuple[str, ...] = ()
    for tag, value, last in wire.fields(start, end):
        if tag == _ELEMENT_TYPE:
            element_type = value
        elif tag == _SHAPE:
            shape, dim_names = _shape(wire, value, last)
    kind = datatype(element_type)
    if kind is None:
        raise OnnxFormatError(f"{shown(name.encode())} has the unknown element type {element_type}")
    return TensorSpec(name, kind, shape, dim_names)


def _shape(wire: WireReader, start: int, end: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    sizes: list[int] = []
    names: list[str] = []
    for tag, value, last in wire.fields(start, end):
        if tag != _DIM:
            continue
        size, name = -1, ""
        for kind, number, behind in wire.fields(value, last):
            if kind == _DIM_VALUE:
                size, name = max(signed(number), -1), ""
            elif kind == _DIM_PARAM:
                size, name = -1, wire.text(number, behind)
        sizes.append(size)
        names.append(name)
        if len(sizes) > MAX_RANK:
            raise OnnxFormatError(f"a shape of more than {MAX_RANK} dimensions")
    return tuple(sizes), tuple(names)
