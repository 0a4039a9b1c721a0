"""Loads models that will be wanted, in quiet moments, never at the price of another one's place or time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from modelhost.errors import ModelHostError
from modelhost.memory import Level, MemoryManager
from modelhost.pool.catalog import Catalog
from modelhost.pool.failures import Failures
from modelhost.pool.key import ModelKey
from modelhost.pool.prediction import HORIZON_S, Prediction, Predictor, Trust
from modelhost.pool.runner import Runner
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.snapshot import PoolCounters
from modelhost.pool.table import SlotTable
from modelhost.repository import ModelFile

log = logging.getLogger("modelhost")

#: Between two looks at what was used: some 0.1 ms for a thousand loaded models.
_LOOK_EVERY_S: Final = 1.0
#: Quiet: no run is in progress, and between two looks there were so many at most.
QUIET_RUNS: Final = 3
#: Models that are loaded and not used yet, at most.
GUESSES: Final = 8
#: A prediction that is not used for so long was wrong.
WASTED_AFTER_S: Final = 4 * HORIZON_S
#: The disk is left alone where file pages are read again at this rate.
_BUSY_DISK_BYTES_PER_S: Final = 4 << 20


class Predictive:
    """Event-loop thread, as all of the pool's state. `begin` queues a slot of its own making.

    What was loaded and not used yet leaves first where room is needed (`SlotTable.candidates`).
    """

    def __init__(
        self,
        *,
        table: SlotTable,
        catalog: Catalog,
        memory: MemoryManager,
        runner: Runner,
        failures: Failures,
        counters: PoolCounters,
        begin: Callable[[ModelFile], Slot],
        clock: Callable[[], float],
    ) -> None:
        self._table, self._catalog, self._memory, self._runner = table, catalog, memory, runner
        self._failures, self._counters, self._begin, self._clock = failures, counters, begin, clock
        self._predictor, self._trust = Predictor(), Trust()
        self._looked_at, self._runs = clock(), runner.started
        self._seen: dict[ModelKey, float] = {}  # when a loaded model was last used, at the last look
        self._guesses: dict[Slot, float] = {}  # models that were predicted and nobody has used yet, and since when

    def look(self) -> None:
        """Takes note of what was used, and begins a load where one is likely to be wanted; called at every sample."""
        now = self._clock()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        runs, self._runs = self._runner.started - self._runs, self._runner.started
        self._note_uses(now)
        self._judge(now)
        if len(self._guesses) < GUESSES and runs <= QUIET_RUNS and self._trust.is_given(now) and self._is_quiet():
            prediction = self._predictor.next(now, self._may_come)
            if prediction is not None:
                self._load(prediction, now)

    def _note_uses(self, now: float) -> None:
        seen: dict[ModelKey, float] = {}
        for slot in self._table.loaded():
            last_used = slot.last_used
            seen[slot.key] = last_used
            if last_used and self._seen.get(slot.key) != last_used:
                self._predictor.note(slot.key, now)
        self._seen = seen

    def _judge(self, now: float) -> None:
        """Counts what has become of predictions."""
        for slot, since in tuple(self._guesses.items()):
            if slot.last_used or slot.waiters:
                self._counters.predicted_hits += 1
                self._trust.hit()
            elif not slot.is_predicted:
                self._trust.pause(now)  # it gave way before it was loaded
            elif slot.state in (SlotState.GONE, SlotState.UNLOADING) or now - since >= WASTED_AFTER_S:
                self._counters.predicted_wasted += 1
                self._trust.wasted(now)
                log.info("%s was loaded ahead, and nobody used it", slot.key)
            else:
                continue
            del self._guesses[slot]

    def _is_quiet(self) -> bool:
        if self._memory.level is not Level.NORMAL or self._memory.is_changing or self._runner.in_flight:
            return False
        if self._table.queue or self._table.waiting:
            return False
        pressure = self._memory.gauge.look()
        return not pressure.is_thrashing and (pressure.refaulted_bytes_per_s or 0) < _BUSY_DISK_BYTES_PER_S

    def _may_come(self, key: ModelKey) -> bool:
        return (
            self._table.get(key) is None
            and key.name not in self._table.unloaded
            and self._failures.last(key) is None
            and self._catalog.has(key)
        )

    def _load(self, prediction: Prediction, now: float) -> None:
        key = prediction.key
        try:
            slot = self._begin(self._catalog.find(key.name, key.version))
        except ModelHostError:  # it has gone from the disk
            return
        self._guesses[slot] = now
        log.info("%s is loaded ahead: %s", key, prediction.reason)
        details = {"model": key.name, "version": key.version, "likely": round(prediction.likely, 3)}
        self._memory.record("predicted", cause=prediction.reason, details=details)
