"""What happens to the queue: decide, then act. The only place that decides on looks, loads and evictions.

`pump` is called whenever something that it looks at may have changed. One load, trim or eviction is in
progress at a time, since the next decision needs its outcome; it ends in another call of `pump`. A
child that opens a model for the first time takes longer and works beside them: its reservation counts.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from modelhost.config import PoolSettings
from modelhost.errors import HostClosed, InsufficientMemory, ModelHostError, NeverFits
from modelhost.memory import Level, MemoryManager
from modelhost.memory.board import Figure
from modelhost.pool.accounts import Accounts
from modelhost.pool.admission import Decision, Evict, Figures, Load, Refuse, Trim, Wait, decide, fits_beside
from modelhost.pool.arrivals import Arrivals
from modelhost.pool.background import Background
from modelhost.pool.catalog import Catalog
from modelhost.pool.changes import Changes
from modelhost.pool.departures import Departures
from modelhost.pool.elsewhere import Elsewhere
from modelhost.pool.faces import Faces
from modelhost.pool.failures import Failures
from modelhost.pool.key import ModelKey
from modelhost.pool.load_watch import LoadWatch
from modelhost.pool.loader import LoadPeaks
from modelhost.pool.runner import Runner
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.table import SlotTable, info
from modelhost.repository import ModelFile
from modelhost.runtime.base import Inspection, LoadPlan, Preparation, Runtime
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

#: A trim of all heaps takes milliseconds, and refusals may come by the thousand.
_DEEP_TRIM_EVERY_S = 2.0

_ELSEWHERE = "prepare it where there is more (modelhost prepare): a prepared model needs much less"

#: A session whose weights are file pages holds many small blocks, and seldom more than this. What a larger
#: one holds may well have mappings of its own, which no hole in the heap can give.
_SMALL_LOAD_BYTES = 4 << 20

#: Of what there is for a child, it is given no more at first: all models would have to leave for the last of it, those
#: too that are in use all the time and hold next to nothing, and nothing could load beside it.
_CHILD_SHARE = 7 / 8

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
        self.accounts = Accounts()
        self.counters = self.accounts.counters
        self.failures = Failures(backoff_s=settings.failure_backoff_s, backoff_max_s=settings.failure_backoff_max_s)
        self.elsewhere = Elsewhere(memory.siblings, clock)
        self.faces = Faces(catalog, runtime, memory.conditions)
        self._table, self._memory, self._runner = table, memory, runner
        self._settings, self._clock = settings, clock
        self._catalog, self._runtime = catalog, runtime
        self._background = Background()
        self.departures = Departures(
            table=table,
            catalog=catalog,
            runtime=runtime,
            memory=memory,
            background=self._background,
            accounts=self.accounts,
            settings=settings,
            clock=clock,
            wanted_again=self.enqueue,
        )
        self._arrivals = Arrivals(
            table=table,
            catalog=catalog,
            runtime=runtime,
            memory=memory,
            faces=self.faces,
            failures=self.failures,
            accounts=self.accounts,
            settings=settings,
            departures=self.departures,
            background=self._background,
            clock=clock,
            again=self.enqueue,
        )
        self._is_acting = False  # a load, eviction or trim that was decided here is in progress
        self._trimmed_after = 0  # runs that had been started at the last trim, and when that was:
        self._trimmed_at = -math.inf
        self._deep_trimmed_at = -math.inf
        self.changes = Changes(
            table=table,
            catalog=catalog,
            runtime=runtime,
            failures=self.failures,
            departures=self.departures,
            background=self._background,
            enqueue=self.enqueue,
            clock=clock,
        )
        self.watch: Callable[[Slot], None] = lambda slot: None
        """Called with a slot that has just begun to serve."""
        self._arrivals.served = self._serves
        table.released = self._released
        memory.set_cleaner(self.departures.clean)
        memory.on_change(self._memory_changed)
        memory.on_thresholds(lambda _: self._arrivals.recall())
        memory.quiet_marker = runner.quiet_marker

    @property
    def overdue(self) -> LoadWatch | None:
        """The load that holds all others up, as it could not be stopped."""
        return self._arrivals.overdue

    def take_load_peaks(self) -> LoadPeaks:
        """Returns the largest figures of loads since the last call."""
        return self._arrivals.footprints.take_peaks()

    # --- events ------------------------------------------------------------------------------------

    def enqueue(self, slot: Slot) -> None:
        """Starts on a slot that has just been queued; what was only likely to be wanted gives way to it."""
        if not slot.is_unused:
            self._arrivals.give_way()
            for queued in [queued for queued in self._table.queue if queued.is_unused]:
                self._drop_guess(queued)
        self._background.spawn(self._inspect(slot))

    def load_ahead(self, file: ModelFile) -> Slot:
        """Queues a model that no request asks for; it is loaded where there is room, and nobody else is waited for."""
        slot = self.changes.slot_for(file)
        slot.is_predicted = True
        self._table.add(slot)
        self.enqueue(slot)
        return slot

    def _serves(self, slot: Slot) -> None:
        self.changes.served(slot)
        self.watch(slot)

    def forget(self, slot: Slot) -> None:
        """Drops a queued slot that nobody waits for any more."""
        if not slot.is_needed:
            self._table.drop(slot, HostClosed("nobody waits for it"))

    def _released(self, slot: Slot) -> None:
        if slot.state is SlotState.DRAINING:
            self.departures.depart(slot, cause="unload")
        elif self._table.queue:
            self.pump()

    def _memory_changed(self) -> None:
        self.pump()
        self.departures.expire()

    async def close(self) -> None:
        """Refuses what is queued and waits for what is under way."""
        self.changes.close()
        self.departures.close()
        self._arrivals.close()
        closed = HostClosed("the host is shutting down")
        for slot in tuple(self._table.queue):
            self._table.drop(slot, closed)
        for slot in self._table:
            for waiter in slot.waiters:
                waiter.fail(closed.twin())
        await self._background.ended()
        self._arrivals.shutdown()

    # --- deciding ----------------------------------------------------------------------------------

    def pump(self) -> None:
        """Decides on the queue, first come first, until something is under way.

        One action at a time: the next decision needs its outcome. A load that has to wait for leases
        to end does not hold up one behind it that fits. Raises nothing: whoever ends a lease comes here too, and
        is not to blame for what is wrong with a model in the queue.
        """
        if not self._table.queue:
            self._memory.sharing.want(0)  # nobody waits here any more, however that ended
            return
        if self._is_acting or self._memory.is_changing:
            return
        siblings = self._memory.siblings
        with siblings.decision() as is_mine:
            if is_mine:
                self._decide()
        if not siblings.is_alone:
            waits = [slot for slot in self._table.queue if slot.blocked_since is not None]
            self._memory.sharing.want(max((slot.wanted_bytes for slot in waits), default=0))

    def _decide(self) -> None:
        try:
            figures = self._figures()
        except Exception:  # usage cannot be read: no decision now, the next sample asks again
            log.exception("the queue could not be decided on")
            return
        for slot in tuple(self._table.queue):
            if slot.inspection is not None and self._has_begun(slot, slot.inspection, figures):
                return

    def _has_begun(self, slot: Slot, inspection: Inspection, figures: Figures) -> bool:
        """Acts on one queued slot, which fails where that goes wrong; the others go on."""
        try:
            return self._act(slot, inspection, figures)
        except Exception as error:
            log.exception("%s could not be decided on", slot.key)
            self._arrivals.fail(slot, error)
            return False

    def _act(self, slot: Slot, inspection: Inspection, figures: Figures) -> bool:
        """Decides on one queued slot and begins what was decided; returns whether it did begin something."""
        if slot.is_unused:
            return self._begin_ahead(slot, inspection, figures)
        if inspection.plan is not None:
            plan = self._arrivals.footprints.plan(slot.key, inspection, inspection.plan)
            decision = _decide_on_load(_sparing(figures, slot.predecessor), plan)
            if isinstance(decision, Load):
                self._begin(self._arrivals.load(slot, plan))
                return True
            is_dear = isinstance(decision, Wait | Refuse) or (isinstance(decision, Evict) and plan.variant == "heap")
            if is_dear and self._is_sent_away(slot):
                return False
            if isinstance(decision, Wait | Refuse) and self._is_to_change_places(slot, decision, figures, plan):
                self._change_places(slot)
                return True
            return self._carry_out(slot, decision, _loading(slot.key, plan), plan.peak_bytes)
        assert inspection.preparation is not None
        if self._is_preparing and self._is_sent_away(slot):
            return False
        if self._arrivals.is_preparing:
            return False
        if self._memory.siblings.others(Figure.IS_PREPARING):
            slot.waits_for_sibling = True  # which may well be preparing this one
            return False
        if slot.waits_for_sibling:
            slot.waits_for_sibling, slot.inspection = False, None
            self.faces.forget(slot.key)
            self.enqueue(slot)
            return False
        figures = _without(figures, slot.predecessor)  # which stays until this one is known to open
        largest = _largest_child(figures)
        ceiling = _ceiling(slot, inspection.preparation, largest)
        decision = decide(figures, resident_bytes=0, peak_bytes=ceiling)
        is_short = ceiling < _wanted_by_child(slot, inspection.preparation)
        if (is_short or not isinstance(decision, Load | Trim)) and self._is_sent_away(slot):
            return False
        if isinstance(decision, Load):
            self._begin_beside(self._arrivals.prepare(slot, ceiling, is_last=ceiling >= largest))
            return True
        return self._carry_out(slot, decision, _first_look(slot.key, ceiling), ceiling)

    def _is_sent_away(self, slot: Slot) -> bool:
        """Sends who waits for what does not fit here to another process of the host that holds it; False: none does."""
        held = None if slot.is_unproven else self.elsewhere.holder(slot.key)
        if held is None:
            return False
        self.elsewhere.note(slot.key)
        self._table.drop(slot, held)
        return True

    def _begin_ahead(self, slot: Slot, inspection: Inspection, figures: Figures) -> bool:
        """Loads what is likely to be wanted where nobody has to leave or wait for it, and no child to open it; else
        drops it."""
        plan = inspection.plan
        if plan is not None and self._memory.level is Level.NORMAL and not self._arrivals.is_preparing:
            plan = self._arrivals.footprints.plan(slot.key, inspection, plan)
            if fits_beside(figures, resident_bytes=plan.resident_bytes, peak_bytes=plan.peak_bytes):
                self._begin(self._arrivals.load(slot, plan))
                return True
        self._drop_guess(slot)
        return False

    def _drop_guess(self, slot: Slot) -> None:
        slot.is_predicted = False
        self._table.drop(slot, HostClosed("it was only likely to be wanted"))

    def _carry_out(self, slot: Slot, decision: Decision, needs: str, needed_bytes: int) -> bool:
        """Does what a decision other than Load asks for."""
        match decision:
            case Trim():
                self._trimmed_after, self._trimmed_at = self._runner.started, self._clock()
                self._begin(self._memory.trim(deep=False))
                return True
            case Evict(victims):
                slot.blocked_since = None
                if slot.predecessor is not None and slot.predecessor.key in [victim.key for victim in victims]:
                    slot.is_wanted = True  # it is what the other one leaves for
                plan = self.departures.evict(victims)
                log.info("%s leave for %s", ", ".join(plan.victims), slot.key)
                self._begin(self._memory.recover(plan, cause=f"load of {slot.key}"))
                return True
            case Wait(available_bytes):
                now = self._clock()
                if slot.blocked_since is None or self._is_preparing:  # a child ends for sure
                    slot.blocked_since = now
                slot.wanted_bytes = max(0, needed_bytes - available_bytes) + 1  # what fits is below critical
                if now - slot.blocked_since >= self._settings.memory_wait_s:
                    self._refuse(slot, needs, needed_bytes, available_bytes, never=False)
            case Refuse(_, False) if slot.waiters and self._clock() - self._deep_trimmed_at >= _DEEP_TRIM_EVERY_S:
                self._deep_trimmed_at = self._clock()  # before anybody is sent away
                self._begin(self._memory.trim(deep=True))
                return True
            case Refuse(available_bytes, never):
                self._refuse(slot, needs, needed_bytes, available_bytes, never=never)
        return False

    def _refuse(self, slot: Slot, needs: str, needed_bytes: int, available_bytes: int, *, never: bool) -> None:
        """Sends away who waits; what is to take another one's place goes on waiting for memory by itself."""
        if slot.is_unproven and not never and not slot.waiters:
            return
        refusal = self._refusal(needs, needed_bytes, available_bytes, never=never)
        if slot.is_unproven and never:
            self._arrivals.fail(slot, refusal)
        elif slot.is_unproven:
            waiters, slot.waiters = slot.waiters, []
            for waiter in waiters:
                waiter.fail(refusal)
        else:
            self._table.drop(slot, refusal)

    def _is_to_change_places(self, slot: Slot, decision: Wait | Refuse, figures: Figures, plan: LoadPlan) -> bool:
        """Whether what a slot is to replace has to leave first: both do not fit, nor did they for a while."""
        former = slot.predecessor
        if former is None or former.state is not SlotState.READY:
            return False
        if isinstance(decision, Refuse) and decision.never:
            return False
        if slot.blocked_since is None:
            slot.blocked_since = self._clock()
        if self._clock() - slot.blocked_since < self._settings.memory_wait_s:
            return False
        usage_bytes = figures.usage_bytes - former.committed_bytes
        without = replace(_without(figures, former), usage_bytes=usage_bytes, can_trim=False)
        return isinstance(_decide_on_load(without, plan), Load | Evict)

    def _change_places(self, slot: Slot) -> None:
        """Lets go of what serves, as a child has run what comes; requests wait from here until that is loaded."""
        former = slot.predecessor
        assert former is not None
        log.info("%s makes room for its new files: both do not fit", slot.key)
        slot.is_wanted = True
        self.departures.let_go(former, cause="its files changed")

    @property
    def _is_preparing(self) -> bool:
        """Whether a child opens a model for the first time, of this process or another one of the host."""
        return self._arrivals.is_preparing or self._memory.siblings.others(Figure.IS_PREPARING) > 0

    def _figures(self) -> Figures:
        # Before and after: what a child took or gave back in between must not count as seen.
        seen_bytes = self._arrivals.seen_bytes
        memory = self._memory.memory_info()
        seen_bytes = min(seen_bytes, self._arrivals.seen_bytes)
        in_use = self._table.in_use()
        in_use_bytes = sum(slot.committed_bytes for slot in in_use if not slot.pinned)
        if in_use or self._runner.in_flight:
            in_use_bytes += memory.limit_bytes - memory.critical_bytes  # what their runs may hold
        # A model that drains or that others are unloading comes back too, and all that a child takes.
        in_use_bytes += self._memory.ledger.totals.leaving_bytes
        if self._arrivals.is_preparing:
            in_use_bytes += memory.reserved_bytes
        # What other processes of the host load, hold and can let go of. What they load is in usage and in reservations
        # until it is settled, or their child has ended.
        siblings = self._memory.siblings
        in_use_bytes += 2 * siblings.others(Figure.LOADING) + siblings.others(Figure.EVICTABLE)
        return Figures(
            usage_bytes=memory.usage_bytes,
            reserved_bytes=memory.reserved_bytes - seen_bytes,
            baseline_bytes=memory.baseline_bytes,
            warning_bytes=memory.warning_bytes,
            critical_bytes=memory.critical_bytes,
            idle=self._table.candidates(),
            in_use_bytes=in_use_bytes,
            # Not again at once: under steady traffic a run has always ended since.
            can_trim=self._runner.started != self._trimmed_after
            and self._clock() - self._trimmed_at >= self._memory.settings.sample_interval_s,
            reusable_bytes=memory.reusable_bytes,
            passing_bytes=self._arrivals.child_bytes,
        )

    def _refusal(self, needs: str, needed_bytes: int, available_bytes: int, *, never: bool) -> ModelHostError:
        holders = sorted(self._table, key=lambda slot: -slot.committed_bytes)
        held_by = tuple(info(slot).as_dict() for slot in holders if slot.committed_bytes)[:_HOLDERS_NAMED]
        thresholds = self._memory.thresholds
        room = (
            f"{format_bytes(available_bytes)} {'would be' if never else 'are'} free below critical "
            f"({format_bytes(thresholds.critical_bytes)} of {format_bytes(thresholds.limit_bytes)})"
        )
        if never:
            text = f"{needs} and can never fit: with nothing else loaded {room}; {_ELSEWHERE}"
        else:
            names = ", ".join(f"{holder['name']} {format_bytes(holder['committed_bytes'])}" for holder in held_by)
            text = f"{needs}; {room}, even without what is idle; loaded are: {names or 'none'}"
        kind = NeverFits if never else InsufficientMemory
        log.warning("refused: %s", text)
        return kind(text, needed_bytes=needed_bytes, available_bytes=available_bytes, held_by=held_by)

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

        self._background.spawn(run())

    def _begin_beside(self, action: Coroutine[Any, Any, Any]) -> None:
        """Starts an action whose outcome other decisions need not wait for."""

        async def run() -> None:
            try:
                await action
            finally:
                self.pump()

        self._background.spawn(run())
        asyncio.get_running_loop().call_soon(self.pump)

    async def _inspect(self, slot: Slot) -> None:
        """Reads the face of a queued slot's model; a broken one is dropped."""
        try:
            path = slot.file.path
            slot.stamp = await self._catalog.on_disk(lambda: self._runtime.stamp(path))
            slot.inspection = await self.faces.inspect(slot.file)
        except Exception as error:
            self._arrivals.fail(slot, error)
        else:
            self.pump()


