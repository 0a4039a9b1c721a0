"""What a load will take: the runtime's estimate, replaced by what earlier loads were measured to hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from modelhost.memory import Measured
from modelhost.pool.key import ModelKey
from modelhost.runtime.base import Inspection, LoadPlan

#: Of an estimate, the share that an unload is held to: estimates are upper bounds.
_ESTIMATE_SHARE: Final = 0.8


@dataclass(frozen=True, slots=True)
class _Known:
    fingerprint: tuple[int, ...]
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Settled:
    """What a load is booked at, and what its unload should give back at least; in bytes."""

    size_bytes: int
    expected_bytes: int


class Footprints:
    """Remembers the measured footprint of each model, as long as its files stay the same.

    An entry is some 200 bytes and there is at most one for each version in the repository.
    """

    def __init__(self) -> None:
        self._known: dict[ModelKey, _Known] = {}

    def plan(self, key: ModelKey, inspection: Inspection, *, budget_bytes: int) -> LoadPlan:
        """Returns the first plan whose peak is below `budget_bytes`, else the one with the lowest peak."""
        known = self._known.get(key)
        plans = inspection.plans
        if known is not None and known.fingerprint == inspection.fingerprint:
            plans = tuple(_corrected(plan, known.resident_bytes) for plan in plans)
        fitting = (plan for plan in plans if plan.peak_bytes < budget_bytes)
        return next(fitting, min(plans, key=lambda plan: plan.peak_bytes))

    def settle(self, key: ModelKey, inspection: Inspection, plan: LoadPlan, measured: Measured) -> Settled:
        """Returns what to book for a load that has just ended.

        A measurement during which nothing else ran is taken and remembered. Another one has the
        allocations and releases of the runs beside it in it: then what is known stands, or the
        plan's figure, which is an upper bound.
        """
        if measured.quiet:
            delta_bytes = max(0, measured.delta_bytes)
            self._known[key] = _Known(inspection.fingerprint, delta_bytes)
            return Settled(delta_bytes, delta_bytes)
        known = self._known.get(key)
        if known is not None and known.fingerprint == inspection.fingerprint:
            return Settled(known.resident_bytes, known.resident_bytes)
        return Settled(plan.resident_bytes, int(plan.resident_bytes * _ESTIMATE_SHARE))


def _corrected(plan: LoadPlan, resident_bytes: int) -> LoadPlan:
    return replace(plan, resident_bytes=resident_bytes, peak_bytes=max(plan.peak_bytes, resident_bytes))
