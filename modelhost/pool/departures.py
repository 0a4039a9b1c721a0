"""How models leave: out of reach first, then their memory, then whatever wants them again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from modelhost.config import PoolSettings
from modelhost.errors import HostClosed, ModelHostError
from modelhost.memory import CleanupGoal, CleanupPlan, MemoryManager, Recovery
from modelhost.pool.accounts import Accounts
from modelhost.pool.background import Background
from modelhost.pool.catalog import Catalog
from modelhost.pool.eviction import Candidate, choose_victims, without_slight
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.table import SlotTable
from modelhost.runtime.base import LoadedModel, Runtime

log = logging.getLogger("modelhost")

#: A model that was not used for so long before it left is cold: the pages of its files go with it. One
#: that left sooner is often wanted again, and what the kernel needs of its pages it takes.
_COLD_S: Final = 60.0


class Departures:
    """Unloads, evictions and expiries. Event-loop thread; memory is given back on the memory thread.

    `wanted_again` is called with a slot that requests came for while it left; it is queued again.
    """

    def __init__(
        self,
        *,
        table: SlotTable,
        catalog: Catalog,
        runtime: Runtime,
        memory: MemoryManager,
        background: Background,
        accounts: Accounts,
        settings: PoolSettings,
        clock: Callable[[], float],
        wanted_again: Callable[[Slot], None],
    ) -> None:
        self._table, self._catalog, self._runtime, self._memory = table, catalog, runtime, memory
        self._background, self._accounts, self._settings = background, accounts, settings
        self._counters = accounts.counters
        self._clock, self._wanted_again = clock, wanted_again
        self.departed: Callable[[Slot], None] = lambda slot: None
        """Called with a slot that has gone."""
        self._is_closed = False

    def close(self) -> None:
        """Queues nothing again from here on."""
        self._is_closed = True

    # --- on request ----------------------------------------------------------------------------------

    def let_go(self, slot: Slot, *, cause: str) -> None:
        """Unloads a ready slot: at once where it is idle, else when its last lease has ended."""
        if slot.leases:
            self._table.drain(slot)
        else:
            self.depart(slot, cause=cause)

    def replace(self, slot: Slot | None) -> None:
        """Lets go of what a successor has taken the place of, as soon as its leases have ended."""
        if slot is not None and slot.state is SlotState.READY:
            self.let_go(slot, cause="its files changed")

    def depart(self, slot: Slot, *, cause: str) -> None:
        """Takes an idle slot out of reach at once and gives its memory back; its departures are told."""
        plan = self.plan([slot])
        departures, slot.departures = slot.departures, []

        async def run() -> None:
            recovery: Recovery | None = None
            try:
                recovery = await self._memory.recover(plan, cause=cause)
                self._counters.unloads += 1
            finally:
                for waiter in departures:
                    waiter.set(recovery)

        self._background.spawn(run())

    async def unload_all(self) -> None:
        """Gives back the memory of all models; their runs have ended, leases that are still held are void."""
        loaded = [slot for slot in self._table if slot.model is not None]
        if loaded:
            await self._memory.recover(self.plan(loaded), cause="shutdown")

    # --- on their own --------------------------------------------------------------------------------

    def evict(self, victims: Iterable[Candidate]) -> CleanupPlan:
        """Takes idle models out of reach, and returns how to give their memory back."""
        slots = [slot for victim in victims if (slot := self._table.get(victim.key)) is not None]
        now = self._clock()
        self._accounts.evicted((slot.key, now - slot.idle_since) for slot in slots)
        self._table.evicted(slots)
        return self.plan(slots)

    def clean(self, goal: CleanupGoal) -> CleanupPlan | None:
        """Answers the memory manager: idle models in the order of `pool.eviction`, or all of them."""
        wanted = math.inf if goal.everything else goal.excess_bytes
        victims = choose_victims(self._table.candidates(), wanted)
        if not goal.everything and sum(victim.committed_bytes for victim in victims) < wanted:
            victims = without_slight(victims, wanted)
        if not victims:
            return None
        plan = self.evict(victims)
        log.info("%s leave", ", ".join(plan.victims))
        return plan

    def expire(self) -> None:
        """Lets those go that nobody has used for `pool.idle_ttl`."""
        ttl_s = self._settings.idle_ttl
        if not ttl_s or self._memory.is_changing or self._is_closed:
            return
        slots = self._table.resting(self._clock() - ttl_s)
        if not slots:
            return
        self._counters.expiries += len(slots)
        self._background.spawn(self._memory.recover(self.plan(slots), cause="idle_ttl"))

    # --- inside --------------------------------------------------------------------------------------

    def plan(self, slots: Iterable[Slot]) -> CleanupPlan:
        """Takes idle (or drained) slots out of reach, and returns how to give their memory back."""
        leaving = list(slots)
        models: list[LoadedModel] = []
        held_bytes = sum(slot.committed_bytes for slot in leaving)
        for slot in leaving:
            self._table.withdraw(slot)
            assert slot.model is not None
            assert slot.reservation is not None
            models.append(slot.model)
            slot.model = None
            slot.refused = None
            slot.reservation.leave()

        def act() -> None:
            while models:
                try:
                    models.pop().close()
                except Exception:  # the others' memory must come back all the same
                    log.exception("a model could not be closed")

        return CleanupPlan(
            victims=tuple(str(slot.key) for slot in leaving),
            expected_bytes=held_bytes,
            act=act,
            done=lambda: self._departed(leaving),
        )

    def _departed(self, slots: Iterable[Slot]) -> None:
        """Ends the reservations; a slot that is wanted again goes back to the queue."""
        cold: list[Path] = []
        cold_since = self._clock() - min(_COLD_S, self._settings.idle_ttl or _COLD_S)
        for slot in slots:
            assert slot.reservation is not None
            slot.reservation.end()
            slot.reservation = None
            is_replaced = self._table.get(slot.key) is not slot
            if (successor := slot.successor) is not None:
                self._table.succeed(successor)
                is_replaced = True
                if successor.state is SlotState.QUEUED and not successor.is_needed:
                    self._table.drop(successor, HostClosed("nobody waits for it"))
            if not slot.waiters or self._is_closed:
                if slot.idle_since <= cold_since and not is_replaced:
                    cold.append(slot.file.path)
                self._table.drop(slot, HostClosed("the host is shutting down"))
                self.departed(slot)
                continue
            try:  # the files and their options may be others now
                slot.file = self._catalog.find(slot.key.name, slot.key.version)
            except ModelHostError as error:
                self._table.drop(slot, error)
                self.departed(slot)
                continue
            slot.options = self._catalog.options(slot.file)
            slot.pinned, slot.refused = slot.options.pinned, None
            self._table.requeue(slot)
            self._wanted_again(slot)
        if cold and not self._is_closed:
            self._background.spawn(self._forget_pages(cold))

    async def _forget_pages(self, paths: Iterable[Path]) -> None:
        for path in paths:
            await self._catalog.on_disk(partial(self._runtime.forget, path))
