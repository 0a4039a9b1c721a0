"""Large JSON requests: numbers go from text to arrays without a Python object for each, and in little memory.

The lists of numbers are cut out of the text, whose small rest is parsed as any other request. A list is then
read in pieces that fit the processor's cache: simdjson parses one as a list of its own, and copies its numbers
out as one buffer. (Parsed whole, 8 MB of text touch 37 MB of fresh memory, which takes longer than parsing.)

What this accepts is what the way of small documents (`json_tensors.py`) accepts, except for whole numbers
beyond 64 bits; what it refuses it names as that does.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson
import simdjson

from modelhost.api.codec.fields import parse_document
from modelhost.api.codec.json_tensors import array_of, decode_json
from modelhost.api.codec.messages import Body
from modelhost.errors import InvalidRequest, InvalidTensor
from modelhost.tensors import DTYPES, Array, TensorSpec

#: Requests from this size on are worth it.
LARGE_TEXT_BYTES: Final = 16 << 10

#: Text that is parsed at once. The parser's buffers for it are some fifteen times as large.
PIECE_BYTES: Final = 64 << 10

#: White space behind a list that is looked through.
_GAP_BYTES: Final = 256

#: Innermost lists of so many numbers are read one by one; a look at each bracket takes less for shorter ones.
_LONG_LIST: Final = 128

#: Lists up to this are named element by element where their nesting is wrong: that takes them as Python values.
_EXPLAINED_BYTES: Final = 256 << 10

#: Where a list may begin that is cut out. No text in a document can hold this: its quotes would be escaped.
_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')

#: What is between two innermost lists of numbers.
_GAP: Final = re.compile(rb"[\[\], \t\r\n]*")

#: Stands in the rest for a list that was cut out. Nobody outside can write it.
_MARK: Final = secrets.token_hex(8)

_CODES: Final = {
    **dict.fromkeys(("FP32", "FP64"), "d"),
    **dict.fromkeys(("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32"), "i"),
    "UINT64": "u",
}
_BUFFERS: Final = {"d": np.float64, "i": np.int64, "u": np.uint64}

_WHITE: Final = b" \t\r\n"
_BLANK: Final = bytes.maketrans(b"[]", b"  ")
#: All but brackets and commas become zeros.
_AS_ZEROS: Final = bytes(code if code in b"[]," else 48 for code in range(256))

#: The opening brackets of a list are in here, or it is nested deeper than anything.
_HEAD_BYTES: Final = 4096


class Numbers:
    """A list that was cut out of a request: its text, brackets included."""

    __slots__ = ("text",)

    def __init__(self, text: memoryview) -> None:
        self.text = text

    def decode(self, name: str, datatype: str, shape: Sequence[int]) -> Array:
        """Returns the array of `shape` that is written here, nested or flat.

        Raises InvalidTensor, and InvalidRequest where it is not JSON.
        """
        if datatype not in _CODES:
            return decode_json(name, datatype, shape, [])  # which says what JSON has no form of
        count = math.prod(shape)
        is_nested = any(b"[" in bytes(piece) for piece in _pieces(self.text[1:]))
        depth = self._depth() if is_nested else 1
        if count == 0 or depth > len(shape):
            raise self._wrong_structure(name, datatype, shape)
        array = np.empty(count, DTYPES[datatype])
        read = 0
        if not is_nested:
            found = self._read(name, datatype, is_nested=False)
        elif math.prod(shape[depth - 1 :]) >= _LONG_LIST:
            found = self._read_lists(name, datatype, shape, depth)
        elif self._is_nested_as(shape, depth):
            found = self._read(name, datatype, is_nested=True)
        else:
            raise self._wrong_structure(name, datatype, shape)
        for numbers in found:
            end = read + numbers.size
            if end > count or not numbers.size:
                raise self._wrong_structure(name, datatype, shape)
            _fill(name, datatype, array, read, numbers)
            read = end
        if read != count:
            raise self._wrong_structure(name, datatype, shape)
        return array.reshape(shape)

    def _depth(self) -> int:
        """Returns how deep the first number lies."""
        head = bytes(self.text[:_HEAD_BYTES]).translate(None, _WHITE)
        return len(head) - len(head.lstrip(b"["))

    def _read_lists(self, name: str, datatype: str, shape: Sequence[int], depth: int) -> Iterator[Array]:
        """Yields the numbers list by list, the innermost ones; what is between them has to be as the shape says."""
        parser = simdjson.Parser()
        leaves = math.prod(shape[: depth - 1])
        # Lists that end, and begin, between one of the innermost and the next: more where outer ones are over.
        spans = [math.prod(shape[level : depth - 1]) for level in range(depth - 1)]
        position, wanted = 0, b"[" * (depth - 1)
        for index in range(1, leaves + 1):
            begin, end = self._leaf(position)
            if bytes(self.text[position:begin]).translate(None, _WHITE) != wanted:
                raise self._wrong_structure(name, datatype, shape)
            if end - begin > PIECE_BYTES:
                yield from Numbers(self.text[begin:end])._read(name, datatype, is_nested=False)
            else:
                first = (index - 1) * math.prod(shape[depth - 1 :])
                yield _numbers(parser, bytes(self.text[begin:end]), name, datatype, first)
            over = sum(1 for span in spans[1:] if index % span == 0)
            wanted = b"]" * over + b"," + b"[" * over
            position = end
        if bytes(self.text[position:]).translate(None, _WHITE) != b"]" * (depth - 1):
            raise self._wrong_structure(name, datatype, shape)

    def _leaf(self, position: int) -> tuple[int, int]:
        """Returns where the next innermost list is; nothing behind `position` where there is none."""
        gap = _GAP.match(self.text, position)
        assert gap is not None
        begin = bytes(gap[0]).rfind(b"[")
        end = -1 if begin < 0 else _find(self.text, b"]", gap.end())
        return (position, position) if end < 0 else (position + begin, end + 1)

    def _is_nested_as(self, shape: Sequence[int], depth: int) -> bool:
        """Whether brackets and commas are those of lists of this shape, as deep as they go, numbers inside."""
        structure = b"[" + b"," * (math.prod(shape[depth - 1 :]) - 1) + b"]"
        for size in reversed(shape[: depth - 1]):
            structure = b"[" + (structure + b",") * (size - 1) + structure + b"]"
        found, last = 0, b""
        for piece in _pieces(self.text):
            marks = bytes(piece).translate(_AS_ZEROS, _WHITE)
            around = last + marks
            here = marks.translate(None, b"0")
            if b"]0" in around or b"0[" in around or not structure.startswith(here, found):
                return False
            found, last = found + len(here), marks[-1:]
        return found == len(structure)

    def _read(self, name: str, datatype: str, is_nested: bool) -> Iterator[Array]:
        """Yields the numbers in order, some thousands at a time."""
        parser = simdjson.Parser()
        seen = 0
        for text in self._between_brackets():
            text = b"[%b]" % (text.translate(_BLANK) if is_nested else text)
            numbers = _numbers(parser, text, name, datatype, seen)
            seen += numbers.size
            yield numbers

    def _between_brackets(self) -> Iterator[bytes]:
        """Yields pieces of what is between the outer brackets, without the commas between them."""
        begin, last = 1, len(self.text) - 1
        while begin <= last:
            piece = bytes(self.text[begin : min(begin + PIECE_BYTES, last)])
            end = len(piece)
            if begin + end < last:
                comma = piece.rfind(b",")
                if comma < 0:  # one number of 64 KB: all of the rest at once, which says what is wrong
                    piece, end = bytes(self.text[begin:last]), last - begin
                else:
                    end = comma
            yield piece[:end]
            begin += end + 1

    def _wrong_structure(self, name: str, datatype: str, shape: Sequence[int]) -> InvalidTensor | InvalidRequest:
        """Says what is wrong with the lists, as the way of small documents does where that is not too dear."""
        if len(self.text) <= _EXPLAINED_BYTES:
            try:
                decode_json(name, datatype, shape, parse_document(b'{"data":%b}' % bytes(self.text))["data"])
            except (InvalidTensor, InvalidRequest) as error:
                return error
        expected = f"{math.prod(shape)} elements for shape {list(shape)}, in one list or nested as it says"
        commas, lists = (count_bytes(self.text, char) for char in (b",", b"["))
        got = f"{commas + 1} elements in {lists} lists" if lists > 1 else f"{commas + 1} elements"
        return InvalidTensor(name, expected=expected, got=got)

    def cost_bytes(self, width: int) -> int:
        """Returns what `decode` holds at its peak, beside the parser's buffers, for elements of `width` bytes."""
        is_nested = any(b"[" in bytes(piece) for piece in _pieces(self.text[1:]))
        # The brackets and commas of lists of one number are four bytes for each, and are put together from halves.
        return (1 + count_bytes(self.text, b",")) * (width + (8 if is_nested else 0))


