"""Large JSON requests: lists of numbers are cut out of the text, and its small rest is parsed as any request is.

Where anything about a request is uncommon it is not cut, and is parsed whole: nothing depends on which of the
two it is but the time and the memory that it takes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson

from modelhost.api.codec.list_pieces import PIECE_BYTES
from modelhost.api.codec.messages import Body
from modelhost.api.codec.number_list import Numbers
from modelhost.tensors import TensorSpec

#: Requests from this size on are worth it.
LARGE_TEXT_BYTES: Final = 16 << 10

#: What is left of a request that is cut is no longer than this: names, shapes and parameters.
REST_BYTES: Final = 16 << 10

#: White space behind a list that is looked through.
_GAP_BYTES: Final = 256

#: Where a list may begin that is cut out. In JSON this is in no string, though a longer name may end in it.
_DATA: Final = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')

#: Stands in the rest for a list that was cut out. Nobody outside can write it: no answer ever has it.
_MARK: Final = secrets.token_hex(8)


class CutRequest(NamedTuple):
    """A request whose lists of numbers were cut out: all of them are the `data` of inputs in `document`."""

    document: dict[str, object]
    rest: bytes
    lists: list[Numbers]

    def check(self) -> None:
        """Raises InvalidRequest unless all of the text is JSON: the rest is."""
        for numbers in self.lists:
            numbers.check()


def parses_large(text_bytes: int, inputs: Mapping[str, TensorSpec]) -> bool:
    """Whether a request for a model may be cut: where it is large, and its data are numbers."""
    return text_bytes >= LARGE_TEXT_BYTES and all(spec.datatype not in ("BOOL", "BYTES") for spec in inputs.values())


def cut(text: Body) -> CutRequest | None:
    """Returns the request in `text`, or None where it has to be parsed whole. Takes little memory; raises nothing.

    What is not JSON is None, or else `CutRequest.check` finds it.
    """
    parts = _cut_out(text)
    if parts is None:
        return None
    rest, lists = parts
    try:
        document = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or not _put_back(document, lists):
        return None  # a list is somewhere else, or another `data` of the same input came behind it
    return CutRequest(document, rest, lists)


def _cut_out(text: Body) -> tuple[bytes, list[Numbers]] | None:
    """Returns the rest, with a mark in place of each list, and the lists; None where there is much rest, or no list."""
    view = memoryview(text)
    rest: list[bytes | memoryview] = []
    lists: list[Numbers] = []
    position = copied = 0
    room = REST_BYTES
    while (match := _DATA.search(text, position, copied + room)) is not None:
        position = begin = match.end()
        end = _end_of_list(view, begin)
        if end is not None:
            rest += (view[copied:begin], _mark(len(lists)))
            lists.append(Numbers(view[begin:end], begin))
            room -= begin - copied
            position = copied = end
    if not lists or len(text) - copied > room:
        return None
    rest.append(view[copied:])
    return b"".join(rest), lists


def _end_of_list(text: memoryview, begin: int) -> int | None:
    """Returns where the list ends that begins there, if it has neither quotes nor braces in it, but enough commas.

    Where no list ends right before a quote or a brace, or a number or white space takes half a piece, it is None.
    """
    step = PIECE_BYTES // 2
    for at in range(begin, len(text), step):
        piece = bytes(text[at : at + step])
        stops = [place for place in (piece.find(b'"'), piece.find(b"}"), piece.find(b"{")) if place >= 0]
        if stops:
            stop = at + min(stops)
            break
        if b"," not in piece:
            return None
    else:
        return None
    # There is a comma at the most between the list and the quote or brace.
    start = max(begin, stop - _GAP_BYTES)
    closed = bytes(text[start:stop]).rstrip(b", \t\r\n")
    end = start + len(closed)
    return end if closed.endswith(b"]") and end - begin >= 2 else None


def _put_back(document: dict[str, object], lists: list[Numbers]) -> bool:
    """Puts the lists where their marks are, as `data` of inputs; whether all of them were there."""
    marks = {orjson.loads(_mark(index)): numbers for index, numbers in enumerate(lists)}
    inputs = document.get("inputs")
    for entry in inputs if isinstance(inputs, list) else ():
        data = entry.get("data") if isinstance(entry, dict) else None
        if isinstance(data, str) and data in marks:
            entry["data"] = marks.pop(data)
    return not marks


def _mark(index: int) -> bytes:
    return b'"%b:%d"' % (_MARK.encode(), index)
