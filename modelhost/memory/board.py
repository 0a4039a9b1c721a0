"""What the processes of one host tell each other: a page of shared memory with a seat for each, and a lock.

A host that runs as several processes has one limit. Usage is the group's, which the kernel counts; what is still to
come (loads, runs, bodies) only the one knows who let it in. So each writes it on the board, and reads the others'
before it lets anything in, under a lock that the kernel takes back from a process that dies.

A figure has one writer, its seat's process; when that has died the supervisor clears the seat. Everything here is a
few microseconds long and never waits for more than `_PATIENCE_S`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, Final

from modelhost.memory.shelf import Shelf, Shelves

#: Who holds the lock does so for a decision, a fraction of a millisecond; one that was stopped in the middle of it (a
#: debugger, SIGSTOP) must not stop the others.
_PATIENCE_S: Final = 0.05
_TRY_AGAIN_S: Final = 0.0002

_CELL_BYTES: Final = 8
_HEAD_CELLS: Final = 8
_SEAT_CELLS: Final = 16
_BASELINE_CELL: Final = 0
_SERVED_CELL: Final = 1


class Figure(IntEnum):
    """What a seat has written on the board; bytes where nothing else is said."""

    PID = 0
    """0: nobody sits there."""
    IS_UP = 1
    """1 once its host is open."""
    OWN = 2
    """What it holds itself; for where no control group counts all processes together."""
    LOADING = 3
    RESIDENT = 4
    LEAVING = 5
    EVICTABLE = 6
    """What its models hold that would leave where memory has to come back, those in use included."""
    RESTING_SINCE = 7
    """Since when the idle model rests that has rested longest, in nanoseconds of the monotonic clock; 0: none does."""
    WANTED = 8
    """What it waits for, and cannot free itself."""
    IS_PREPARING = 9
    """1 while its child opens a model for the first time."""
    RUNS = 10
    """What it may use of the room for activations."""
    BODIES = 11
    """What it may use of the bytes for bodies."""
    CONNECTIONS = 12
    """How many are open."""
    WAITS = 13
    """1 while somebody waits there for what others have of a room that all share."""


class Board:
    """The page and its lock; made by the supervisor before it forks, and inherited. POSIX only."""

    def __init__(self, seats: int, addresses: Sequence[Any] = ()) -> None:
        self.seats, self.addresses = seats, tuple(addresses)
        """Where each seat's process is asked by the others."""
        self.secret = secrets.token_hex(32).encode()
        """What only the host's own processes know."""
        self._pages = mmap.mmap(-1, (_HEAD_CELLS + seats * _SEAT_CELLS) * _CELL_BYTES)
        self._cells = memoryview(self._pages).cast("q")
        self.shelves = Shelves(seats)
        """Which models each process holds."""
        self._lock = _file_in_memory()
        self._pipes = [os.pipe() for _ in range(seats)]
        for ends in self._pipes:
            for end in ends:
                os.set_blocking(end, False)

    @property
    def baseline_bytes(self) -> int:
        """Usage of all processes with no model loaded; 0 before it was measured."""
        return self._cells[_BASELINE_CELL]

    @baseline_bytes.setter
    def baseline_bytes(self, size_bytes: int) -> None:
        self._cells[_BASELINE_CELL] = size_bytes

    @property
    def has_served(self) -> bool:
        """Whether a process has been ready since the host began: what ends one later need not end all."""
        return bool(self._cells[_SERVED_CELL])

    @has_served.setter
    def has_served(self, value: bool) -> None:
        self._cells[_SERVED_CELL] = value

    @property
    def is_full(self) -> bool:
        """Whether all seats' hosts are open."""
        return all(self.read(seat, Figure.IS_UP) for seat in range(self.seats))

    def read(self, seat: int, figure: Figure) -> int:
        """Returns one figure of one seat."""
        return self._cells[_HEAD_CELLS + seat * _SEAT_CELLS + figure]

    def write(self, seat: int, figure: Figure, value: int) -> None:
        """Writes one; only for who sits there, and for the supervisor where nobody does."""
        self._cells[_HEAD_CELLS + seat * _SEAT_CELLS + figure] = value

    def clear(self, seat: int) -> None:
        """Takes back all that a process had written that has ended, and tells the others."""
        for figure in Figure:
            self.write(seat, figure, 0)
        self.shelves.clear(seat)
        for other in range(self.seats):
            if other != seat:
                self.poke(other)

    def poke(self, seat: int) -> None:
        """Has who sits there look at the board soon."""
        with contextlib.suppress(BlockingIOError):  # it has been told, and has not looked yet
            os.write(self._pipes[seat][1], b"!")

    def pokes(self, seat: int) -> int:
        """Returns the descriptor that is readable when the seat was poked."""
        return self._pipes[seat][0]

    def hear(self, seat: int) -> None:
        """Takes pokes that have come."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipes[seat][0], 4096)

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Holds the lock for the scope; False where somebody else keeps it for too long."""
        is_mine = self._try_lock()
        try:
            yield is_mine
        finally:
            if is_mine:
                import fcntl

                fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        import fcntl  # POSIX only

        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                if time.monotonic() >= until:
                    return False
                time.sleep(_TRY_AGAIN_S)
            else:
                return True


