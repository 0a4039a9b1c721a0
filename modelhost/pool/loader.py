"""What a load will take: what a child measured, replaced by what loads in this process were measured to hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from modelhost.memory import Measured
from modelhost.pool.key import ModelKey
from modelhost.runtime.base import Inspection, LoadPlan

#: A load that held more than was predicted, or less, by over this share and this much, is worth an event.
_OFF_SHARE: Final = 0.1
_OFF_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Known:
    fingerprint: tuple[int, ...]
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a load is booked at, in bytes, and how far that is from what was predicted; 0 where nobody measured."""

    size_bytes: int
    error_bytes: int = 0
    is_off: bool = False
    """Whether the prediction was wrong by more than noise."""


@dataclass(frozen=True, slots=True)
class LoadPeaks:
    """Largest figures of some loads, in bytes; 0 where there were none."""

    peak_bytes: int = 0
    """The highest that one went."""
    extra_bytes: int = 0
    """The most beyond what the model holds afterwards."""
    over_bytes: int = 0
    """The most beyond what was predicted."""


class Footprints:
    """Remembers the measured footprint of each model, as long as its files stay the same.

    An entry is some 200 bytes and there is at most one for each version in the repository.
    """

    def __init__(self) -> None:
        self._known: dict[ModelKey, _Known] = {}
        self._peaks = LoadPeaks()

    def take_peaks(self) -> LoadPeaks:
        """Returns the largest figures of loads since the last call."""
        found, self._peaks = self._peaks, LoadPeaks()
        return found

    def plan(self, key: ModelKey, inspection: Inspection, plan: LoadPlan) -> LoadPlan:
        """Returns the plan with what is known better of a model since."""
        known = self._known.get(key)
        if known is None or known.fingerprint != inspection.fingerprint:
            return plan
        peak_bytes = max(plan.peak_bytes, known.resident_bytes)
        return replace(plan, resident_bytes=known.resident_bytes, peak_bytes=peak_bytes)

    def settle(self, key: ModelKey, inspection: Inspection, plan: LoadPlan, measured: Measured) -> Settled:
        """Returns what to book for a load that has just ended.

        A measurement during which nothing else ran is taken and remembered. Another one has the
        allocations and releases of the runs beside it in it: then the plan's figure stands.
        """
        if not measured.quiet:
            self._note(plan, plan.resident_bytes)
            return Settled(plan.resident_bytes)
        size_bytes = max(0, measured.delta_bytes)
        self._known[key] = _Known(inspection.fingerprint, size_bytes)
        error_bytes = size_bytes - plan.resident_bytes
        self._note(plan, size_bytes)
        is_off = abs(error_bytes) > max(plan.resident_bytes * _OFF_SHARE, _OFF_BYTES)
        return Settled(size_bytes, error_bytes, is_off)

    def _note(self, plan: LoadPlan, size_bytes: int) -> None:
        was, peak_bytes = self._peaks, max(plan.peak_bytes, size_bytes)
        self._peaks = LoadPeaks(
            max(was.peak_bytes, peak_bytes),
            max(was.extra_bytes, peak_bytes - size_bytes),
            max(was.over_bytes, size_bytes - plan.resident_bytes),
        )
