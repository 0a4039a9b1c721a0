"""Which models each process of a host holds, for the others to see: what does not fit twice is asked for where it is.

Shared memory beside the board, of which only pages take memory that somebody has written to: a place is eight bytes,
in which stands a model's name as a number. Forks of one process make the same number of the same name.
"""

from __future__ import annotations

import mmap
import sys
from typing import Final

#: Models of one process that others can see; of more, those that came later are its own secret.
PLACES: Final = 1024

_PLACE_BYTES: Final = 8


class Shelves:
    """Those of all processes; made before the fork. Each writes to its own, and reads the others'."""

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._pages = mmap.mmap(-1, seats * PLACES * _PLACE_BYTES)

    def put(self, seat: int, place: int, name: str) -> None:
        """Writes a model to a place; "" has nothing stand there."""
        start = (seat * PLACES + place) * _PLACE_BYTES
        self._pages[start : start + _PLACE_BYTES] = _number(name)

    def clear(self, seat: int) -> None:
        """Takes all away that a process had."""
        start, end = self._bounds(seat)
        if any(self._pages[start:end]):  # else the pages may not be there yet, and need not be
            self._pages[start:end] = bytes(end - start)

    def has(self, seat: int, name: str) -> bool:
        """Whether a process holds a model; some microseconds."""
        number = _number(name)
        start, end = self._bounds(seat)
        found = self._pages.find(number, start, end)
        while found >= 0 and found % _PLACE_BYTES:
            found = self._pages.find(number, found + 1, end)
        return found >= 0

    def _bounds(self, seat: int) -> tuple[int, int]:
        size = PLACES * _PLACE_BYTES
        return seat * size, (seat + 1) * size


class Shelf:
    """One process's own."""

    def __init__(self, shelves: Shelves, seat: int) -> None:
        self._shelves, self._seat = shelves, seat
        self._places: dict[str, int] = {}
        self._free = list(range(PLACES - 1, -1, -1))

    def show(self, name: str) -> None:
        """Has the others see a model; harmless where they do."""
        if name not in self._places and self._free:
            place = self._places[name] = self._free.pop()
            self._shelves.put(self._seat, place, name)

    def hide(self, name: str) -> None:
        """Has them see it no more; harmless where they do not."""
        place = self._places.pop(name, None)
        if place is not None:
            self._shelves.put(self._seat, place, "")
            self._free.append(place)


def _number(name: str) -> bytes:
    """Returns what stands for a name, "" for nothing. Two names that share a number are asked for where one of them is:
    that process then loads the other, or says that it does not fit."""
    return (hash(name) if name else 0).to_bytes(_PLACE_BYTES, sys.byteorder, signed=True)
