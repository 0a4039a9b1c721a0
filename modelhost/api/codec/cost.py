"""Upper bounds for the memory that decoding a body takes, from counts at C speed; the longest texts of numbers.

The figures are resident bytes on 64-bit CPython, at the worst moment, beyond the body itself.
orjson also allocates a buffer of 12 bytes per byte of text, of which it touches 16 bytes per value
and a copy of the text; the untouched rest is address space, not memory, and is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from modelhost.api.codec.large_json import CutRequest, cut, parses_large
from modelhost.api.codec.list_pieces import PIECE_BYTES
from modelhost.tensors import DTYPES, TensorSpec

_FIXED: Final = 1 << 14  # big buffers end within a page; the small objects of any request
# Per value: parser node 16, list entry 8, float or int 32 (rounded up by the small-object
# allocator); the node is gone when the flat lists (2 * 9) and the array (8 + 1 for checks) come.
_VALUE: Final = 32 + 8 + 28
_LIST: Final = 112  # header 56, collector 16, rounding up of header and entries
_DICT: Final = 240  # object 64, collector 16, first key table 160
_KEY: Final = 112  # key tables are at most a third full, and the old one is still there on growth
#: What works on a list, per byte of a piece: the parser's buffers, some copies, and arrays of its numbers.
_PARSER: Final = 40
_TEXT_NARROW: Final = 16 + 64  # parser node; str header and rounding where all is ASCII
_TEXT_WIDE: Final = 16 + 96
_ENTRIES: Final = 9 + 8  # list entry with over-allocation; entry of the object array

#: Characters of the longest number of a datatype in JSON, with its comma; others have up to 25.
_LONGEST_TEXT: Final = {
    "BOOL": 6,
    "UINT8": 4,
    "INT8": 5,
    "UINT16": 6,
    "INT16": 7,
    "UINT32": 11,
    "INT32": 12,
    "FP32": 16,
}

_COUNTED: Final = b',[{":'
_CHUNK_BYTES: Final = 1 << 16  # fits the second-level cache
_NUMPY_PAYS_BYTES: Final = 1 << 14  # below, five bytes.count are faster


class Foreseen(NamedTuple):
    """What is known of a body before it is decoded."""

    cost_bytes: int
    """An upper bound for the bytes that decoding it holds at its peak, the body itself not included."""
    large: CutRequest | None
    """Its text, where lists of numbers are cut out of it; None where it is parsed whole."""


def foresee(body: bytes | memoryview, *, header_length: int | None, inputs: Mapping[str, TensorSpec]) -> Foreseen:
    """Returns what `decode_request` of `body` takes, and what it need not find out again.

    Its cost covers the JSON part, copies of raw numeric tensors that lie unaligned (in this buffer: the bound is not
    that of another with the same bytes) and the strings of raw BYTES tensors. Raises nothing.
    """
    text_length = len(body) if header_length is None else header_length
    text, raw_bytes = body if text_length == len(body) else body[:text_length], len(body) - text_length
    large = cut(text) if parses_large(text_length, inputs) else None
    cost = json_cost_bytes(bytes(text)) if large is None else _large_cost_bytes(large, inputs)
    if raw_bytes:
        cost += len(text)  # the JSON part is cut out of the body
        if len(_widths(inputs)) > 1 and not _has_texts(inputs):
            cost += raw_bytes  # a wide tensor behind a narrow one may lie anywhere
        else:
            # Tensors of one width: where the first is aligned, so are those right behind it.
            cost += raw_cost_bytes(body, [(text_length, raw_bytes)], inputs, framed=header_length != 0)
    return Foreseen(cost, large)


def raw_cost_bytes(
    body: bytes | memoryview,
    spans: Sequence[tuple[int, int]],
    inputs: Mapping[str, TensorSpec],
    *,
    framed: bool = True,
) -> int:
    """Returns an upper bound for the bytes held by decoding the raw tensors in `spans` (start and size) of `body`.

    There is one in each of the ascending spans, of any of the `inputs`. `framed` tells BYTES whose elements
    have their length before them from one whose only element is all of it. Raises nothing.
    """
    spans = [(start, size) for start, size in spans if size]
    if not spans:
        return 0
    if _has_texts(inputs):
        begin, end = spans[0][0], sum(spans[-1])
        return _texts_cost_bytes(bytes(body[begin:end]), framed=framed)
    address: int = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    width = max(_widths(inputs), default=1)
    return sum(size for start, size in spans if (address + start) % width)


def _has_texts(inputs: Mapping[str, TensorSpec]) -> bool:
    return any(spec.datatype == "BYTES" for spec in inputs.values())


def _widths(inputs: Mapping[str, TensorSpec]) -> set[int]:
    """Returns the bytes of one element of each input; what has no datatype of V2 is never decoded."""
    return {DTYPES[spec.datatype].itemsize for spec in inputs.values() if spec.datatype in DTYPES}


def json_cost_bytes(text: bytes) -> int:
    """Returns an upper bound for the bytes held by parsing `text` and turning it into arrays.

    `text` need not be valid JSON. Every value but the first follows a comma or opens a container,
    and every string, key or value, has two quotes, so the counts bound the objects.
    """
    commas, lists, dicts, quotes, colons = _counts(text)
    width = _char_bytes(text)
    string = _TEXT_NARROW if width == 1 else _TEXT_WIDE
    return (
        _FIXED
        # The parser's copy, and one more as str: in the values, or whole in the parser's error.
        + (1 + width) * len(text)
        + _VALUE * (commas + lists + dicts + 1)
        + _LIST * lists
        + _DICT * dicts
        + _KEY * colons
        + string * (quotes // 2)
    )


def _large_cost_bytes(large: CutRequest, inputs: Mapping[str, TensorSpec]) -> int:
    """Bounds the bytes held by cutting a text and turning its numbers into arrays, one list after another."""
    width = max(_widths(inputs), default=8)
    piece_bytes = max(min(len(numbers.text), PIECE_BYTES) for numbers in large.lists)
    arrays = sum(width * numbers.count() for numbers in large.lists)
    return json_cost_bytes(large.rest) + _PARSER * piece_bytes + arrays


def longest_text(datatype: str | None) -> int:
    """Returns the characters of the longest number of a datatype in JSON, its comma included."""
    return _LONGEST_TEXT.get(datatype or "", 25)


def _texts_cost_bytes(raw: bytes, *, framed: bool) -> int:
    """Bounds the bytes held by decoding the BYTES elements in `raw`, or all of it as one."""
    # The length of an element below 256 bytes has three zero bytes; UTF-8 text hardly has any.
    elements = min(len(raw) // 4, raw.count(0) // 3 + len(raw) // 256 + 1) if framed else 1
    width = _char_bytes(raw)
    string = _TEXT_NARROW if width == 1 else _TEXT_WIDE
    return (1 + width) * len(raw) + (string + _ENTRIES) * elements


def _counts(text: bytes) -> list[int]:
    if len(text) < _NUMPY_PAYS_BYTES:
        return [text.count(char) for char in _COUNTED]
    counts = [0] * len(_COUNTED)
    codes = np.frombuffer(text, dtype=np.uint8)
    for start in range(0, len(codes), _CHUNK_BYTES):
        chunk = codes[start : start + _CHUNK_BYTES]
        for which, char in enumerate(_COUNTED):
            counts[which] += int(np.count_nonzero(chunk == char))
    return counts


def _char_bytes(text: bytes) -> int:
    """Bounds the bytes per byte of `text` in a str, whose widest character decides for all."""
    escapes = b"\\" in text and b"\\u" in text
    if text.isascii() and not escapes:
        return 1
    # Characters past U+FFFF are four bytes in UTF-8, and escaped surrogates (d8 to df) in JSON.
    if any(lead in text for lead in (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")):
        return 4
    return 4 if escapes and (b"\\ud" in text or b"\\uD" in text) else 2