def parses_large(text_bytes: int, inputs: Mapping[str, TensorSpec]) -> bool:
    """Whether a request for a model is read here: where it is large, and its data are numbers."""
    return text_bytes >= LARGE_TEXT_BYTES and all(spec.datatype not in ("BOOL", "BYTES") for spec in inputs.values())


def cut(text: Body) -> tuple[Body, list[Numbers]]:
    """Returns the text with a mark in place of each list of numbers, and the lists."""
    view = memoryview(text)
    rest: list[bytes | memoryview] = []
    lists: list[Numbers] = []
    copied = 0
    for begin, end in _lists(text):
        rest += (view[copied:begin], b'"%b:%d"' % (_MARK.encode(), len(lists)))
        lists.append(Numbers(view[begin:end]))
        copied = end
    if not lists:
        return text, lists
    rest.append(view[copied:])
    return b"".join(rest), lists


def parse_large(text: Body) -> dict[str, object]:
    """Returns the document of a request, with Numbers as the `data` of inputs. Raises what parse_document raises."""
    rest, lists = cut(text)
    document = parse_document(rest)
    marks: dict[object, Numbers] = {f"{_MARK}:{index}": numbers for index, numbers in enumerate(lists)}
    inputs = document.get("inputs")
    for entry in inputs if isinstance(inputs, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("data"), str):
            entry["data"] = marks.get(entry["data"], entry["data"])
    return document