def _decide_on_load(figures: Figures, plan: LoadPlan) -> Decision:
    return decide(
        figures,
        resident_bytes=plan.resident_bytes,
        peak_bytes=plan.peak_bytes,
        in_small_blocks=_is_in_small_blocks(plan),
    )


def _sparing(figures: Figures, former: Slot | None) -> Figures:
    """Has what will be replaced leave last of all idle models."""
    if former is None or not former.is_idle:
        return figures
    others = _without(figures, former).idle
    return replace(figures, idle=(*others, *[one for one in figures.idle if one.key == former.key]))


def _without(figures: Figures, former: Slot | None) -> Figures:
    """Leaves what will be replaced out of the idle models."""
    if former is None:
        return figures
    return replace(figures, idle=[one for one in figures.idle if one.key != former.key])


def _largest_child(figures: Figures) -> int:
    """Returns the most that a child can be given, in bytes.

    That is what was free when the host was empty; where nothing is in use that could still come free, it
    is what there is, since a host that has worked never gets quite as empty again.
    """
    largest = figures.critical_bytes - figures.baseline_bytes - 1
    if figures.in_use_bytes:
        return largest
    idle = sum(candidate.committed_bytes for candidate in figures.idle if not candidate.pinned)
    return min(largest, figures.critical_bytes - figures.usage_bytes - figures.reserved_bytes + idle - 1)


