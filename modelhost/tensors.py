"""Tensor names, datatypes and shapes in V2 terms, and the check of values against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modelhost.errors import InvalidRequest, InvalidTensor

Array: TypeAlias = NDArray[np.generic]

#: V2 datatype to numpy dtype. BYTES are Python strings in an object array, which is what ONNX
#: Runtime takes and gives. BF16 is left out: numpy has no such dtype and ONNX Runtime's Python
#: binding does not take it.
DTYPES: Final[Mapping[str, np.dtype[np.generic]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}

_DATATYPES: Final[Mapping[np.dtype[np.generic], str]] = {dtype: name for name, dtype in DTYPES.items()}


def datatype_of(dtype: DTypeLike) -> str | None:
    """Returns the V2 datatype of a numpy dtype, `BYTES` for text, or None where V2 has none."""
    dtype = np.dtype(dtype)
    return "BYTES" if dtype.kind in "US" else _DATATYPES.get(dtype)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    `shape` has -1 for a dimension of any size; `dim_names` has the model's own names for those, or
    "" where it gives none. `shape` is None where the model does not even state its rank.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    dim_names: tuple[str, ...] = ()

    @property
    def wire_shape(self) -> list[int]:
        """The shape as V2 metadata writes it; a tensor of unstated rank is written `[-1]`."""
        return [-1] if self.shape is None else list(self.shape)

    def describe(self) -> str:
        """Returns `FP32 [batch,1,8,8]`, for messages and tables."""
        if self.shape is None:
            return f"{self.datatype} [...]"
        names = self.dim_names or ("",) * len(self.shape)
        dims = (name or str(size) if size < 0 else str(size) for size, name in zip(self.shape, names, strict=True))
        return f"{self.datatype} [{','.join(dims)}]"

    def accepts_shape(self, shape: Sequence[int]) -> bool:
        """Says whether a value of `shape` may be given for this tensor."""
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want < 0 or want == have for want, have in zip(self.shape, shape, strict=True)
        )

    def check(self, datatype: str, shape: Sequence[int]) -> None:
        """Raises InvalidTensor unless a value of `datatype` and `shape` fits this tensor."""
        if datatype != self.datatype:
            raise InvalidTensor(self.name, expected=f"datatype {self.datatype}", got=datatype)
        if not self.accepts_shape(shape):
            raise InvalidTensor(self.name, expected=self.describe(), got=f"shape {list(shape)}")


def check_feeds(specs: Mapping[str, TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raises InvalidRequest or InvalidTensor unless `feeds` gives every input, and only those, as specified."""
    check_names(specs, feeds)
    for name, value in feeds.items():
        specs[name].check(datatype_of(value.dtype) or str(value.dtype), value.shape)


def check_names(specs: Mapping[str, TensorSpec], given: Mapping[str, object]) -> None:
    """Raises InvalidRequest unless the names in `given` are exactly the inputs in `specs`."""
    if given.keys() == specs.keys():
        return
    expected = ", ".join(f"'{spec.name}' {spec.describe()}" for spec in specs.values())
    for name in given:
        if name not in specs:
            raise InvalidRequest(f"unknown input '{name}'; the model's inputs are {expected}")
    missing = next(name for name in specs if name not in given)
    raise InvalidRequest(f"missing input '{missing}'; the model's inputs are {expected}")


def check_outputs(specs: Mapping[str, TensorSpec], asked: Sequence[str]) -> None:
    """Raises InvalidRequest where `asked` names an output that the model does not have."""
    for name in asked:
        if name not in specs:
            known = ", ".join(f"'{spec.name}'" for spec in specs.values())
            raise InvalidRequest(f"unknown output '{name}'; the model's outputs are {known}")


def check_shared_dims(specs: Mapping[str, TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raises InvalidTensor where inputs give different sizes to a dimension of one name."""
    seen: dict[str, tuple[int, str]] = {}
    for name, value in feeds.items():
        for dim, size in zip(specs[name].dim_names, value.shape, strict=False):
            first_size, first_name = seen.setdefault(dim, (size, name))
            if dim and size != first_size:
                raise InvalidTensor(
                    name,
                    expected=f"'{dim}' = {first_size} as in tensor '{first_name}'",
                    got=f"shape {list(value.shape)}",
                )
