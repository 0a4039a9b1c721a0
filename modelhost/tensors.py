"""Tensor names, datatypes and shapes in V2 terms, and the check of values against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from modelhost.errors import InvalidRequest, InvalidTensor

Array: TypeAlias = NDArray[np.generic]

#: BF16 as two bytes without a meaning: numpy has no such number, the package that adds one would be a
#: dependency for few models, and uint16 would make it the same as UINT16 where an array is told by its dtype.
BF16: Final = np.dtype("V2")

#: V2 datatype to numpy dtype. BYTES are Python strings in an object array, which is what ONNX
#: Runtime takes and gives.
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
    "BF16": BF16,
    "BYTES": np.dtype(np.object_),
}

_DATATYPES: Final[Mapping[np.dtype[np.generic], str]] = {dtype: name for name, dtype in DTYPES.items()}


def datatype_of(dtype: DTypeLike) -> str | None:
    """Returns the V2 datatype of a numpy dtype, `BYTES` for text, or None where V2 has none."""
    dtype = np.dtype(dtype)
    if dtype.kind in "US":
        return "BYTES"
    known = _DATATYPES.get(dtype)
    if known is None and dtype.name == "bfloat16":  # of the package that has such numbers, in a caller's program
        return "BF16"
    return known


def to_bfloat16(numbers: ArrayLike) -> Array:
    """Returns numbers as BF16, each the nearest that there is, the even one of two."""
    wide = np.asarray(numbers, np.float32)
    bits = wide.view(np.uint32).astype(np.uint64)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    # Rounding would make infinity of some that are no numbers.
    codes = np.where(np.isnan(wide), bits >> 16 | 0x40, nearest)
    return codes.astype(np.uint16).view(BF16)


def from_bfloat16(array: Array) -> NDArray[np.float32]:
    """Returns BF16 as FP32, which has all its numbers."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    `shape` has -1 for a dimension of any size; `dim_names` has the model's own names for those, or
    "" where it gives none. `shape` is None where the model does not even state its rank.

    An output that `is_structured` is no tensor in the model but a sequence, a map or an optional: its
    values are an array of Python objects (dicts, arrays, strings, None), one for each element of the
    sequence, and on the wire each is its JSON text.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    dim_names: tuple[str, ...] = ()
    is_structured: bool = False

    @classmethod
    def structured(cls, name: str) -> TensorSpec:
        """Returns what stands for an output that is a sequence, a map or an optional."""
        return cls(name, "BYTES", (-1,), ("",), is_structured=True)

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
        return f"{self.datatype} [{','.join(dims)}]{' of JSON' if self.is_structured else ''}"

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
