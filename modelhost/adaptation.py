"""Adaptive thresholds of an open host: readings in, decisions put in force, kept for the next host."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from modelhost import __version__
from modelhost.kept import KeptFile
from modelhost.memory import MemoryManager
from modelhost.memory.adaptive import Adaptive
from modelhost.memory.adaptive_learnt import Floor, Learnt, count_of
from modelhost.memory.adaptive_words import Decision, Guards, Reading
from modelhost.memory.thresholds import Thresholds
from modelhost.pool import Pool

log = logging.getLogger("modelhost")

#: Between two readings: the peaks since the last one are in each, and a run that wants more than is kept free for it
#: does not wait for one. What models that never leave hold is added up each time: 0.1 ms for a thousand models.
_READ_EVERY_S: Final = 1.0
#: Samples have some jitter.
_EARLY_S: Final = 0.1


def policy_file(folder: Path) -> KeptFile:
    """Returns where what is learnt lies in the host's folder for such."""
    return KeptFile(folder, "policy", what="learnt thresholds", lock="policy.lock")


class Adaptation:
    """Event-loop thread. A reading takes some 40 microseconds, once a second.

    `guards` are asked for at the start and where the limit was changed. `rows` are what a host before this one has
    kept: what is of another limit or version is not taken up.
    """

    def __init__(
        self,
        memory: MemoryManager,
        pool: Pool,
        guards: Callable[[], Guards],
        *,
        rows: list[dict[str, Any]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._memory, self._pool, self._guards = memory, pool, guards
        self._clock, self._wall_clock = clock, wall_clock
        self._read_at = -math.inf
        self._own = Floor()
        self._last: dict[str, Any] | None = None
        self.changes = 0
        """Changes of the thresholds since the start."""
        found = guards()
        learnt, warning_bytes = _taken_up(rows or [], found.fixed.limit_bytes)
        self.adaptive = Adaptive(found, learnt, warning_bytes=warning_bytes)
        pool.activations.wants_room = self.want

    def start(self) -> None:
        """Begins, with what was learnt before."""
        if self.adaptive.thresholds != self._memory.thresholds:
            reason = "as the host before this one has learnt"
            self._use(Decision(self.adaptive.thresholds, "restart", reason, self._clock()))
        self._memory.on_thresholds(self._follow)
        self._memory.on_change(self.look)

    def look(self) -> None:
        """Takes a reading and puts in force what comes of it; called at every sample."""
        now = self._clock()
        if now - self._read_at < _READ_EVERY_S - _EARLY_S:
            return
        self._read_at = now
        self._keep_to_limit()
        self._take(self.adaptive.note(self._reading(now)))

    def want(self, run_bytes: int) -> None:
        """Has more kept free for runs, now, as one wants so much."""
        self._keep_to_limit()
        self._take(self.adaptive.want(run_bytes, self._clock()))

    def rows(self) -> list[bytes]:
        """Returns what is to be kept for the next host."""
        row = {
            "version": __version__,
            "limit_bytes": self.adaptive.guards.fixed.limit_bytes,
            "warning_bytes": self.adaptive.thresholds.warning_bytes,
            "learnt": self.adaptive.learnt.to_table(),
        }
        return [json.dumps(row).encode()]

    def as_dict(self) -> dict[str, Any]:
        """Returns what is in force, why, and within what, for JSON."""
        found, fixed, lowest_bytes, highest_bytes = self.adaptive.bounds()
        return {
            "name": "adaptive",
            "warning_bytes": found.warning_bytes,
            "critical_bytes": found.critical_bytes,
            "activation_room_bytes": found.activation_room_bytes,
            "fixed": {"warning_bytes": fixed.warning_bytes, "critical_bytes": fixed.critical_bytes},
            "warning_between": [lowest_bytes, highest_bytes],
            "learnt": self.adaptive.learnt.as_dict(),
            "changes": self.changes,
            "last": self._last,
        }

    # --- inside --------------------------------------------------------------------------------------

    def _take(self, decision: Decision | None) -> None:
        if decision is not None:
            self._use(decision)

    def _use(self, decision: Decision) -> None:
        self.changes += 1
        was = self._memory.thresholds
        details = {
            **decision.as_dict(),
            "from_warning_bytes": was.warning_bytes,
            "from_critical_bytes": was.critical_bytes,
        }
        self._last = {"at": round(self._wall_clock(), 3), **details}
        self._memory.use_thresholds(decision.thresholds, cause=decision.rule, reason=decision.reason, details=details)

    def _keep_to_limit(self) -> None:
        """Begins anew where the limit was changed a moment ago."""
        if self._memory.fixed_thresholds is not self.adaptive.guards.fixed:
            self._follow(self._memory.thresholds)

    def _follow(self, found: Thresholds) -> None:
        guards = self._guards()
        if guards != self.adaptive.guards:
            self.adaptive.rebase(guards)

    def _reading(self, now: float) -> Reading:
        memory, pool = self._memory, self._pool
        usage_bytes, totals, pressure = memory.usage_bytes, memory.ledger.totals, memory.gauge.look()
        claimed_bytes, run_bytes = pool.activations.take_peaks()
        loads, counters = pool.take_load_peaks(), pool.counters
        # What runs and bodies were seen to take, where claims do not say: predictions may be too low. Loads take more
        # in between than they hold, so that nothing can be told while they go on.
        is_steady = not (memory.is_changing or totals.leaving_bytes or totals.loading_bytes)
        seen_bytes = self._own.above(now, usage_bytes - totals.resident_bytes) if is_steady else 0
        reading = pressure.reading
        return Reading(
            at_s=now,
            usage_bytes=usage_bytes,
            resident_bytes=totals.resident_bytes,
            kept_bytes=pool.kept_bytes,
            largest_model_bytes=loads.peak_bytes,
            claimed_bytes=max(claimed_bytes, seen_bytes),
            run_bytes=run_bytes,
            extra_bytes=loads.extra_bytes,
            over_bytes=loads.over_bytes,
            runs=pool.runner.started,
            load_s=counters.load_seconds,
            departures=counters.evictions + counters.refusals.get("insufficient_memory", 0),
            refaulted_bytes=reading.refaulted_bytes,
            cache_bytes=reading.cache_bytes,
            psi_full=None if reading.psi_is_machines else reading.psi_full_avg10,
        )


def _taken_up(rows: list[dict[str, Any]], limit_bytes: int) -> tuple[Learnt | None, int | None]:
    """Returns what a host before this one has learnt, and its warning; nothing where that is of no use here."""
    if not rows:
        return None, None
    try:
        row = rows[0]
        of = (row["version"], row["limit_bytes"])
        if of != (__version__, limit_bytes):
            log.info("what was learnt is of version %s and a limit of %s bytes: it begins anew", *of)
            return None, None
        return Learnt.from_table(row["learnt"]), count_of(row["warning_bytes"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("what was learnt cannot be read (%s: %s): it begins anew", type(error).__name__, error)
        return None, None
