"""Arithmetic on reserved memory: bytes that are loading, resident and leaving. Knows no models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Column(Enum):
    """Where a reservation stands."""

    LOADING = "loading"
    RESIDENT = "resident"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Sums in bytes. Memory that is leaving is still memory used."""

    loading_bytes: int = 0
    resident_bytes: int = 0
    leaving_bytes: int = 0


class Reservation:
    """A claim on memory from before a load until after its unload. Ends exactly once.

    Use it as a context manager where claim and work share a scope; `settle` keeps it beyond the
    scope, at the size that was measured.
    """

    __slots__ = ("_ledger", "column", "owner", "size_bytes")

    def __init__(self, ledger: Ledger, owner: str, size_bytes: int) -> None:
        self._ledger: Ledger | None = ledger
        self.owner = owner
        self.size_bytes = size_bytes
        self.column = Column.LOADING

    @property
    def is_open(self) -> bool:
        """Whether the claim still counts."""
        return self._ledger is not None

    def settle(self, measured_bytes: int) -> None:
        """Turns the claim of a load into what the load really took (bytes, not below zero)."""
        self._move(Column.RESIDENT, max(0, measured_bytes))

    def leave(self) -> None:
        """Marks the memory as on its way out; it counts until `end`."""
        self._move(Column.LEAVING, self.size_bytes)

    def end(self) -> None:
        """Ends the claim; harmless on one that has ended."""
        if self._ledger is not None:
            self._ledger._close(self)
            self._ledger = None

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.column is Column.LOADING:
            self.end()

    def _move(self, column: Column, size_bytes: int) -> None:
        if self._ledger is None:
            raise RuntimeError(f"the reservation of '{self.owner}' has ended")
        self._ledger._move(self, column, size_bytes)


class Ledger:
    """Keeps the totals of all open reservations. One thread, the owner's."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called whenever the totals have changed."""
        self._open: set[Reservation] = set()
        self._on_change = on_change
        self._sums = dict.fromkeys(Column, 0)

    def reserve(self, owner: str, size_bytes: int) -> Reservation:
        """Opens a claim of `size_bytes`; whether it fits is the manager's question, not the ledger's."""
        if size_bytes < 0:
            raise ValueError(f"a reservation cannot be negative, got {size_bytes}")
        reservation = Reservation(self, owner, size_bytes)
        self._open.add(reservation)
        self._sums[Column.LOADING] += size_bytes
        self._on_change()
        return reservation

    @property
    def totals(self) -> LedgerTotals:
        """The sums by column."""
        return LedgerTotals(self._sums[Column.LOADING], self._sums[Column.RESIDENT], self._sums[Column.LEAVING])

    @property
    def open_count(self) -> int:
        """Number of claims that have not ended."""
        return len(self._open)

    def reconcile(self) -> LedgerTotals:
        """Returns the sums counted again from the open claims; tests compare them with `totals`."""
        sums = dict.fromkeys(Column, 0)
        for reservation in self._open:
            sums[reservation.column] += reservation.size_bytes
        return LedgerTotals(sums[Column.LOADING], sums[Column.RESIDENT], sums[Column.LEAVING])

    def _move(self, reservation: Reservation, column: Column, size_bytes: int) -> None:
        self._sums[reservation.column] -= reservation.size_bytes
        self._sums[column] += size_bytes
        reservation.column, reservation.size_bytes = column, size_bytes
        self._on_change()

    def _close(self, reservation: Reservation) -> None:
        self._open.discard(reservation)
        self._sums[reservation.column] -= reservation.size_bytes
        self._on_change()
