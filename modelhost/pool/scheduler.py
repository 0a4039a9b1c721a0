"""What happens to the queue: decide, then act. The only place that starts loads and departures.

`pump` is called whenever something that it looks at may have changed. One action is in progress at a
time, since the next decision needs its outcome; it ends in another call of `pump`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from cachetools import LRUCache

from modelhost.config import ModelOptions, PoolSettings
from modelhost.errors import HostClosed, InsufficientMemory, ModelBroken, ModelHostError, ModelNotFound, NeverFits
from modelhost.memory import CleanupGoal, CleanupPlan, MemoryManager, Recovery
from modelhost.pool.admission import Evict, Figures, Load, Refuse, Trim, Wait, decide
from modelhost.pool.catalog import Catalog
from modelhost.pool.eviction import Candidate, choose_victims
from modelhost.pool.failures import Failures
from modelhost.pool.key import ModelKey
from modelhost.pool.loader import Footprints, Settled
from modelhost.pool.runner import Runner
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.snapshot import PoolCounters
from modelhost.pool.table import SlotTable, info
from modelhost.repository import ModelFile
from modelhost.runtime.base import CancelToken, Inspection, LoadedModel, LoadError, LoadPlan, Runtime
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

#: Faces of models that are not loaded; some kilobytes each.
_INSPECTIONS_KEPT = 256

#: A trim of all heaps takes milliseconds, and refusals may come by the thousand.
_DEEP_TRIM_EVERY_S = 2.0

#: Holders of memory that a refusal names, largest first.
_HOLDERS_NAMED = 10


class Scheduler:
    """Serves the table's queue. Event-loop thread; loads and unloads run on the memory thread."""

    def __init__(
        self,
        *,
        table: SlotTable,
        catalog: Catalog,
        runtime: Runtime,
        memory: MemoryManager,
        runner: Runner,
        settings: PoolSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = PoolCounters()
        self.failures = Failures(backoff_s=settings.failure_backoff_s, backoff_max_s=settings.failure_backoff_max_s)
        self._table, self._catalog, self._runtime = table, catalog, runtime
        self._memory, self._runner, self._settings, self._clock = memory, runner, settings, clock
        self._footprints = Footprints()
        self._inspections: LRUCache[ModelKey, tuple[ModelOptions, Inspection]] = LRUCache(_INSPECTIONS_KEPT)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        self._is_acting = False  # a load, eviction or trim that was decided here is in progress
        self._trimmed_after = 0  # runs that had been started at the last trim, and when that was:
        self._trimmed_at = -math.inf
        self._deep_trimmed_at = -math.inf
        table.released = self._released
        memory.set_cleaner(self._clean)
        memory.on_change(self.pump)
        memory.quiet_marker = runner.quiet_marker

    async def inspect(self, file: ModelFile) -> Inspection:
        """Reads the face of a model, or remembers it while the file stays the same. Raises ModelBroken."""
        key, options = ModelKey(file.name, file.version), self._catalog.options(file)
        known = self._inspections.get(key)

        def look() -> Inspection:
            if known is not None and known[0] == options:
                inspection = known[1]
                if self._runtime.fingerprint(file.path) == inspection.fingerprint:
                    return inspection
            if not self._runtime.fingerprint(file.path):
                raise FileNotFoundError(file.path.name)
            return self._runtime.inspect(file.path, options)

        try:
            inspection = await self._catalog.on_disk(look)
        except FileNotFoundError:
            await self._catalog.scan()
            raise ModelNotFound(f"model '{file.name}' version {file.version} was removed from the disk") from None
        except LoadError as error:
            raise ModelBroken(file.name, file.version, str(error)) from None
        self._inspections[key] = (options, inspection)
        return inspection

    # --- events ------------------------------------------------------------------------------------

    def enqueue(self, slot: Slot) -> None:
        """Starts on a slot that has just been queued."""
        self._spawn(self._inspect(slot))

    def forget(self, slot: Slot) -> None:
        """Drops a queued slot that nobody waits for any more."""
        self._table.drop(slot, HostClosed("nobody waits for it"))

    def let_go(self, slot: Slot, *, cause: str) -> None:
        """Unloads a ready slot: at once where it is idle, else when its last lease has ended."""
        if slot.leases:
            slot.move(SlotState.DRAINING)
        else:
            self.depart(slot, cause=cause)

    def depart(self, slot: Slot, *, cause: str) -> None:
        """Takes an idle slot out of reach at once and gives its memory back; its departures are told."""
        plan = self._plan_departure([slot])
        departures, slot.departures = slot.departures, []

        async def run() -> None:
            recovery: Recovery | None = None
            try:
                recovery = await self._memory.recover(plan, cause=cause)
                self.counters.unloads += 1
            finally:
                for waiter in departures:
                    waiter.set(recovery)

        self._spawn(run())

    def _released(self, slot: Slot) -> None:
        if slot.state is SlotState.DRAINING:
            self.depart(slot, cause="unload")
        elif self._table.queue:
            self.pump()

    async def close(self) -> None:
        """Refuses what is queued and waits for what is under way."""
        self._is_closed = True
        closed = HostClosed("the host is shutting down")
        for slot in tuple(self._table.queue):
            self._table.drop(slot, closed)
        for slot in self._table:
            for waiter in slot.waiters:
                waiter.fail(closed.twin())
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def unload_all(self) -> None:
        """Gives back the memory of all models; their runs have ended, leases that are still held are void."""
        loaded = [slot for slot in self._table if slot.model is not None]
        if loaded:
            await self._memory.recover(self._plan_departure(loaded), cause="shutdown")

    # --- deciding ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Decides on the queue, first come first, until something is under way.

        One action at a time: the next decision needs its outcome. A load that has to wait for leases
        to end does not hold up one behind it that fits.
        """
        if self._is_acting or self._memory.is_changing or not self._table.queue:
            return
        try:
            figures = self._figures()
            for slot in tuple(self._table.queue):
                if slot.inspection is not None and self._act(slot, slot.inspection, figures):
                    return
        except OSError:  # usage cannot be read: no decision now, the next sample asks again
            log.exception("the queue could not be decided on")

    def _act(self, slot: Slot, inspection: Inspection, figures: Figures) -> bool:
        """Decides on one queued slot and begins what was decided; returns whether it did begin something."""
        plan = self._footprints.plan(slot.key, inspection, budget_bytes=figures.critical_bytes - figures.baseline_bytes)
        decision = decide(figures, resident_bytes=plan.resident_bytes, peak_bytes=plan.peak_bytes)
        if isinstance(decision, Load | Evict):
            slot.blocked_since = None
        match decision:
            case Load():
                self._begin(self._load(slot, plan))
                return True
            case Trim():
                self._trimmed_after, self._trimmed_at = self._runner.started, self._clock()
                self._begin(self._memory.trim(deep=False))
                return True
            case Evict(victims):
                self.counters.evictions += len(victims)
                departure = self._plan_departure(self._slots_of(victims))
                log.info("%s leave for %s", ", ".join(departure.victims), slot.key)
                self._begin(self._memory.recover(departure, cause=f"load of {slot.key}"))
                return True
            case Wait(available_bytes):
                now = self._clock()
                slot.blocked_since = now if slot.blocked_since is None else slot.blocked_since
                if now - slot.blocked_since >= self._settings.memory_wait_s:
                    self._table.drop(slot, self._refusal(slot.key, plan, available_bytes, never=False))
            case Refuse(_, False) if self._clock() - self._deep_trimmed_at >= _DEEP_TRIM_EVERY_S:
                self._deep_trimmed_at = self._clock()  # before anybody is sent away
                self._begin(self._memory.trim(deep=True))
                return True
            case Refuse(available_bytes, never):
                self._table.drop(slot, self._refusal(slot.key, plan, available_bytes, never=never))
        return False

    def _figures(self) -> Figures:
        memory = self._memory.memory_info()
        in_use = self._table.in_use()
        in_use_bytes = sum(slot.committed_bytes for slot in in_use if not slot.pinned)
        if in_use or self._runner.in_flight:
            in_use_bytes += memory.limit_bytes - memory.critical_bytes  # what their runs may hold
        # A model that drains or that others are unloading comes back too.
        in_use_bytes += self._memory.ledger.totals.leaving_bytes
        return Figures(
            usage_bytes=memory.usage_bytes,
            reserved_bytes=memory.reserved_bytes,
            baseline_bytes=memory.baseline_bytes,
            warning_bytes=memory.warning_bytes,
            critical_bytes=memory.critical_bytes,
            idle=self._table.candidates(),
            in_use_bytes=in_use_bytes,
            # Not again at once: under steady traffic a run has always ended since.
            can_trim=self._runner.started != self._trimmed_after
            and self._clock() - self._trimmed_at >= self._memory.settings.sample_interval_s,
        )

    def _refusal(self, key: ModelKey, plan: LoadPlan, available_bytes: int, *, never: bool) -> ModelHostError:
        holders = sorted(self._table, key=lambda slot: -slot.committed_bytes)
        held_by = tuple(info(slot).as_dict() for slot in holders if slot.committed_bytes)[:_HOLDERS_NAMED]
        thresholds = self._memory.thresholds
        room = (
            f"{format_bytes(available_bytes)} {'would be' if never else 'are'} free below critical "
            f"({format_bytes(thresholds.critical_bytes)} of {format_bytes(thresholds.limit_bytes)})"
        )
        needs = f"loading {key} needs {format_bytes(plan.peak_bytes)}"
        if never:
            text = f"{needs} and can never fit: with nothing else loaded {room}"
        else:
            names = ", ".join(f"{holder['name']} {format_bytes(holder['committed_bytes'])}" for holder in held_by)
            text = f"{needs}; {room}, even without what is idle; loaded are: {names or 'none'}"
        kind = NeverFits if never else InsufficientMemory
        log.warning("refused: %s", text)
        return kind(text, needed_bytes=plan.peak_bytes, available_bytes=available_bytes, held_by=held_by)

    # --- acting ------------------------------------------------------------------------------------

    def _begin(self, action: Coroutine[Any, Any, Any]) -> None:
        """Starts the one action in progress; the pump runs again when it has ended, whatever came of it."""
        self._is_acting = True

        async def run() -> None:
            try:
                await action
            except Exception:
                log.exception("an action of the pool failed")
            finally:
                self._is_acting = False
                self.pump()

        self._spawn(run())

    async def _inspect(self, slot: Slot) -> None:
        """Reads the face of a queued slot's model; a broken one is dropped."""
        try:
            slot.inspection = await self.inspect(slot.file)
        except Exception as error:
            self._fail(slot, error)
        else:
            self.pump()

    def _load(self, slot: Slot, plan: LoadPlan) -> Coroutine[Any, Any, None]:
        """Reserves at once; the coroutine loads, settles and grants."""
        slot.move(SlotState.LOADING)
        self._table.queue.remove(slot)
        slot.reservation = self._memory.ledger.reserve(str(slot.key), plan.peak_bytes)
        cancel, inspection, file = CancelToken(), slot.inspection, slot.file
        assert inspection is not None

        def work() -> LoadedModel:
            return self._runtime.load(file.path, plan, inspection, cancel)

        async def run() -> None:
            timer = asyncio.get_running_loop().call_later(self._settings.load_timeout_s, cancel.cancel)
            started = self._clock()
            try:
                model, measured = await self._memory.change(work)
            except BaseException as error:
                self._fail(slot, error)
                if not isinstance(error, Exception):
                    raise
                return
            finally:
                timer.cancel()
            took_s = self._clock() - started
            settled = self._footprints.settle(slot.key, inspection, plan, measured)
            self._loaded(slot, model, plan, settled, took_s)

        return run()

    def _loaded(self, slot: Slot, model: LoadedModel, plan: LoadPlan, settled: Settled, took_s: float) -> None:
        """Settles the reservation and grants the waiters, those that are still there."""
        assert slot.reservation is not None
        size_bytes = settled.size_bytes
        slot.reservation.settle(size_bytes)
        slot.expected_bytes = settled.expected_bytes
        slot.model = model
        self._table.ready(slot)
        if slot.departures:  # somebody asked for its unload while it was loading
            self.let_go(slot, cause="unload")
        self.failures.forget(slot.key)
        self.counters.loads += 1
        self.counters.load_seconds += took_s
        log.info("loaded %s in %.0f ms, %s", slot.key, took_s * 1e3, format_bytes(size_bytes))
        if size_bytes > plan.resident_bytes:
            over_bytes = size_bytes - plan.resident_bytes
            self.counters.overshoot_bytes += over_bytes
            self._memory.record(
                "overshoot",
                cause=f"load of {slot.key}",
                details={"expected_bytes": plan.resident_bytes, "measured_bytes": size_bytes},
            )

    def _fail(self, slot: Slot, error: BaseException) -> None:
        """Ends a load that failed: no reservation and no waiter is left, and the failure is remembered."""
        if slot.reservation is not None:
            slot.reservation.end()
            slot.reservation = None
        if slot.state is SlotState.GONE:
            return
        if isinstance(error, ModelNotFound):
            self._table.drop(slot, error)
            return
        broken = error
        if not isinstance(broken, ModelBroken):
            reason = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
            broken = ModelBroken(slot.key.name, slot.key.version, reason)
        self.counters.load_failures += 1
        self.failures.note(slot.key, broken, self._clock())
        log.warning("%s", broken)
        self._table.drop(slot, broken)

    def _plan_departure(self, slots: Iterable[Slot]) -> CleanupPlan:
        """Takes idle (or drained) slots out of reach, and returns how to give their memory back."""
        leaving = list(slots)
        models: list[LoadedModel] = []
        for slot in leaving:
            self._table.withdraw(slot)
            assert slot.model is not None
            assert slot.reservation is not None
            models.append(slot.model)
            slot.model = None
            slot.reservation.leave()

        def act() -> None:
            while models:
                try:
                    models.pop().close()
                except Exception:  # the others' memory must come back all the same
                    log.exception("a model could not be closed")

        return CleanupPlan(
            victims=tuple(str(slot.key) for slot in leaving),
            expected_bytes=sum(slot.expected_bytes for slot in leaving),
            act=act,
            done=lambda: self._departed(leaving),
        )

    def _departed(self, slots: Iterable[Slot]) -> None:
        """Ends the reservations; a slot that is wanted again goes back to the queue."""
        for slot in slots:
            assert slot.reservation is not None
            slot.reservation.end()
            slot.reservation = None
            if not slot.waiters or self._is_closed:
                self._table.drop(slot, HostClosed("the host is shutting down"))
                continue
            try:  # the files and their options may be others now
                slot.file = self._catalog.find(slot.key.name, slot.key.version)
            except ModelHostError as error:
                self._table.drop(slot, error)
                continue
            slot.pinned = self._catalog.options(slot.file).pinned
            self._table.requeue(slot)
            self.enqueue(slot)

    def _clean(self, goal: CleanupGoal) -> CleanupPlan | None:
        """Answers the memory manager: idle models in LRU order, or all of them."""
        wanted = math.inf if goal.everything else goal.excess_bytes
        victims = choose_victims(self._table.candidates(), wanted)
        if not victims:
            return None
        self.counters.evictions += len(victims)
        plan = self._plan_departure(self._slots_of(victims))
        log.info("%s leave", ", ".join(plan.victims))
        return plan

    def _slots_of(self, victims: Iterable[Candidate]) -> list[Slot]:
        return [slot for victim in victims if (slot := self._table.get(victim.key)) is not None]

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
