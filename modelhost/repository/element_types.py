"""ONNX's element types: their names in V2 terms, their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

FLOAT: Final = 1
INT64: Final = 7
STRING: Final = 8

#: `TensorProto.DataType` to (V2 datatype, bits of one element). V2 has no names for the types from
#: COMPLEX64 on, save BF16; they carry ONNX's, and are not served. Text has no fixed size and is counted as
#: stored.
_TYPES: Final[Mapping[int, tuple[str, int]]] = {
    1: ("FP32", 32),
    2: ("UINT8", 8),
    3: ("INT8", 8),
    4: ("UINT16", 16),
    5: ("INT16", 16),
    6: ("INT32", 32),
    7: ("INT64", 64),
    8: ("BYTES", 0),
    9: ("BOOL", 8),
    10: ("FP16", 16),
    11: ("FP64", 64),
    12: ("UINT32", 32),
    13: ("UINT64", 64),
    14: ("COMPLEX64", 64),
    15: ("COMPLEX128", 128),
    16: ("BF16", 16),
    17: ("FLOAT8E4M3FN", 8),
    18: ("FLOAT8E4M3FNUZ", 8),
    19: ("FLOAT8E5M2", 8),
    20: ("FLOAT8E5M2FNUZ", 8),
    21: ("UINT4", 4),
    22: ("INT4", 4),
    23: ("FLOAT4E2M1", 4),
    24: ("FLOAT8E8M0", 8),
    25: ("UINT2", 2),
    26: ("INT2", 2),
    27: ("FLOAT6E2M3", 6),
    28: ("FLOAT6E3M2", 6),
}


def datatype(element_type: int) -> str | None:
    """Returns the V2 datatype, `UNDEFINED` for a type left open, or None for an unknown one."""
    if element_type == 0:
        return "UNDEFINED"
    known = _TYPES.get(element_type)
    return None if known is None else known[0]


def packed_bytes(element_type: int, elements: int) -> int | None:
    """Returns the bytes of `elements`, packed where they have less than 8 bits; None as above."""
    known = _TYPES.get(element_type)
    return None if known is None else (elements * known[1] + 7) // 8