def _file_in_memory() -> int:
    """Returns the descriptor of a file that has no name."""
    if hasattr(os, "memfd_create"):  # needs no place that can be written to
        return os.memfd_create("modelhost-board")
    return os.dup(tempfile.TemporaryFile().fileno())


class Siblings:
    """The other processes of a host as one of them sees them: none, for a host that is one process.

    Event-loop thread. `Seat` is the other kind.
    """

    is_alone = True
    number = 0
    """Which of the host's processes this is, and …"""
    seats = 1
    """… how many there are."""

    @contextlib.contextmanager
    def decision(self) -> Iterator[bool]:
        """The scope of a decision that others must not take beside it; False: somebody else takes one, ask again."""
        yield True

    def others(self, *figures: Figure) -> int:
        """Returns the sum of figures over the others."""
        return 0

    def publish(self, figure: Figure, value: int) -> None:
        """Lets the others know a figure."""

    def poke(self) -> None:
        """Has the others look soon."""

    def wanted_bytes(self) -> int:
        """Returns how much one of the others waits for that is to leave here first; 0: nothing is.

        Who waits for something lets go of nothing for one that came to the board after it, so that of two that wait
        for each other one gets what it wants. Among those who do not wait, who has what has rested longest is first.
        """
        return 0

    def show(self, model: str) -> None:
        """Lets the others know that a model is held here, or will be in a moment."""

    def hide(self, model: str) -> None:
        """Lets them know that it is not, or will not be in a moment."""

    def holder(self, model: str) -> int | None:
        """Returns the number of another one that holds a model, or will in a moment; None: nobody does."""
        return None

    def is_my_turn(self) -> bool:
        """Whether of all idle models the one that has rested longest is here: who has it lets go first."""
        return True


class Seat(Siblings):
    """One process's place at the board."""

    is_alone = False

    def __init__(self, board: Board, number: int = 0) -> None:
        self.board, self.number, self.seats = board, number, board.seats
        self._shelf = Shelf(board.shelves, number)
        self._is_deciding = False

    def sit(self, number: int | None = None) -> None:
        """Takes the seat, for the process that calls; with a number that one, whichever it was made for."""
        if number is not None:
            self.number = number
            self._shelf = Shelf(self.board.shelves, number)
        for figure in Figure:
            self.publish(figure, 0)
        self.board.shelves.clear(self.number)
        self.publish(Figure.PID, os.getpid())

    @property
    def seated(self) -> Sequence[int]:
        """The others' numbers, those that sit."""
        board = self.board
        return [seat for seat in range(board.seats) if seat != self.number and board.read(seat, Figure.PID)]

    @contextlib.contextmanager
    def decision(self) -> Iterator[bool]:
        """See Siblings; a decision within one is part of it."""
        if self._is_deciding:
            yield True
            return
        with self.board.locked() as is_mine:
            self._is_deciding = is_mine
            try:
                yield is_mine
            finally:
                self._is_deciding = False

    def others(self, *figures: Figure) -> int:
        """See Siblings."""
        read = self.board.read
        return sum(read(seat, figure) for seat in self.seated for figure in figures)

    def publish(self, figure: Figure, value: int) -> None:
        """See Siblings."""
        self.board.write(self.number, figure, value)

    def poke(self) -> None:
        """See Siblings."""
        for seat in self.seated:
            self.board.poke(seat)

    def wanted_bytes(self) -> int:
        """See Siblings."""
        read = self.board.read
        waiting = [seat for seat in range(self.board.seats) if read(seat, Figure.WANTED)]
        first = min(waiting, default=self.number)
        if first == self.number or not self._rests_longest([seat for seat in self.seated if seat != first]):
            return 0
        return read(first, Figure.WANTED)

    def show(self, model: str) -> None:
        """See Siblings."""
        self._shelf.show(model)

    def hide(self, model: str) -> None:
        """See Siblings."""
        self._shelf.hide(model)

    def holder(self, model: str) -> int | None:
        """See Siblings."""
        return next((seat for seat in self.seated if self.board.shelves.has(seat, model)), None)

    def is_my_turn(self) -> bool:
        """See Siblings; also where nothing rests anywhere, and of two that rested equally long, the first one's."""
        return self._rests_longest(self.seated)

    def _rests_longest(self, others: Sequence[int]) -> bool:
        mine = self.board.read(self.number, Figure.RESTING_SINCE)
        rested = [(since, seat) for seat in others if (since := self.board.read(seat, Figure.RESTING_SINCE))]
        return not rested or (mine != 0 and (mine, self.number) < min(rested))


