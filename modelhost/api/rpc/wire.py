"""The outermost fields of a request's bytes: what it takes is known before it is parsed, and raw tensors stay
where they lie.

A parser would copy each raw tensor twice, and makes of two hostile bytes an object of a hundred.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from modelhost.errors import InvalidRequest

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_FIXED32: Final = 5

#: ModelInferRequest's fields.
_NAME, _VERSION, _ID, _INPUTS, _RAW = 1, 2, 3, 5, 7
#: InferInputTensor's.
_CONTENTS: Final = 5
#: InferTensorContents': numbers whose bytes are those of their arrays, bool, float and double; and text.
_SAME_BYTES: Final = frozenset({1, 6, 7})
_TEXTS: Final = 8
_TEXT_TAG: Final = bytes([_TEXTS << 3 | _LENGTH])

#: More outermost fields than any request has: inputs, outputs, parameters and raw tensors together.
_MAX_FIELDS: Final = 8192
#: Fields looked at inside the inputs; what lies behind counts as the dearest that it could be.
_MAX_INNER_FIELDS: Final = 4096

# Upper bounds, in bytes of memory for each byte on the wire:
_FIXED_COST: Final = 4096
_LOOSE: Final = 64  # an empty message of two bytes is an object of about 100
_SAME: Final = 4  # the parser's array, which may have grown by doubling; the copy; the tensor
_NUMBERS: Final = 28  # one byte may be a number of eight, in an array that has grown by doubling; and the tensor
_TEXT: Final = 6  # the parser's copy; bytes; str, whose widest character decides for all
_EACH_TEXT: Final = 192  # the parser's view, twice; headers of bytes and str; entries of list and array
#: Heads up to this are not looked into.
_SMALL_BYTES: Final = 1024


@dataclass(slots=True)
class Parts:
    """A ModelInferRequest taken apart, by positions in its bytes."""

    model_name: str = ""
    model_version: str = ""
    request_id: str = ""
    raw: list[tuple[int, int]] = field(default_factory=list)
    """Start and size of each raw tensor."""
    head: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of what is left without them: the parser's part."""
    inputs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def head_bytes(self) -> int:
        """Size of what is left without the raw tensors."""
        return sum(end - start for start, end in self.head)

    def head_of(self, message: bytes) -> bytes:
        """Returns the message without its raw tensors."""
        if self.head == [(0, len(message))]:
            return message
        return b"".join(message[start:end] for start, end in self.head)


def take_apart(message: bytes) -> Parts:
    """Returns the parts of the ModelInferRequest in `message`. Raises InvalidRequest where it is damaged."""
    parts = Parts()
    kept_from = 0
    for count, (number, kind, tag_at, start, end) in enumerate(_fields(message, 0, len(message))):
        if count >= _MAX_FIELDS:
            raise InvalidRequest(f"the request has over {_MAX_FIELDS} inputs, outputs, parameters and raw tensors")
        if kind != _LENGTH:
            continue
        if number == _RAW:
            if tag_at > kept_from:
                parts.head.append((kept_from, tag_at))
            parts.raw.append((start, end - start))
            kept_from = end
        elif number == _INPUTS:
            parts.inputs.append((start, end))
        elif number == _NAME:
            parts.model_name = _text(message, start, end, "model_name")
        elif number == _VERSION:
            parts.model_version = _text(message, start, end, "model_version")
        elif number == _ID:
            parts.request_id = _text(message, start, end, "id")
    if len(message) > kept_from:
        parts.head.append((kept_from, len(message)))
    return parts


def parse_cost_bytes(message: bytes, parts: Parts) -> int:
    """Returns an upper bound for the bytes that parsing takes, and turning typed contents into tensors.

    Raw tensors are not in it.
    """
    loose_bytes = parts.head_bytes
    if loose_bytes <= _SMALL_BYTES:
        return _FIXED_COST + _LOOSE * loose_bytes
    cost = _FIXED_COST
    left = _MAX_INNER_FIELDS
    for input_start, input_end in parts.inputs:
        for number, kind, _, start, end in _fields(message, input_start, input_end):
            if left <= 0:
                break  # all of the rest is loose
            left -= 1
            if number == _CONTENTS and kind == _LENGTH:
                contents_cost, left = _contents_cost_bytes(message, start, end, left)
                cost += contents_cost
                loose_bytes -= end - start
    return cost + _LOOSE * loose_bytes


def _contents_cost_bytes(message: bytes, start: int, end: int, left: int) -> tuple[int, int]:
    """Returns the cost of one tensor's contents, and how many more fields may be looked at."""
    cost = 0
    for number, kind, tag_at, _, value_end in _fields(message, start, end):
        if left <= 0:
            rest_bytes = end - tag_at
            # A tag for each text; counting them is fast, and counts too many rather than too few.
            texts = min(message.count(_TEXT_TAG, tag_at, end), rest_bytes // 2)
            return cost + max(_NUMBERS, _TEXT) * rest_bytes + _EACH_TEXT * texts, left
        left -= 1
        size_bytes = value_end - tag_at
        if number == _TEXTS:
            cost += _TEXT * size_bytes + _EACH_TEXT
        else:
            is_same = number in _SAME_BYTES and kind == _LENGTH
            cost += (_SAME if is_same else _NUMBERS) * size_bytes
    return cost, left


def _fields(message: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields number, wire type, position of the tag, and start and end of the value, of each field."""
    position = start
    while position < end:
        tag_at = position
        tag, position = _varint(message, position, end)
        kind = tag & 7
        if kind == _LENGTH:
            size, position = _varint(message, position, end)
        elif kind == _VARINT:
            begin = position
            _, after = _varint(message, position, end)
            size, position = after - begin, begin
        elif kind == _FIXED32:
            size = 4
        elif kind == _FIXED64:
            size = 8
        else:
            raise InvalidRequest(f"the request is damaged at byte {tag_at}: wire type {kind} is not in use")
        if position + size > end:
            raise InvalidRequest(
                f"the request is damaged at byte {tag_at}: a field of {size} bytes, {end - position} left"
            )
        yield tag >> 3, kind, tag_at, position, position + size
        position += size


def _varint(message: bytes, position: int, end: int) -> tuple[int, int]:
    """Returns the number at `position` and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise InvalidRequest(f"the request is cut short at byte {end}, within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise InvalidRequest(f"the request is damaged at byte {position}: a number of over ten bytes")


def _text(message: bytes, start: int, end: int, what: str) -> str:
    try:
        return message[start:end].decode()
    except UnicodeDecodeError as error:
        reason = error.reason
    raise InvalidRequest(f"{what} is not UTF-8: {reason}")


def length_prefix(field_number: int, size_bytes: int) -> bytes:
    """Returns tag and length that go before a field of `size_bytes` bytes."""
    prefix = bytearray([field_number << 3 | _LENGTH])  # numbers up to 15
    while size_bytes >= 0x80:
        prefix.append(size_bytes & 0x7F | 0x80)
        size_bytes >>= 7
    prefix.append(size_bytes)
    return bytes(prefix)