def count_bytes(text: Body, char: bytes) -> int:
    """Returns how often one character is in the text."""
    codes = np.frombuffer(text, np.uint8)
    return sum(
        int(np.count_nonzero(codes[begin : begin + PIECE_BYTES] == char[0]))
        for begin in range(0, len(codes), PIECE_BYTES)
    )


def _lists(text: Body) -> Iterator[tuple[int, int]]:
    """Yields where lists begin and end that follow the name `data` and have neither quote nor brace in them."""
    position = 0
    while (match := _DATA.search(text, position)) is not None:
        position = begin = match.end()
        stop = _end_of_numbers(text, begin)
        # Between the list's end and the quote or brace that ended the search there is a comma at the most.
        closed = bytes(text[max(begin, stop - _GAP_BYTES) : stop]).rstrip(b", \t\r\n")
        end = max(begin, stop - _GAP_BYTES) + len(closed)
        if closed.endswith(b"]") and end - begin > 2:
            yield begin, end
            position = end


def _end_of_numbers(text: Body, begin: int) -> int:
    """Returns where the first quote or brace is, or the end of the text."""
    for at in range(begin, len(text), PIECE_BYTES):
        piece = bytes(text[at : at + PIECE_BYTES])
        found = [place for place in (piece.find(b'"'), piece.find(b"}"), piece.find(b"{")) if place >= 0]
        if found:
            return at + min(found)
    return len(text)


def _find(text: memoryview, char: bytes, begin: int) -> int:
    """Returns where the character is next, -1 where it is not any more."""
    for at in range(begin, len(text), _HEAD_BYTES):
        found = bytes(text[at : at + _HEAD_BYTES]).find(char)
        if found >= 0:
            return at + found
    return -1


def _pieces(text: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(text), PIECE_BYTES):
        yield text[begin : begin + PIECE_BYTES]


def _numbers(parser: Any, text: bytes, name: str, datatype: str, first: int) -> Array:
    """Returns the numbers of one flat list, the first of which is element `first`; see Numbers.decode for errors."""
    code = _CODES[datatype]
    try:
        return np.frombuffer(parser.parse(text).as_buffer(of_type=code), _BUFFERS[code])
    except (TypeError, ValueError, RuntimeError):
        pass  # the error has the text
    return _read_slowly(name, datatype, text, first)


def _read_slowly(name: str, datatype: str, text: bytes, seen: int) -> Array:
    """Returns a piece that is not plain numbers of its datatype, or says which element is wrong."""
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    else:
        return array_of(name, datatype, values, first=seen)
    raise InvalidRequest(f"the body is not valid JSON: {reason}, counted from about element {seen} of input '{name}'")


def _fill(name: str, datatype: str, array: Array, begin: int, numbers: Array) -> None:
    """Writes numbers into their place. Raises InvalidTensor where one is out of the datatype's range."""
    place = array[begin : begin + numbers.size]
    if datatype == "FP32":
        with np.errstate(over="ignore"):
            place[:] = numbers
        if np.isfinite(place).all():
            return
    else:
        place[:] = numbers
        if numbers.dtype == array.dtype or np.array_equal(place, numbers):
            return
    array_of(name, datatype, numbers.tolist(), first=begin)  # says which one it is
