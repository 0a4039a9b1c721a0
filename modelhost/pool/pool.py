"""The pool as others see it: leases, explicit loads and unloads, views. See DESIGN.md beside this file.

Everything here runs on the event-loop thread. State changes in plain functions that never wait;
coroutines only orchestrate.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from modelhost.config import BatchingSettings, ModelsSettings, PoolSettings
from modelhost.errors import (
    DeadlineExceeded,
    HeldElsewhere,
    HostClosed,
    ModelBroken,
    ModelHostError,
    ModelNotFound,
    Overloaded,
)
from modelhost.memory import MemoryManager, Recovery
from modelhost.pool.activations import ActivationGate
from modelhost.pool.batch import BatchRule
from modelhost.pool.bounds import QueueBound
from modelhost.pool.catalog import Catalog
from modelhost.pool.key import ModelKey
from modelhost.pool.lease import Lease
from modelhost.pool.loader import LoadPeaks
from modelhost.pool.restarts import Restarts
from modelhost.pool.runner import Runner
from modelhost.pool.scheduler import Scheduler
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.snapshot import ModelInfo, PoolCounters, PoolSnapshot
from modelhost.pool.statistics import Statistics
from modelhost.pool.table import SlotTable, info
from modelhost.pool.waiter import Waiter
from modelhost.pool.worth import eviction_order
from modelhost.repository import ModelFile, Repository
from modelhost.runtime.base import Inspection, LoadedModel, Runtime
from modelhost.threads import one_thread


class Pool:
    """Loads models when a lease is asked for, and lets idle ones go when memory asks for it.

    `runner` has the inference threads; loads and unloads run on the memory manager's thread, looks
    at files on one of the pool's own. `activation_ceiling_bytes` is what the runtime's arena may grow to.
    """

    def __init__(
        self,
        *,
        repository: Repository,
        runtime: Runtime,
        memory: MemoryManager,
        runner: Runner,
        activation_ceiling_bytes: int,
        settings: PoolSettings,
        models: ModelsSettings,
        batching: BatchingSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        batching = batching or BatchingSettings()
        self.runner = runner
        self._disk = one_thread("modelhost-disk")
        self.catalog = Catalog(repository, models, self._disk, clock=clock)
        self._runtime, self._memory, self._settings, self._clock = runtime, memory, settings, clock
        self.activations = ActivationGate(
            activation_ceiling_bytes,
            max_waiting=runner.max_waiting,
            max_waiting_per_model=runner.max_waiting_per_model,
            memory=memory,
            threads=runner.threads,
            preparing_bytes=runtime.preparing_bytes,
        )
        self.statistics = Statistics()
        self._table = SlotTable(
            runner,
            self.activations,
            statistics=self.statistics,
            batching=BatchRule(batching.max_rows, batching.max_delay) if batching.enabled else None,
            order=eviction_order(settings.eviction),
            siblings=memory.siblings,
            clock=clock,
            wall_clock=wall_clock,
        )
        self._scheduler = Scheduler(
            table=self._table,
            catalog=self.catalog,
            runtime=runtime,
            memory=memory,
            runner=runner,
            settings=settings,
            clock=clock,
        )
        self.accounts = self._scheduler.accounts
        """Loads, evictions and cold starts of each model, to be looked at."""
        self._bound = QueueBound(settings.max_waiting, runner.max_waiting_per_model)
        self._restarts = Restarts(
            departures=self._scheduler.departures,
            memory=memory,
            counters=self.accounts.counters,
            settings=settings,
            clock=clock,
            acquire=partial(self.acquire, is_request=False),
            is_unwanted=self._table.unloaded.__contains__,
        )
        self._scheduler.watch = self._restarts.watch
        memory.sharing.read_idle = lambda: (self.evictable_bytes, self._table.rests_since)
        if settings.predictive:
            self._predict()
        self._is_closed = False

    def _predict(self) -> None:
        """Has models loaded ahead that will likely be wanted."""
        from modelhost.pool.predictive import Predictive  # most hosts do without

        predictive = Predictive(
            table=self._table,
            catalog=self.catalog,
            memory=self._memory,
            runner=self.runner,
            failures=self._scheduler.failures,
            counters=self.accounts.counters,
            begin=self._scheduler.load_ahead,
            clock=self._clock,
        )
        self._memory.on_change(lambda: None if self._is_closed else predictive.look())

    # --- leases ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self, name: str, version: str | None = None, *, deadline: float | None = None
    ) -> AsyncIterator[Lease]:
        """Holds a model loaded for the scope; see `acquire`."""
        lease = await self.acquire(name, version, deadline=deadline)
        try:
            yield lease
        finally:
            lease.end()

    async def acquire(
        self, name: str, version: str | None = None, *, deadline: float | None = None, is_request: bool = True
    ) -> Lease:
        """Returns a lease, which the caller has to end; loads the model where it is not loaded.

        A load that is waited for counts as a cold start unless no request asks for it (`is_request`).
        Waits until `deadline` (the event loop's clock) or `pool.wait_timeout_s`. Raises ModelNotFound,
        ModelBroken, NeverFits, InsufficientMemory (HeldElsewhere where another process of the host can
        answer), Overloaded, DeadlineExceeded or HostClosed.
        """
        self._check_open()
        loop = asyncio.get_running_loop()
        started = loop.time()
        until = started + self._settings.wait_timeout_s
        until = until if deadline is None else min(deadline, until)
        try:
            async with asyncio.timeout_at(until):
                await self.catalog.find_fresh(name, version)
        except TimeoutError:
            raise DeadlineExceeded(f"looking for the model '{name}'", waited_s=loop.time() - started) from None
        return await self.acquire_known(name, version, deadline=until, is_request=is_request)

    async def acquire_known(
        self, name: str, version: str | None = None, *, deadline: float | None = None, is_request: bool = True
    ) -> Lease:
        """Like `acquire`, for a model that was found before; nothing looks at the disk.

        Without a version it is the one that answers by default when the lease is granted: another one may have
        taken over since the model was found, or while its load was waited for.
        """
        self._check_open()
        while True:
            file = self.catalog.find(name, version)
            slot = self._table.get(ModelKey.of(file))
            if slot is not None and slot.state is SlotState.READY:
                self._table.unloaded.discard(file.name)
                return self._table.grant(slot)
            held = self._scheduler.elsewhere.recent(ModelKey.of(file)) if slot is None and is_request else None
            if held is not None:
                raise held
            began = self._clock()
            try:
                lease = await self._wait_for_grant(file, deadline)
            except ModelNotFound:
                if self.catalog.find(name, version).version == file.version:
                    raise
            else:
                if is_request:
                    waited_s = self._clock() - began
                    self.accounts.started_cold(lease.key, waited_s)
                    lease.waited_ns = round(waited_s * 1e9)
                return lease

    def resident(self, target: tuple[str, str | None]) -> Slot | None:
        """Returns the slot of a model (name and version) that is ready, to be used before anybody else has a
        turn; None where it has to be looked for or waited for."""
        key = self.catalog.known_keys.get(target)
        slot = None if key is None or self._is_closed else self._table.get(key)
        return slot if slot is not None and slot.state is SlotState.READY else None

    def not_elsewhere(self, key: ModelKey) -> None:
        """Has it decided anew whether a model fits here, as the process that held it has ended or let go of it."""
        self._scheduler.elsewhere.forget(key)

    def known(self, target: tuple[str, str | None]) -> ModelFile | None:
        """Returns the file of a model that was asked for before; None for others."""
        return self.catalog.known(target)

    def grant(self, slot: Slot) -> Lease:
        """Returns a lease on what `resident` gave; the caller has to end it."""
        return self._table.grant(slot)

    def touch(self, slot: Slot) -> None:
        """Notes that what `resident` gave was used in place."""
        self._table.touch(slot)

    async def _wait_for_grant(self, file: ModelFile, deadline: float | None) -> Lease:
        self._check_waiting(ModelKey.of(file))
        return await self._wait_for_slot(self._slot(file), deadline)

    async def _wait_for_slot(self, slot: Slot, deadline: float | None) -> Lease:
        loop = asyncio.get_running_loop()
        started = loop.time()
        until = started + self._settings.wait_timeout_s
        waiter: Waiter[Lease] = Waiter()
        slot.waiters.append(waiter)
        try:
            async with asyncio.timeout_at(until if deadline is None else min(deadline, until)):
                lease = await waiter.wait()
        except BaseException as error:
            self._leave(slot, waiter)
            if isinstance(error, TimeoutError):
                error = DeadlineExceeded(f"loading {slot.key}", waited_s=loop.time() - started)
            if isinstance(error, ModelHostError):
                if not isinstance(error, HeldElsewhere):  # which is answered there
                    self.accounts.counters.refuse(error.code)
                # Waiters share one error; each raises its own, else tracebacks pile up on it.
                raise error.twin() from None
            raise
        return lease

    def _check_waiting(self, key: ModelKey) -> None:
        """Raises Overloaded where too many wait already, in all or for this model, and where no load can begin."""
        if (overdue := self._scheduler.overdue) is not None:
            raise overdue.refusal(key)
        slot, waiting = self._table.get(key), self._table.waiting
        own_waiting, own_limit = (0, None) if slot is None else (len(slot.waiters), slot.options.max_queue)
        if self._bound.is_full(waiting, own_waiting, own_limit):
            self.accounts.counters.refuse(Overloaded.code)
            raise self._bound.refusal("the queue for models", str(key), waiting, own_waiting, own_limit)

    def _slot(self, file: ModelFile) -> Slot:
        """Returns the model's slot, a new one where there is none. Raises an error that is fresh."""
        key = ModelKey.of(file)
        if (restarting := self._restarts.recent(key)) is not None:
            raise restarting
        slot = self._table.get(key)
        if slot is None:
            failure = self._scheduler.failures.recent(key, self._clock())
            if failure is not None:
                raise failure.twin()
            slot = self._scheduler.changes.slot_for(file)
            self._table.add(slot)
            self._scheduler.enqueue(slot)
        return slot

    def _leave(self, slot: Slot, waiter: Waiter[Lease]) -> None:
        """Ends a wait without a lease: gives back one that was just handed over, drops a load that
        has not begun and that nobody else wants."""
        lease = waiter.leave()
        if lease is not None:
            lease.end()
        for held_by in (slot, self._table.get(slot.key)):  # another one may have taken its place, and those who wait
            if held_by is not None and waiter in held_by.waiters:
                held_by.waiters.remove(waiter)
                if not held_by.waiters and held_by.state is SlotState.QUEUED:
                    self._scheduler.forget(held_by)

    @property
    def evictable_bytes(self) -> int:
        """What models hold that would leave where memory has to come back, those in use included."""
        return sum(slot.committed_bytes for slot in self._table if slot.model is not None and not slot.is_kept)

    @property
    def kept_bytes(self) -> int:
        """What models hold that never leave to make room."""
        return sum(slot.committed_bytes for slot in self._table if slot.is_kept)

    @property
    def counters(self) -> PoolCounters:
        """The totals as they count on, to be read; `snapshot` has those of one moment."""
        return self._scheduler.counters

    def take_load_peaks(self) -> LoadPeaks:
        """Returns the largest figures of loads since the last call."""
        return self._scheduler.take_load_peaks()

    @property
    def can_evict(self) -> bool:
        """Whether a model could leave to make room now."""
        return self._table.can_evict

    # --- explicit load and unload ------------------------------------------------------------------

    async def load(self, name: str, version: str | None = None) -> ModelInfo:
        """Loads a model, again where its files have changed; returns when it is ready.

        Forgets a remembered failure first. Raises what `acquire` raises.
        """
        self._check_open()
        await self.catalog.scan()
        file = self.catalog.find(name, version)
        key = ModelKey.of(file)
        self._scheduler.failures.forget(key)
        self._restarts.forget(key)
        slot, changes = self._table.get(key), self._scheduler.changes
        if slot is not None and slot.state is SlotState.READY and await changes.is_changed(slot):
            if slot.state is SlotState.READY and self._table.get(key) is slot:
                slot = changes.replace(slot)
                lease = await self._wait_for_slot(slot, None)
            else:  # somebody was faster
                lease = await self.acquire_known(*key, is_request=False)
        else:
            lease = await self.acquire_known(*key, is_request=False)
        slot = self._table.get(key)
        assert slot is not None  # the lease holds it
        lease.end()
        return info(slot)

    async def unload(self, name: str, version: str | None = None) -> tuple[Recovery, ...]:
        """Unloads a model (all its versions by default); returns when its memory is back.

        Waits for its leases to end, up to `pool.wait_timeout_s`, and grants no new one meanwhile;
        the unload goes on when that time is over. A model that is not loaded is no error.
        Raises ModelNotFound or DeadlineExceeded.
        """
        self._check_open()
        slots = [slot for slot in self._table if slot.key.name == name and version in (None, slot.key.version)]
        if not slots:  # what is loaded can be unloaded even if its files have gone
            await self.catalog.find_fresh(name, version)
        if version is None:
            self._table.unloaded.add(name)
        for slot in slots:
            self._scheduler.changes.abandon(slot)
        recoveries = await asyncio.gather(*(self._unload_slot(slot, cause="unload") for slot in slots))
        await self._forget_pages(name, version)
        return tuple(recovery for recovery in recoveries if recovery is not None)

    async def pin(self, name: str, *, pinned: bool) -> None:
        """Has a model stay whatever memory or time says, or leave as others do, from here on until the process ends.

        It overrides the settings and loads nothing; explicit unloads are as ever. Raises ModelNotFound or ModelBroken.
        """
        self._check_open()
        await self.catalog.find_fresh(name)
        self.catalog.pin(name, pinned=pinned)
        for slot in self._table:
            if slot.key.name == name:
                self._scheduler.changes.take_pin(slot)

    async def _forget_pages(self, name: str, version: str | None) -> None:
        """Returns the page cache of an unloaded model too: whoever asks for an unload wants memory back.

        An eviction leaves it, since what is evicted is often wanted again; the pages themselves the
        kernel takes back as it likes, but its index of them counts as used until they have gone.
        """
        if self._is_closed:
            return
        with contextlib.suppress(ModelNotFound, ModelBroken):
            versions = self.catalog.versions(name) if version is None else (version,)
            files = [self.catalog.find(name, known).path for known in versions]
            for file in files:
                await self.catalog.on_disk(partial(self._runtime.forget, file))

    async def _unload_slot(self, slot: Slot, *, cause: str) -> Recovery | None:
        """Lets one slot go, after its load and its leases; None where it held nothing of its own."""
        if slot.state in (SlotState.QUEUED, SlotState.PREPARING, SlotState.GONE):
            return None
        waiter: Waiter[Recovery | None] = Waiter()
        slot.departures.append(waiter)
        if slot.state is SlotState.READY:
            self._scheduler.departures.let_go(slot, cause=cause)
        try:
            async with asyncio.timeout(self._settings.wait_timeout_s):
                return await waiter.wait()
        except TimeoutError:
            raise DeadlineExceeded(
                f"unloading {slot.key}, which has {slot.leases} leases,", waited_s=self._settings.wait_timeout_s
            ) from None
        finally:
            waiter.leave()

    # --- views ---------------------------------------------------------------------------------------

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Says whether an inference request would be served, as far as is known: loading on demand counts.

        False after an explicit unload until the next load, after a failed load, and while a worker that has
        ended is not to be started yet. Raises ModelNotFound or ModelBroken.
        """
        file = self.catalog.find(name, version)
        key = ModelKey.of(file)
        if name in self._table.unloaded or self._restarts.recent(key) is not None:
            return False
        return self._scheduler.failures.last(key) is None

    def state_of(self, key: ModelKey) -> tuple[str, str]:
        """Returns state and reason of a version, in the repository extension's words."""
        slot = self._table.get(key)
        if slot is not None and slot.refused is not None:
            return "READY", f"its new files are not served: {slot.refused.error}"
        if slot is not None and slot.state is not SlotState.QUEUED:
            waits = slot.successor is not None and slot.successor.blocked_since is not None
            return _WIRE_STATES.get(slot.state, "UNLOADING"), "its new files wait for memory" if waits else ""
        failure = self._restarts.recent(key) or self._scheduler.failures.last(key)
        if failure is not None:
            return "UNAVAILABLE", str(failure)
        return "UNAVAILABLE", "unloaded" if key.name in self._table.unloaded else ""

    async def describe(self, name: str, version: str | None = None) -> tuple[ModelFile, LoadedModel | Inspection]:
        """Returns a version's file and what has its inputs and outputs, without loading it.

        Raises ModelNotFound or ModelBroken.
        """
        self._check_open()
        file = await self.catalog.find_fresh(name, version)
        slot = self._table.get(ModelKey.of(file))
        if slot is not None and slot.model is not None:
            return file, slot.model
        faces = self._scheduler.faces
        # Another process of the host holds it, and looks whether what is asked fits what it holds.
        is_elsewhere = slot is None and self._scheduler.elsewhere.recent(ModelKey.of(file)) is not None
        face = faces.remembered(file) if is_elsewhere else None
        return file, face or await faces.inspect(file)

    async def describe_again(
        self, name: str, version: str | None, file: ModelFile, face: LoadedModel | Inspection
    ) -> tuple[ModelFile, LoadedModel | Inspection]:
        """Returns what `describe` gave, or gives now where that is something else."""
        slot = self._table.get(ModelKey.of(file))
        is_loaded_as = slot is None or slot.model is None or slot.model is face
        if is_loaded_as and self.catalog.known((name, version)) is file:
            return file, face
        return await self.describe(name, version)

    def batch_rule(self, file: ModelFile, face: LoadedModel | Inspection) -> BatchRule | None:
        """Returns how requests for a version share runs, from what `describe` gave; None where they do not."""
        slot = self._table.get(ModelKey.of(file))
        if slot is not None and slot.runs is not None:
            return slot.runs.rule
        if isinstance(face, Inspection):
            footprint = None if face.plan is None else face.plan.run
        else:
            footprint = face.run_footprint
        return self._table.batch_rule(face.inputs, face.outputs, footprint, self.catalog.options(file).batching)

    def mapped_files(self) -> dict[ModelKey, tuple[Path, ...]]:
        """Returns the files whose pages are the weights of each loaded model; none for one on the heap."""
        return {slot.key: slot.model.mapped_files for slot in self._table if slot.model is not None}

    def pending(self, key: ModelKey) -> int:
        """Returns how many requests wait for a model's load, or for a thread to run it."""
        slot = self._table.get(key)
        return self.runner.waiting_for(str(key)) + (0 if slot is None else len(slot.waiters))

    def load_seconds(self, key: ModelKey) -> float | None:
        """Returns what the load took of a model that is loaded; None for others."""
        slot = self._table.get(key)
        return None if slot is None or slot.model is None else slot.load_s

    @property
    def workers(self) -> int:
        """Loaded models that live in a worker process of their own."""
        return sum(slot.model is not None and slot.model.is_isolated for slot in self._table)

    @property
    def failing(self) -> int:
        """Versions whose last load has failed."""
        return len(self._scheduler.failures)

    @property
    def oldest_idle_s(self) -> float | None:
        """Seconds since the last use of the idle model that was used the longest ago; None where none is idle."""
        longest = self._table.longest_idle
        return None if longest is None else self._clock() - longest.idle_since

    def snapshot(self) -> PoolSnapshot:
        """Returns what the pool holds now."""
        return PoolSnapshot(
            models=tuple(info(slot) for slot in self._table),
            waiting=self._table.waiting,
            in_flight=self.runner.in_flight,
            reservations=self._memory.ledger.open_count,
            counters=copy.deepcopy(self.accounts.counters),
        )

    # --- life ----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Refuses new work, waits for what is under way, and unloads everything; harmless when closed."""
        if self._is_closed:
            return
        self._is_closed = True
        await self._restarts.close()
        await self.activations.close()
        await self._scheduler.close()
        self._table.flush()
        self.runner.refuse()
        await asyncio.get_running_loop().run_in_executor(self._disk, self.runner.close)
        await asyncio.sleep(0)  # the runs that have just returned end their leases on the loop
        await self._scheduler.departures.unload_all()
        self._disk.shutdown()

    def _check_open(self) -> None:
        if self._is_closed:
            raise HostClosed("the host is shutting down")


_WIRE_STATES = {
    SlotState.PREPARING: "LOADING",
    SlotState.LOADING: "LOADING",
    SlotState.TRIAL: "LOADING",
    SlotState.READY: "READY",
}
