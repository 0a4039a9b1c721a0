"""A handful of snapshots over a long time, to say afterwards where growth sits."""

from __future__ import annotations

from typing import Final

from modelhost.testing.difference import compare
from modelhost.testing.snapshot import MemorySnapshot, take_snapshot

#: Kept at most; those that go are those whose neighbours are close by, for their age.
_KEPT: Final = 16


class Marks:
    """Snapshots of this process, dense of late and sparse long ago. One thread, the owner's."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, MemorySnapshot]] = []

    def add(self, at_s: float) -> None:
        """Takes a snapshot (0.15 ms). Moments only ever rise."""
        kept = self._kept
        kept.append((at_s, take_snapshot()))
        if len(kept) > _KEPT:
            gaps = [(kept[i + 1][0] - kept[i - 1][0]) / (at_s - kept[i][0] + 1) for i in range(1, len(kept) - 1)]
            del kept[1 + gaps.index(min(gaps))]

    def grown(self, at_s: float, seen_s: float) -> str | None:
        """Returns where most of the growth of the last `seen_s` sits; None where it is not told from noise."""
        if len(self._kept) < 2:
            return None
        _, before = min(self._kept, key=lambda mark: abs(mark[0] - (at_s - seen_s)))
        place = compare(before, self._kept[-1][1]).main_place
        return None if place is None else place.value
