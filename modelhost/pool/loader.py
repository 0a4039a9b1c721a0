"""What a load will take: the runtime's estimate, replaced by what earlier loads were measured to hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelhost.memory import Measured
from modelhost.pool.key import ModelKey
from modelhost.runtime.base import Inspection, LoadPlan


@dataclass(frozen=True, slots=True)
class _Known:
    fingerprint: tuple[int, ...]
    resident_bytes: int


class Footprints:
    """Remembers the measured footprint of each model, as long as its files stay the same.

    An entry is some 200 bytes and there is at most one for each version in the repository.
    """

    def __init__(self) -> None:
        self._known: dict[ModelKey, _Known] = {}

    def plan(self, key: ModelKey, inspection: Inspection, *, budget_bytes: int) -> LoadPlan:
        """Returns the first plan whose peak is below `budget_bytes`, else the one with the lowest peak."""
        fitting = (plan for plan in inspection.plans if plan.peak_bytes < budget_bytes)
        plan = next(fitting, min(inspection.plans, key=lambda plan: plan.peak_bytes))
        known = self._known.get(key)
        if known is None or known.fingerprint != inspection.fingerprint:
            return plan
        return replace(plan, resident_bytes=known.resident_bytes)

    def settle(self, key: ModelKey, inspection: Inspection, plan: LoadPlan, measured: Measured) -> int:
        """Returns the bytes to book for a load that has just ended.

        A measurement during which nothing else ran is taken and remembered. Another one holds the
        allocations of the runs beside it too, so it may only lower the plan's figure.
        """
        delta_bytes = max(0, measured.delta_bytes)
        if not measured.quiet:
            return min(plan.resident_bytes, delta_bytes)
        self._known[key] = _Known(inspection.fingerprint, delta_bytes)
        return delta_bytes
