"""Between raw bytes and arrays: little endian, row major; BYTES elements framed by their length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelhost.errors import InvalidTensor, UnrepresentableOutput
from modelhost.tensors import BF16, DTYPES, Array

_PREFIX_BYTES: Final = 4
_PIECE_BYTES: Final = 1 << 12
#: How elements lie in a body. BF16 as numbers of two bytes, so that they are aligned, and in this machine's order.
_WIRE: Final = {
    name: np.dtype(np.uint16 if dtype == BF16 else dtype).newbyteorder("<")
    for name, dtype in DTYPES.items()
    if name != "BYTES"
}
_NOT_TEXT: Final = "UTF-8 text, which is what ONNX string tensors hold"


def decode_binary(
    name: str,
    datatype: str,
    shape: Sequence[int],
    body: bytes | memoryview,
    *,
    start: int,
    size: int,
) -> Array:
    """Returns the array of `shape` in the `size` bytes of `body` from `start`.

    Numeric arrays are read-only views on the body, copied only where the bytes lie unaligned. BYTES
    become `str` in an object array. Raises InvalidTensor where the size, the framing, a BOOL byte
    or the text of an element is wrong.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _decode_texts(name, count, bytes(body[start : start + size])).reshape(shape)
    dtype = DTYPES[datatype]
    expected = count * dtype.itemsize
    if size != expected:
        raise InvalidTensor(
            name,
            expected=f"{expected} bytes for {datatype} {list(shape)}",
            got=f"{size} bytes",
        )
    if datatype == "BOOL":
        _check_bools(name, body, start, size)
    if not count:  # frombuffer refuses an empty buffer
        return np.empty(shape, dtype=dtype)
    flat: Array = np.frombuffer(body, dtype=_WIRE[datatype], count=count, offset=start)
    if not flat.flags.aligned:
        flat = flat.copy()
    if datatype == "BF16":
        return flat.astype(np.uint16, copy=False).view(BF16).reshape(shape)
    return flat.astype(dtype, copy=False).reshape(shape)


def _check_bools(name: str, body: bytes | memoryview, start: int, size: int) -> None:
    if not size:
        return
    codes = np.frombuffer(body, dtype=np.uint8, count=size, offset=start)
    if int(codes.max()) > 1:
        index = _first_above_one(codes)
        raise InvalidTensor(
            name,
            expected="bytes 0 or 1 for BOOL",
            got=f"byte {codes[index]} as element {index}",
        )


def _first_above_one(codes: NDArray[np.uint8]) -> int:
    """Returns where the first of them is, in pieces: a mask of all would take as much memory as they do."""
    pieces = range(0, len(codes), _PIECE_BYTES)
    begin = next(begin for begin in pieces if int(codes[begin : begin + _PIECE_BYTES].max()) > 1)
    return begin + int((codes[begin : begin + _PIECE_BYTES] > 1).argmax())


def _decode_texts(name: str, count: int, raw: bytes) -> Array:
    """Walks the frames of `count` elements, which have to use up `raw` exactly."""
    if count * _PREFIX_BYTES > len(raw):
        raise InvalidTensor(
            name,
            expected=f"{count} BYTES elements of at least {_PREFIX_BYTES} bytes each",
            got=f"{len(raw)} bytes",
        )
    texts: list[str] = []
    position = 0
    for index in range(count):
        begin = position + _PREFIX_BYTES
        # A prefix that is cut short reads as some number; `begin` is past the end anyway.
        position = begin + int.from_bytes(raw[position:begin], "little")
        if position > len(raw):
            raise _cut_short(name, index, position - begin, len(raw) - begin)
        try:
            texts.append(raw[begin:position].decode())
        except UnicodeDecodeError as error:
            reason = f"element {index} with {error.reason} at its byte {error.start}"
            raise InvalidTensor(name, expected=_NOT_TEXT, got=reason) from None
    if position != len(raw):
        raise InvalidTensor(name, expected=f"{position} bytes for {count} BYTES elements", got=f"{len(raw)} bytes")
    return np.array(texts, dtype=np.object_)


def _cut_short(name: str, index: int, length: int, left: int) -> InvalidTensor:
    """Says what is missing; `left` bytes follow the prefix, or are missing in it if negative."""
    if left < 0:
        return InvalidTensor(
            name,
            expected=f"{_PREFIX_BYTES} bytes with the length of element {index}",
            got=f"{_PREFIX_BYTES + left} bytes left",
        )
    return InvalidTensor(name, expected=f"{length} bytes for element {index}", got=f"{left} bytes left")


def decode_single_text(name: str, raw: bytes) -> Array:
    """Returns the unframed text `raw` as an array of one; raises InvalidTensor if not UTF-8."""
    try:
        return np.array([raw.decode()], dtype=np.object_)
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
    raise InvalidTensor(name, expected=_NOT_TEXT, got=reason)


def encode_texts(name: str, texts: Sequence[str]) -> bytes:
    """Returns `texts` framed; raises UnrepresentableOutput where one has no UTF-8 form."""
    parts: list[bytes] = []
    for index, text in enumerate(texts):
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise UnrepresentableOutput(f"output '{name}': element {index} has no UTF-8 form: {error.reason}") from None
        parts += (len(encoded).to_bytes(_PREFIX_BYTES, "little"), encoded)
    return b"".join(parts)