#: One part in so many of a room is its processes' own, in equal parts; one run, or one body, may have all the rest.
_OWN_PARTS: Final = 8


def most_of(room_bytes: int, seats: int) -> int:
    """Returns the most that one of so many processes may use of a room that they share."""
    return room_bytes - (seats - 1) * (room_bytes // (_OWN_PARTS * seats))


class Portion:
    """What one process may use of a room that all of them share: a small part is its own, the rest is whose turn it is.

    So the room is divided, and what one does not use another may. `fits` decides and takes in one step; what was
    taken is given back by `use`. Event-loop thread.
    """

    def __init__(self, limit_bytes: int, siblings: Siblings | None = None, figure: Figure = Figure.RUNS) -> None:
        """`limit_bytes` is the most that one may use, see `own_part`."""
        self.limit_bytes = limit_bytes
        self._siblings, self._figure = siblings or Siblings(), figure
        self.own_bytes = limit_bytes
        """What it may use without asking."""
        self._taken_bytes = 0  # as the others see it

    @classmethod
    def of(cls, room_bytes: int, siblings: Siblings, figure: Figure) -> Portion:
        """Returns one process's portion of a room."""
        portion = cls(room_bytes, siblings, figure)
        portion.resize(room_bytes)
        return portion

    def resize(self, room_bytes: int) -> None:
        """Changes the room; what is used stays."""
        seats, former_bytes = self._siblings.seats, self.own_bytes
        self.own_bytes = room_bytes if self._siblings.is_alone else room_bytes // (_OWN_PARTS * seats)
        self.limit_bytes = most_of(room_bytes, seats)
        if not self._siblings.is_alone:
            self._take(self._taken_bytes if self._taken_bytes > former_bytes else 0)

    @property
    def is_contended(self) -> bool:
        """Whether others use more than their own part, which they will give back."""
        return not self._siblings.is_alone and self._siblings.others(self._figure) > self.own_bytes * self._others

    def fits(self, used_bytes: int) -> bool:
        """Takes as much as makes `used_bytes` in all, where that is free; never more than the limit."""
        if used_bytes <= self._taken_bytes or used_bytes <= self.own_bytes:
            return used_bytes <= self.limit_bytes
        if self._siblings.is_alone:
            return used_bytes <= self.limit_bytes
        with self._siblings.decision() as is_mine:
            others_bytes = self._siblings.others(self._figure) - self.own_bytes * self._others
            if not is_mine or used_bytes + max(0, others_bytes) > self.limit_bytes:
                self._siblings.publish(Figure.WAITS, 1)
                return False
            self._take(used_bytes)
            return True

    def use(self, used_bytes: int) -> None:
        """Says what is used now; what is over that is the others' again."""
        if self._siblings.is_alone or max(used_bytes, self.own_bytes) >= self._taken_bytes > 0:
            return
        self._take(used_bytes)
        if self._siblings.others(Figure.WAITS):
            self._siblings.poke()

    @property
    def _others(self) -> int:
        return len(self._siblings.seated) if isinstance(self._siblings, Seat) else 0

    def _take(self, used_bytes: int) -> None:
        self._taken_bytes = max(used_bytes, self.own_bytes)
        self._siblings.publish(self._figure, self._taken_bytes)
