"""One list of numbers in a JSON text, nested or flat: to an array without a Python object for each number.

It is read in pieces that fit the processor's cache: simdjson parses one as a list of its own, in as many lists
as are open where it begins, and copies its numbers out as one buffer. (Parsed whole, 8 MB of text touch 37 MB
of fresh memory, which takes longer than parsing.) A piece holds the interpreter for a fraction of a millisecond:
other threads wait for it no longer than for any Python code. (8 MB on two busy cores: at most 7 ms in nine runs
of ten, of which 5 are the interpreter's own interval, or 14 where the system's scheduler adds its own; parsed
whole, 20.)

What this accepts is what the way of small documents (`json_tensors.py`) accepts, bit for bit; what it refuses
it refuses for the same reason, and names the same element.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
import simdjson

from modelhost.api.codec.json_tensors import ELEMENT_TYPES, array_of, decode_json
from modelhost.api.codec.list_marks import ListMarks
from modelhost.api.codec.list_pieces import PIECE_BYTES, Piece, count_bytes, pieces_of, split
from modelhost.errors import InvalidRequest, InvalidTensor
from modelhost.tensors import DTYPES, Array

_CODES: Final = {
    **dict.fromkeys(("FP32", "FP64"), "d"),
    **dict.fromkeys(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"), "i"),
    "UINT64": "u",
}
_BUFFERS: Final = {"d": np.float64, "i": np.int64, "u": np.uint64}

#: Where a list of numbers stands in a request, which counts for how deep it may be.
_BEFORE: Final = b'{"inputs":[{"data":'
_BEHIND: Final = b"}]}"

_WHITE: Final = b" \t\r\n"
_NO_MARKS: Final = bytes(code for code in range(256) if code not in b"[],")


class Numbers:
    """A list of numbers, brackets included, that begins at byte `begin` of a request. Any thread.

    Of the text nothing is known but that it begins and ends with brackets, that neither quotes nor braces are in
    it, and that there is a comma in any `PIECE_BYTES` of it.
    """

    __slots__ = ("_count", "begin", "text")

    def __init__(self, text: memoryview, begin: int) -> None:
        self.text, self.begin = text, begin
        self._count: int | None = None

    def count(self) -> int:
        """Returns how many elements there are at the most: `decode` makes no larger array."""
        if self._count is None:
            self._count = 1 + count_bytes(self.text, b",")
        return self._count

    def check(self) -> None:
        """Raises InvalidRequest unless the text is one list in JSON, of whatever it may be."""
        parser = simdjson.Parser()
        left_open = 1
        for piece in pieces_of(self.text[1:-1], 1, 1, PIECE_BYTES):
            left_open = piece.left_open
            if left_open < 1:
                raise self._not_json("more lists end than begin", piece.at)
            if not _is_json(parser, _BEFORE + piece.closed() + _BEHIND):
                self._check_parts(piece)
        if left_open != 1:
            raise self._not_json("more lists begin than end", len(self.text) - 1)

    def decode(self, name: str, datatype: str, shape: Sequence[int]) -> Array:
        """Returns the array of `shape` that is written here, nested or flat.

        Raises InvalidTensor, or InvalidRequest where a number is none; `check` sees all that is not JSON.
        """
        if datatype not in _CODES:
            return decode_json(name, datatype, shape, [])  # which says what JSON has no form of
        array = self._read(name, datatype, shape)
        if array is None:
            raise self._wrong_element(name, datatype, shape)  # which has a parser of its own; the array is gone
        return array

    def _read(self, name: str, datatype: str, shape: Sequence[int]) -> Array | None:
        """Returns the array, or None where an element is wrong. Raises InvalidTensor for wrong lists."""
        sizes = self._sizes(name, shape)
        array = np.empty(math.prod(shape), DTYPES[datatype])
        parser = simdjson.Parser()
        read = 0
        for piece in self._fitting(name, shape, sizes):
            numbers = _parsed(parser, piece, _CODES[datatype])
            if numbers is None or not _fill(array[read:], numbers):
                numbers = _read_slowly(name, datatype, piece)
                if numbers is None or not _fill(array[read:], numbers):
                    return None
            read += numbers.size
        if read != array.size:  # a list of one element looks like an empty one until its number is missed
            raise _wrong_count(name, shape, read)
        return array.reshape(shape)

    # --- lists -----------------------------------------------------------------------------------

    def _sizes(self, name: str, shape: Sequence[int]) -> list[int]:
        """Returns the sizes of the lists that there have to be, as deep as these go.

        Raises InvalidTensor where they are too deep, or where there are not as many commas as elements.
        """
        # The first comma is in here, and what is before it.
        head = bytes(self.text[:PIECE_BYTES]).translate(None, _WHITE)
        depth = len(head) - len(head.lstrip(b"["))
        if depth > max(len(shape), 1):
            raise InvalidTensor(
                name, expected=f"lists nested no deeper than shape {list(shape)}", got=f"a list at level {depth}"
            )
        count, found = math.prod(shape), self.count()
        if count and found != count:
            raise _wrong_count(name, shape, found)
        return [*shape[: depth - 1], math.prod(shape[depth - 1 :])]

    def _fitting(self, name: str, shape: Sequence[int], sizes: Sequence[int]) -> Iterator[Piece]:
        """Yields all pieces of the list. Raises InvalidTensor at the first whose brackets are not of these sizes."""
        between = self.text[1:-1]
        if len(sizes) == 1:
            for text, at, is_last in split(between, 1, PIECE_BYTES):
                if b"[" in text or b"]" in text:
                    raise _wrong_nesting(name, shape, count_bytes(self.text[:at], b","))
                yield Piece(text, 1, 1, at, at == 1, is_last)
            return
        marks = ListMarks(sizes)
        opened, before = 1, b"["
        for text, at, is_last in split(between, 1, PIECE_BYTES):
            found = text.translate(None, _NO_MARKS)
            if not marks.follow(before + found):
                raise _wrong_nesting(name, shape, marks.elements)
            left_open = opened + found.count(b"[") - found.count(b"]")
            yield Piece(text, opened, left_open, at, at == 1, is_last)
            opened, before = left_open, b","
        if not (marks.follow(b"]") and marks.is_over()):
            raise _wrong_nesting(name, shape, marks.elements)

    # --- what is not plain numbers ---------------------------------------------------------------

    def _wrong_element(self, name: str, datatype: str, shape: Sequence[int]) -> InvalidTensor:
        """Returns what the way of small documents says first: lists, then types, then ranges, all of each.

        Raises InvalidRequest where the text is not JSON, and InvalidTensor for wrong lists.
        """
        self.check()
        sizes = self._sizes(name, shape)
        for _ in self._fitting(name, shape, sizes):
            pass
        parser = simdjson.Parser()
        out_of_range = None
        first = 0
        for piece in self._fitting(name, shape, sizes):
            numbers = _parsed(parser, piece, _CODES[datatype])
            # Numbers that were read at all are of the right type: of those out of range only the first are looked for.
            if numbers is None and out_of_range is not None and _CODES[datatype] == "u":
                numbers = _parsed(parser, piece, "i")
            if numbers is not None and (out_of_range or _fill(np.empty(numbers.size, DTYPES[datatype]), numbers)):
                first += numbers.size
                continue
            for part in piece.parts():
                values = _values(part)
                try:
                    array_of(name, datatype, values, first=first)
                except InvalidTensor as error:
                    if not ELEMENT_TYPES[datatype].issuperset(map(type, values)):
                        return error
                    out_of_range = out_of_range or error.with_traceback(None)  # without the values
                first += len(values)
        return out_of_range or _wrong_count(name, shape, first)

    def _check_parts(self, piece: Piece) -> None:
        """Raises InvalidRequest unless the piece is JSON to the parser of small documents."""
        for part in piece.parts():
            try:
                orjson.loads(_BEFORE + part.closed() + _BEHIND)
            except orjson.JSONDecodeError as error:
                reason = error.msg.partition(": line ")[0]
            else:
                continue
            raise self._not_json(reason, part.at)

    def _not_json(self, reason: str, at: int) -> InvalidRequest:
        return InvalidRequest(f"the body is not valid JSON: {reason}, at byte {self.begin + at} or soon behind it")


def _parsed(parser: Any, piece: Piece, code: str) -> Array | None:
    """Returns the numbers of a piece, or None where there is anything else."""
    try:
        numbers = np.frombuffer(parser.parse(piece.closed()).as_buffer(of_type=code), _BUFFERS[code])
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers[piece.own(numbers.size)]


def _is_json(parser: Any, text: bytes) -> bool:
    """Whether it is, as far as this parser knows: there are whole numbers that it does not read."""
    try:
        parser.parse(text)
    except (ValueError, RuntimeError):
        return False
    return True


def _read_slowly(name: str, datatype: str, piece: Piece) -> Array | None:
    """Returns a piece that the parser did not take, as one with whole numbers beyond 64 bits; None if it is wrong."""
    try:
        return np.concatenate([array_of(name, datatype, _values(part)) for part in piece.parts()])
    except (InvalidTensor, orjson.JSONDecodeError):
        return None  # what is found here need not be the first that is wrong


def _values(piece: Piece) -> list[object]:
    """Returns the elements of a piece. Raises orjson.JSONDecodeError."""
    values: list[object] = orjson.loads(piece.closed())
    while list in set(map(type, values)):  # as often as a shape has sizes
        values = list(chain.from_iterable(value if isinstance(value, list) else (value,) for value in values))
    return values[piece.own(len(values))]


def _fill(room: Array, numbers: Array) -> bool:
    """Writes numbers to where there is room for them; whether all of them could be, and are in range."""
    place = room[: numbers.size]
    if place.size != numbers.size:
        return False
    if place.dtype == np.float32:
        with np.errstate(over="ignore"):
            place[:] = numbers
        return bool(np.isfinite(place).all())
    place[:] = numbers
    return numbers.dtype == place.dtype or np.array_equal(place, numbers)


def _wrong_nesting(name: str, shape: Sequence[int], element: int) -> InvalidTensor:
    return InvalidTensor(
        name,
        expected=f"lists nested as shape {list(shape)} says, or one flat list",
        got=f"other lists from about element {element} on",
    )


def _wrong_count(name: str, shape: Sequence[int], found: int) -> InvalidTensor:
    return InvalidTensor(name, expected=f"{math.prod(shape)} elements for shape {list(shape)}", got=f"{found} elements")
