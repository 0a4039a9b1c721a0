"""The brackets and commas of nested lists: those that a shape asks for, against those that a text has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

#: What is compared at once is about this long, however large a shape a client declares.
_BLOCK_BYTES: Final = 16 << 10


class ListMarks:
    """Follows the brackets and commas of lists of the given sizes, the outermost size first. One thread.

    A list of one element and one of none look the same here: their numbers tell them apart.
    """

    __slots__ = ("_coming", "_next", "elements")

    def __init__(self, sizes: Sequence[int]) -> None:
        self._coming = _marks(sizes)
        self._next = b""
        #: Commas that agreed so far, which is the place of the element that comes next.
        self.elements = 0

    def follow(self, found: bytes) -> bool:
        """Whether `found` is what comes next; if not, nothing more can be asked but `elements`."""
        while len(self._next) < len(found) and (more := next(self._coming, None)) is not None:
            self._next += more
        agrees = self._next.startswith(found)
        if not agrees:
            pairs = zip(found, self._next, strict=False)
            same = next((at for at, (got, want) in enumerate(pairs) if got != want), len(self._next))
            found = found[:same]
        self.elements += found.count(b",")
        self._next = self._next[len(found) :]
        return agrees

    def is_over(self) -> bool:
        """Whether all of them were found."""
        return not self._next and next(self._coming, None) is None


def _marks(sizes: Sequence[int]) -> Iterator[bytes]:
    """Yields the marks of lists of these sizes, some thousands at a time."""
    level, entry = len(sizes), b""
    while level and (len(entry) + 1) * sizes[level - 1] <= _BLOCK_BYTES:
        level -= 1
        entry = b"[%b]" % b",".join([entry] * sizes[level])
    return _lists_of(sizes[:level], entry)


def _lists_of(sizes: Sequence[int], entry: bytes) -> Iterator[bytes]:
    if not sizes:
        yield entry
        return
    yield b"["
    if len(sizes) == 1:
        at_once = max(1, _BLOCK_BYTES // (len(entry) + 1))
        blocks, left = divmod(sizes[0] - 1, at_once)
        block = (entry + b",") * at_once
        for _ in range(blocks):
            yield block
        yield block[: left * (len(entry) + 1)] + entry
    else:
        for index in range(sizes[0]):
            if index:
                yield b","
            yield from _lists_of(sizes[1:], entry)
    yield b"]"
