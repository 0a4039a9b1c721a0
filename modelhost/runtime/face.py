"""What a session says of its inputs and outputs, in V2's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from modelhost.runtime.base import LoadError
from modelhost.tensors import TensorSpec

#: `tensor(float)` and so on to V2 datatypes.
_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}

#: What begins the types that are no tensors and have a form on the wire; sparse tensors have none.
STRUCTURED: Final = ("seq(", "map(", "optional(")


class Argument(Protocol):
    """An input or output as ONNX Runtime describes it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> str:
        """`tensor(float)` and so on."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """A size, a symbol or nothing for each dimension."""


def inputs_of(arguments: Sequence[Argument], declared: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Returns the inputs by name, as copies: each argument would keep its session alive. Raises LoadError."""
    for arg in arguments:
        if arg.type not in _DATATYPES:
            raise LoadError(f"input '{arg.name}' is {arg.type}, which the V2 protocol cannot carry")
    return _specs(arguments, declared)


def outputs_of(arguments: Sequence[Argument], declared: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Returns the outputs that can be served by name, as copies."""
    servable = [arg for arg in arguments if arg.type in _DATATYPES or arg.type.startswith(STRUCTURED)]
    return _specs(servable, declared)


def _specs(arguments: Sequence[Argument], declared: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {arg.name: _spec(arg.name, arg.type, arg.shape, declared.get(arg.name)) for arg in arguments}


def _spec(name: str, kind: str, dims: Sequence[int | str | None], declared: TensorSpec | None) -> TensorSpec:
    if kind.startswith(STRUCTURED):
        return TensorSpec.structured(name)
    datatype = _DATATYPES[kind]
    if not dims and declared is not None and declared.shape is None:
        return TensorSpec(name, datatype, None)  # [] here means "scalar" and "rank not stated" alike
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in dims)
    return TensorSpec(name, datatype, shape, tuple(dim if isinstance(dim, str) else "" for dim in dims))
