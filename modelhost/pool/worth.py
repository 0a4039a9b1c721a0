"""In which order idle models are to leave: the rules of `pool.eviction`. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from modelhost.pool.slot import Slot

#: No load is cheaper: below it times are noise, and the requests that wait meanwhile cost as much.
_LEAST_LOAD_S: Final = 1e-3
#: No model is smaller: one that was measured to hold nothing would never leave.
_LEAST_BYTES: Final = 64 << 10


class EvictionOrder(Protocol):
    """Puts idle models in the order in which they are to leave."""

    def sort(self, idle: Iterable[Slot]) -> list[Slot]:
        """Returns the idle models, given least recently used first, in the order in which they are to leave."""

    def evicted(self, slots: Iterable[Slot]) -> None:
        """Notes that these leave to make room, as the last sort had them first."""


def eviction_order(name: str) -> EvictionOrder:
    """Returns the order that `pool.eviction` names."""
    return GreedyDualSizeFrequency() if name == "gdsf" else LeastRecentlyUsed()


class LeastRecentlyUsed:
    """Who was not used for longest leaves first, whatever it holds and its load takes."""

    def sort(self, idle: Iterable[Slot]) -> list[Slot]:
        """See EvictionOrder."""
        return list(idle)

    def evicted(self, slots: Iterable[Slot]) -> None:
        """See EvictionOrder."""


class GreedyDualSizeFrequency:
    """Who is worth least leaves first: few uses, quick to load, large.

    worth = age + uses * load_s / committed_bytes, where `age` is what the last victim was worth: those that nobody
    uses any more fall behind, whatever they were worth once. `uses` is the load, and the runs since: requests that
    shared one are one use. From: L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
    Caching Policy", HPL-98-69R1, 1998.

    Requests pay nothing for this order: a worth is worked out when somebody asks for the order. The age does not change
    between two such moments, so that it is what it would have been when the model was used.
    """

    def __init__(self) -> None:
        self.age = 0.0

    def sort(self, idle: Iterable[Slot]) -> list[Slot]:
        """See EvictionOrder; equal worth: least recently used first."""
        slots = list(idle)
        for slot in slots:
            assert slot.runs is not None  # it is ready
            runs = slot.runs.statistics.execution_count
            if slot.worth is None or runs != slot.runs_valued:
                slot.runs_valued = runs
                slot.worth = self.age + (1 + runs - slot.runs_before) * per_use(slot.load_s, slot.committed_bytes)
        slots.sort(key=_worth_of)
        return slots

    def evicted(self, slots: Iterable[Slot]) -> None:
        """See EvictionOrder."""
        self.age = max((self.age, *(slot.worth for slot in slots if slot.worth is not None)))


def per_use(load_s: float, size_bytes: int) -> float:
    """Returns what each use adds to a model's worth: seconds of loading saved per byte held."""
    return max(load_s, _LEAST_LOAD_S) / max(size_bytes, _LEAST_BYTES)


def _worth_of(slot: Slot) -> float:
    assert slot.worth is not None
    return slot.worth
