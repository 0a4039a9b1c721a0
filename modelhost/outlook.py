"""What an open host expects of its memory: growth that no eviction stops, when it is critical, and where it sits."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from modelhost.conditions import Conditions
from modelhost.memory import MemoryManager
from modelhost.memory.board import Figure
from modelhost.memory.forecast import Forecast, Forecaster, Growth, Times
from modelhost.pool import Pool
from modelhost.testing.marks import Marks
from modelhost.units import format_bytes, format_span

log = logging.getLogger("modelhost")

MEMORY_GROWS: Final = "memory_grows"

#: Between two looks at the readings.
_LOOK_EVERY_S: Final = 5.0

#: So many looks have to find nothing before a growth is over: it may end for a moment, and one that is told of, ended
#: and told of again each minute is noise.
_OVER_AFTER: Final = 12


class Outlook:
    """Reads what no model holds at every sample, and notes a condition where it is going to reach critical.

    Event-loop thread. A reading costs a microsecond, a look half a millisecond every five seconds.
    """

    def __init__(
        self,
        memory: MemoryManager,
        pool: Pool,
        conditions: Conditions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory, self._pool, self._conditions, self._clock = memory, pool, conditions, clock
        self._forecaster = Forecaster()
        self._marks = Marks() if sys.platform == "linux" else None
        self._looked_at = clock()
        self._quiet = 0  # looks in a row that found nothing to be told
        self.forecast = Forecast()
        """As it was last looked at."""
        self.place: str | None = None
        """Where what grows sits, in words; None where nothing does, or nobody knows."""

    def look(self) -> None:
        """Takes a reading, and looks at all of them now and then; called at every sample."""
        now, totals = self._clock(), self._memory.ledger.totals
        others_bytes = self._memory.siblings.others(Figure.RESIDENT, Figure.LEAVING)
        own_bytes = self._memory.usage_bytes - totals.resident_bytes - totals.leaving_bytes - others_bytes
        if not self._forecaster.note(now, own_bytes) or now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        if self._marks is not None:
            self._marks.add(now)
        thresholds = self._memory.thresholds
        self.forecast = self._forecaster.look(
            usage_bytes=self._memory.usage_bytes,
            evictable_bytes=self._pool.evictable_bytes,
            warning_bytes=thresholds.warning_bytes,
            critical_bytes=thresholds.critical_bytes,
            limit_bytes=thresholds.limit_bytes,
        )
        growth, to_critical = self.forecast.growth, self.forecast.to_critical
        self.place = None if growth is None or self._marks is None else self._marks.grown(now, growth.seen_s)
        if growth is not None and to_critical is not None:
            self._quiet = 0
            self._tell(growth, to_critical)
        else:
            self._quiet += 1
            if self._quiet >= _OVER_AFTER:
                self._conditions.clear(MEMORY_GROWS)

    def as_dict(self) -> dict[str, Any]:
        """Returns the forecast for JSON: None where nothing is known to grow, or to be reached."""
        growth = self.forecast.growth
        return {
            "growth": None if growth is None else growth.as_dict(),
            "place": self.place,
            "to_warning_s": _times(self.forecast.to_warning),
            "to_critical_s": _times(self.forecast.to_critical),
        }

    def _tell(self, growth: Growth, to_critical: Times) -> None:
        is_new = not self._conditions.holds(MEMORY_GROWS)
        self._conditions.note(
            MEMORY_GROWS,
            f"what no model holds grows by {format_bytes(round(growth.bytes_per_s * 3600))} an hour "
            f"({format_bytes(growth.seen_bytes)} in {format_span(growth.seen_s)}) and reaches critical in "
            f"{format_span(to_critical.expected_s)} ({format_span(to_critical.soonest_s)} to "
            f"{format_span(to_critical.latest_s)}), with all models gone that can leave; "
            f"it sits in {self.place or 'an unknown place'}",
        )
        if is_new:
            self._memory.record("growth", cause=self.place or "unknown place", details=growth.as_dict())


def _times(times: Times | None) -> dict[str, float] | None:
    return None if times is None else times.as_dict()
