"""How models come: a child opens one first where nobody knows what it takes; then it is loaded.

The reservation is made before the work begins, in the same plain function, and ends or settles on
every path. Both kinds of work go on when the requests that caused them have left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from modelhost.config import PoolSettings
from modelhost.errors import HostClosed, ModelBroken, ModelHostError, ModelNotFound, NeverFits, Overloaded
from modelhost.memory import MemoryManager
from modelhost.memory.board import Figure
from modelhost.pool.accounts import Accounts
from modelhost.pool.background import Background
from modelhost.pool.catalog import Catalog
from modelhost.pool.departures import Departures
from modelhost.pool.descriptors import no_descriptor
from modelhost.pool.faces import Faces
from modelhost.pool.failures import Failures
from modelhost.pool.load_watch import LoadWatch
from modelhost.pool.loader import Footprints, Settled
from modelhost.pool.slot import Refused, Slot, SlotState
from modelhost.pool.table import SlotTable
from modelhost.pool.trial import Trial
from modelhost.prepare.failures import is_no_descriptor
from modelhost.runtime.base import (
    ArtifactUnusable,
    CancelToken,
    LoadedModel,
    LoadError,
    LoadPlan,
    NeedsMemory,
    NoDescriptor,
    Runtime,
)
from modelhost.threads import one_thread
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

#: Children and unusable artifacts, one after another, before a model counts as broken. Files that change
#: all the time end here too.
_MAX_LOOKS: Final = 4

#: What is to replace another model, and found no descriptor, is looked at again after so long.
_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class _UnderWay:
    """A child, or a load, in progress."""

    slot: Slot
    cancel: CancelToken
    is_recalled: bool = False
    """Whether it was stopped since what it may take is not there any more."""


class Arrivals:
    """First looks and loads. Event-loop thread; a child is waited for on a thread of its own.

    `again` is called with a slot that has been queued again and has to be looked at anew.
    """

    def __init__(
        self,
        *,
        table: SlotTable,
        catalog: Catalog,
        runtime: Runtime,
        memory: MemoryManager,
        faces: Faces,
        failures: Failures,
        accounts: Accounts,
        settings: PoolSettings,
        departures: Departures,
        background: Background,
        clock: Callable[[], float],
        again: Callable[[Slot], None],
    ) -> None:
        self._table, self._catalog, self._runtime, self._memory = table, catalog, runtime, memory
        self._faces, self._failures, self._settings = faces, failures, settings
        self._accounts, self._counters = accounts, accounts.counters
        self._departures, self._clock, self._again = departures, clock, again
        self._background, self._trial = background, Trial(table)
        self.served: Callable[[Slot], None] = lambda slot: None
        """Called with a slot that has just become ready."""
        self.footprints = Footprints()
        self._child: _UnderWay | None = None
        self._load: _UnderWay | None = None
        self._builder = one_thread("modelhost-prepare")
        self.overdue: LoadWatch | None = None
        """The load that did not end when it was stopped, and holds all others up."""
        self._is_closed = False

    def close(self) -> None:
        """Ends the child, if there is one; what is loading ends by itself."""
        self._is_closed = True
        if self._child is not None:
            self._child.cancel.cancel()

    def recall(self) -> None:
        """Stops child and load in progress where, as the limit was lowered, they do not fit any more.

        They were let in under the former limit; the kernel would kill for what is still to come. They wait for
        memory again, and nobody is refused for it.
        """
        memory = self._memory.memory_info()
        if memory.usage_bytes + memory.reserved_bytes - self.seen_bytes < memory.critical_bytes:
            return
        for one in (self._child, self._load):
            if one is not None and not one.is_recalled:
                log.warning("%s is stopped, as the memory limit was lowered; it waits for memory again", one.slot.key)
                one.is_recalled = True
                one.cancel.cancel()

    def give_way(self) -> None:
        """Stops a load in progress that no request waits for, and that was only likely to be wanted."""
        load = self._load
        if load is not None and load.slot.is_unused and not load.is_recalled:
            load.slot.is_predicted, load.is_recalled = False, True
            load.cancel.cancel()

    def shutdown(self) -> None:
        """Ends the thread, when nothing is under way any more."""
        self._builder.shutdown()

    # --- a first look --------------------------------------------------------------------------------

    @property
    def is_preparing(self) -> bool:
        """Whether a child is at work; there is one at a time."""
        return self._child is not None

    @property
    def child_bytes(self) -> int:
        """What is reserved for the child at work; 0 where there is none."""
        return 0 if self._child is None else self._child.slot.committed_bytes

    @property
    def seen_bytes(self) -> int:
        """What of the child's reservation shows in usage already."""
        if self._child is None or not self._memory.probe.sees_children:
            return 0
        return min(self.child_bytes, self._runtime.preparing_bytes())

    def prepare(self, slot: Slot, ceiling_bytes: int, *, is_last: bool) -> Coroutine[Any, Any, None]:
        """Reserves at once; the coroutine has a child open the model, and queues the slot again."""
        cancel = CancelToken()
        slot.move(SlotState.PREPARING)
        slot.looks += 1
        self._table.queue.remove(slot)
        slot.reservation = self._memory.ledger.reserve(f"preparing {slot.key}", ceiling_bytes)
        child = self._child = _UnderWay(slot, cancel)
        siblings = self._memory.siblings
        siblings.publish(Figure.IS_PREPARING, 1)
        file, options = slot.file, slot.options
        log.info("preparing %s, which nobody has opened yet; up to %s", slot.key, format_bytes(ceiling_bytes))

        def work() -> None:
            self._runtime.prepare(file.path, options, ceiling_bytes=ceiling_bytes, is_last=is_last, cancel=cancel)

        async def run() -> None:
            started, error = self._clock(), None
            try:
                await asyncio.get_running_loop().run_in_executor(self._builder, work)
            except Exception as caught:
                error = caught
            finally:
                self._child = None
                siblings.publish(Figure.IS_PREPARING, 0)
                self._end_reservation(slot)
                siblings.poke()
            if child.is_recalled and error is not None and not self._is_closed:
                slot.looks -= 1
                self.look_again(slot)
            else:
                self._prepared(slot, error, ceiling_bytes, self._clock() - started, is_last=is_last)

        return run()

    def _prepared(
        self, slot: Slot, error: Exception | None, ceiling_bytes: int, took_s: float, *, is_last: bool
    ) -> None:
        self._counters.preparations += 1
        self._counters.preparation_seconds += took_s
        if self._is_closed:
            self._table.drop(slot, HostClosed("the host is shutting down"))
        elif error is None:
            log.info("prepared %s in %.1f s", slot.key, took_s)
            self.look_again(slot)
        elif isinstance(error, NeedsMemory) and not is_last:
            slot.tried_bytes = ceiling_bytes
            slot.looks -= 1  # ends at what there is
            self.look_again(slot)
        elif isinstance(error, NeedsMemory):
            self._counters.preparation_failures += 1
            self._faces.forget(slot.key)  # the runtime knows better now what a child needs at least
            self.fail(slot, self._too_large(slot, error, ceiling_bytes))
        else:
            self._counters.preparation_failures += 1
            self.fail(slot, error)

    def look_again(self, slot: Slot) -> None:
        """Queues a slot whose model has to be looked at anew, at the head; drops it where nobody waits."""
        self._faces.forget(slot.key)
        if not slot.is_needed:
            self._table.drop(slot, HostClosed("nobody waits for it"))
        elif slot.looks > _MAX_LOOKS:
            self.fail(slot, LoadError(f"its figures were not settled after {slot.looks} looks"))
        else:
            self._table.requeue(slot, is_first=True)
            self._again(slot)

    def _too_large(self, slot: Slot, error: NeedsMemory, ceiling_bytes: int) -> NeverFits:
        found = self._memory.thresholds
        return NeverFits(
            f"{slot.key} could not be opened in a child process, which had all the {format_bytes(ceiling_bytes)} below "
            f"critical ({format_bytes(found.critical_bytes)} of {format_bytes(found.limit_bytes)}): {error}. Prepare "
            "it where there is more (modelhost prepare): a prepared model needs much less",
            needed_bytes=ceiling_bytes + 1,
            available_bytes=ceiling_bytes,
        )

    # --- loading ---------------------------------------------------------------------------------------

    def load(self, slot: Slot, plan: LoadPlan) -> Coroutine[Any, Any, None]:
        """Reserves at once; the coroutine loads, settles and grants."""
        self._table.loading(slot)
        slot.reservation = self._memory.ledger.reserve(str(slot.key), plan.peak_bytes)
        cancel, inspection, file, stamp = CancelToken(), slot.inspection, slot.file, slot.stamp
        assert inspection is not None
        load = self._load = _UnderWay(slot, cancel)

        def work() -> LoadedModel:
            model = self._runtime.load(file.path, plan, inspection, cancel)
            # A prepared model's files are its own; others may have been written to while they were read.
            if plan.artifact is None and self._runtime.stamp(file.path) != stamp:
                model.close()
                raise ArtifactUnusable("its files changed while it was loaded")
            return model

        async def run() -> None:
            watch = LoadWatch(slot.key, self._settings.load_timeout_s, cancel, self._say_overdue)
            started = self._clock()
            try:
                model, measured = await self._memory.change(work)
            except ArtifactUnusable as error:
                log.warning("%s: %s", slot.key, error)
                slot.looks += 1
                self._end_reservation(slot)
                self.look_again(slot)
                return
            except BaseException as error:
                if load.is_recalled and isinstance(error, Exception) and not self._is_closed:
                    self._end_reservation(slot)
                    self.look_again(slot)
                    return
                self.fail(slot, error)
                if not isinstance(error, Exception):
                    raise
                return
            finally:
                watch.end()
                self.overdue = self._load = None
            took_s = self._clock() - started
            settled = self.footprints.settle(slot.key, inspection, plan, measured)
            self._loaded(slot, model, settled, took_s)
            if settled.is_off:
                await self._note_error(slot, plan, settled)

        return run()

    def _say_overdue(self, watch: LoadWatch) -> None:
        """Refuses who waits for a load while one does not end that should have been stopped: nothing else can load.

        It counts until it ends: its reservation stays, and its model serves where it was loaded after all.
        """
        self.overdue = watch
        log.error("%s", watch.text())
        for slot in self._table:
            if slot.state in (SlotState.QUEUED, SlotState.LOADING):
                waiters, slot.waiters = slot.waiters, []
                for waiter in waiters:
                    waiter.fail(watch.refusal(slot.key))
                if slot.state is SlotState.QUEUED and not slot.is_needed:
                    self._table.drop(slot, watch.refusal(slot.key))

    def _loaded(self, slot: Slot, model: LoadedModel, settled: Settled, took_s: float) -> None:
        """Settles the reservation, and has the model serve, or be tried first where another one still serves."""
        assert slot.reservation is not None
        slot.reservation.settle(settled.size_bytes)
        slot.model = model
        slot.looks, slot.tried_bytes = 0, 0
        slot.load_s, slot.worth = took_s, None
        if slot.is_predicted:
            self._accounts.counters.predicted_loads += 1
        self._accounts.loaded(slot.key, took_s)
        self._counters.note_error(settled.error_bytes)
        log.info("loaded %s in %.0f ms, %s", slot.key, took_s * 1e3, format_bytes(settled.size_bytes))
        if slot.is_unproven and not slot.departures and not self._is_closed:
            slot.move(SlotState.TRIAL)
            self._background.spawn(self._try(slot))
        elif self._table.has_place(slot):
            self._serve(slot)
        else:
            slot.move(SlotState.TRIAL)
            self._discard(slot, HostClosed(f"{slot.key} was unloaded"))

    async def _try(self, slot: Slot) -> None:
        """Has a loaded model run once, and serve where that went well."""
        error = await self._trial.fails(slot)
        if self._is_closed:
            return  # it is unloaded with all the others
        if not self._table.has_place(slot):
            self._discard(slot, HostClosed(f"{slot.key} was unloaded"))
        elif error is None or slot.departures:
            self._serve(slot)
        else:
            self._report(slot, error)
            self._discard(slot, error)

    def _discard(self, slot: Slot, error: ModelHostError) -> None:
        """Lets go of a loaded model that never served."""
        waiters, slot.waiters = slot.waiters, []
        for waiter in waiters:
            waiter.fail(error)
        slot.is_wanted = False
        self._departures.depart(slot, cause="it will not serve")

    def _serve(self, slot: Slot) -> None:
        """Makes a loaded slot ready, in the place of what it replaces; grants the waiters that are still there."""
        is_unproven, replaced = slot.is_unproven, self._table.succeed(slot)
        self._table.ready(slot)
        self._memory.sharing.publish_idle()
        self._failures.forget(slot.key)
        self._departures.replace(replaced)
        if is_unproven:
            self._counters.swaps += 1
            log.info("%s answers from its new files", slot.key)
        if slot.departures:  # somebody asked for its unload while it was loading
            self._departures.let_go(slot, cause="unload")
        self.served(slot)

    async def _note_error(self, slot: Slot, plan: LoadPlan, settled: Settled) -> None:
        """Records a wrong prediction; the figure grows to the truth, for other hosts and starts too."""
        self._memory.record(
            "misprediction",
            cause=f"load of {slot.key}",
            details={"predicted_bytes": plan.resident_bytes, "measured_bytes": settled.size_bytes},
        )
        if settled.error_bytes > 0:
            path = slot.file.path
            await self._catalog.on_disk(lambda: self._runtime.learn(path, plan, settled.size_bytes))

    # --- failing ---------------------------------------------------------------------------------------

    def fail(self, slot: Slot, error: BaseException) -> None:
        """Ends a look or a load that failed: no reservation and no waiter is left, and the failure is remembered."""
        self._end_reservation(slot)
        if slot.state is SlotState.GONE:
            return
        if isinstance(error, ModelNotFound):
            self._table.drop(slot, error)
            return
        if isinstance(error, NoDescriptor) or is_no_descriptor(error):
            error = no_descriptor(slot.key, self._memory.conditions)
        if isinstance(error, Overloaded):
            self._put_off(slot, error)
            return
        reported: ModelHostError
        if isinstance(error, ModelBroken | NeverFits):
            reported = error
        else:
            reason = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
            reported = ModelBroken(slot.key.name, slot.key.version, reason)
        self._accounts.load_failed(slot.key, str(reported))
        self._report(slot, reported)
        self._table.drop(slot, reported)

    def _put_off(self, slot: Slot, refusal: Overloaded) -> None:
        """Refuses who waits now for a model with which nothing is wrong; what is to take another one's place is tried
        again soon."""
        waiters, slot.waiters = slot.waiters, []
        for waiter in waiters:
            waiter.fail(refusal)
        if not slot.is_needed or self._is_closed:
            self._table.drop(slot, refusal)
            return
        if slot.state is not SlotState.QUEUED:
            self._table.requeue(slot)
        slot.inspection = None
        asyncio.get_running_loop().call_later(_AGAIN_S, self._try_again, slot)

    def _try_again(self, slot: Slot) -> None:
        if slot.state is SlotState.QUEUED and slot.inspection is None:
            self._again(slot)

    def _report(self, slot: Slot, error: ModelHostError) -> None:
        """Remembers why a model cannot be loaded, or why a change of its files is not served."""
        served = slot.predecessor
        if served is None:
            self._failures.note(slot.key, error, self._clock(), slot.stamp)
            log.warning("%s", error)
            if not slot.is_wanted:
                return
        else:
            served.refused = Refused(slot.stamp, slot.options, error)
            log.warning("%s goes on with what it has loaded, its new files are not served: %s", slot.key, error)
        self._counters.swap_failures += 1
        self._memory.record("swap_failed", cause=f"new files of {slot.key}", details={"reason": str(error)})

    def _end_reservation(self, slot: Slot) -> None:
        if slot.reservation is not None:
            slot.reservation.end()
            slot.reservation = None
