"""The text of a list in pieces that can be parsed one by one, each as a list of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from modelhost.api.codec.messages import Body
from modelhost.memory.allocator import MMAP_THRESHOLD_BYTES

#: Text that is parsed at once. The parser's buffers for it are some fifteen times as large. Copies of a piece come
#: from the heap: a larger block is mapped anew each time, whose pages the kernel clears, and takes from all cores.
PIECE_BYTES: Final = MMAP_THRESHOLD_BYTES * 7 // 8

#: Text that becomes Python values at once, where the parser of pieces gives up: they take up to 200 times as much.
_VALUES_BYTES: Final = 8 << 10


class Piece(NamedTuple):
    """Text between two commas, or an end of the list; how many lists are open before and behind it; where it begins."""

    text: bytes
    opened: int
    left_open: int
    at: int
    is_first: bool
    is_last: bool

    def closed(self) -> bytes:
        """Returns the piece as a list of its own, with a number in place of what is before it, and behind it.

        Without them a list that is empty, as its only value is missing, would look like any empty one.
        """
        before, behind = b"" if self.is_first else b"0,", b"" if self.is_last else b",0"
        return b"".join((b"[" * self.opened, before, self.text, behind, b"]" * self.left_open))

    def own(self, size: int) -> slice:
        """Returns which of the `size` elements of `closed` are those of the piece."""
        return slice(0 if self.is_first else 1, size if self.is_last else size - 1)

    def parts(self) -> Iterator[Piece]:
        """Yields the piece in pieces that may become Python values."""
        for part in pieces_of(self.text, self.opened, self.at, _VALUES_BYTES):
            yield part._replace(is_first=part.is_first and self.is_first, is_last=part.is_last and self.is_last)


def split(text: Body, at: int, size: int) -> Iterator[tuple[bytes, int, bool]]:
    """Yields the text in pieces of about `size` bytes, where each begins if the first does `at`, and if it is the last.

    Each ends before a comma, which belongs to none.
    """
    begin, last = 0, len(text)
    is_last = False
    while not is_last:
        piece = bytes(text[begin : begin + size])
        is_last = begin + size >= last
        if not is_last:
            comma = piece.rfind(b",")
            if comma < 0:
                piece = bytes(text[begin : begin + size + PIECE_BYTES])
                comma = piece.find(b",")
            is_last = comma < 0
            piece = bytes(text[begin:]) if is_last else piece[:comma]
        yield piece, at + begin, is_last
        begin += len(piece) + 1


def pieces_of(text: Body, opened: int, at: int, size: int) -> Iterator[Piece]:
    """Yields the text in pieces, whatever its brackets are like."""
    for piece, begin, is_last in split(text, at, size):
        left_open = opened + piece.count(b"[") - piece.count(b"]")
        yield Piece(piece, opened, left_open, begin, begin == at, is_last)
        opened = left_open


def count_bytes(text: Body, char: bytes) -> int:
    """Returns how often one character is in the text."""
    codes = np.frombuffer(text, np.uint8)
    return sum(
        int(np.count_nonzero(codes[begin : begin + PIECE_BYTES] == char[0]))
        for begin in range(0, len(codes), PIECE_BYTES)
    )