def _ceiling(slot: Slot, preparation: Preparation, largest_bytes: int) -> int:
    """Returns what a child is given: what most likely does, or most of what there is, and all of it where that was not
    enough; more than that where that never does."""
    if preparation.least_bytes > largest_bytes:
        return preparation.least_bytes
    wanted_bytes, most_bytes = _wanted_by_child(slot, preparation), int(largest_bytes * _CHILD_SHARE)
    if max(preparation.least_bytes, slot.tried_bytes + 1) <= most_bytes < wanted_bytes:
        return most_bytes
    return min(wanted_bytes, largest_bytes)


def _wanted_by_child(slot: Slot, preparation: Preparation) -> int:
    """Returns what a child is likely to need: twice of what was not enough."""
    return 2 * slot.tried_bytes or preparation.likely_bytes


def _is_in_small_blocks(plan: LoadPlan) -> bool:
    return plan.variant != "heap" and plan.resident_bytes <= _SMALL_LOAD_BYTES


def _loading(key: ModelKey, plan: LoadPlan) -> str:
    return f"loading {key} needs {format_bytes(plan.peak_bytes)}"


def _first_look(key: ModelKey, needed_bytes: int) -> str:
    return f"opening {key} for the first time, in a child process, needs {format_bytes(needed_bytes)}"
