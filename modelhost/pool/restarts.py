"""Models whose worker process has ended: they leave, and are loaded again, later after each further time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from modelhost.config import PoolSettings
from modelhost.errors import ModelHostError, WorkerRestarting
from modelhost.memory import MemoryManager
from modelhost.pool.departures import Departures
from modelhost.pool.failures import backoff_s
from modelhost.pool.key import ModelKey
from modelhost.pool.lease import Lease
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.snapshot import PoolCounters
from modelhost.runtime.base import LoadedModel
from modelhost.units import format_duration

log = logging.getLogger("modelhost")

#: Timers of some event loops are early by a millisecond.
_LATER_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Crash:
    reason: str
    count: int
    until: float


class Restarts:
    """Event-loop thread. `acquire` loads a model and returns a lease; `is_unwanted` says that it was unloaded.

    The first time a model is loaded again at once, then after `pool.failure_backoff_s`, and twice as long after
    each further time, up to `pool.failure_backoff_max_s`. Who was well for that long begins anew.
    """

    def __init__(
        self,
        *,
        departures: Departures,
        memory: MemoryManager,
        counters: PoolCounters,
        settings: PoolSettings,
        clock: Callable[[], float],
        acquire: Callable[[str, str], Awaitable[Lease]],
        is_unwanted: Callable[[str], bool],
    ) -> None:
        self._departures, self._memory, self._counters = departures, memory, counters
        self._settings, self._clock = settings, clock
        self._acquire, self._is_unwanted = acquire, is_unwanted
        self._crashes: dict[ModelKey, _Crash] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def watch(self, slot: Slot) -> None:
        """Acts when the model of a slot that has begun to serve ends by itself."""
        model = slot.model
        assert model is not None
        if not model.is_isolated:
            return
        loop = asyncio.get_running_loop()

        def on_end(reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._ended, slot, model, reason)

        model.watch(on_end)

    def recent(self, key: ModelKey) -> WorkerRestarting | None:
        """Returns what requests for a model are told that is not to be started yet; None for others."""
        crash = self._crashes.get(key)
        left_s = 0.0 if crash is None else crash.until - self._clock()
        if crash is None or left_s <= 0:
            return None
        return WorkerRestarting(crash.reason, crashes=crash.count, retry_after_s=left_s)

    def forget(self, key: ModelKey) -> None:
        """Forgets what is remembered of `key`: somebody asks for another try."""
        self._crashes.pop(key, None)

    async def close(self) -> None:
        """Starts nothing again from here on."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- inside ----------------------------------------------------------------------------------------

    def _ended(self, slot: Slot, model: LoadedModel, reason: str) -> None:
        """Lets go of a model that is no more. Its runs have failed, so that its leases end by themselves."""
        if slot.model is not model or self._is_closed:  # it left meanwhile
            return
        crash = self._note(slot.key, reason)
        wait_s = max(0.0, crash.until - self._clock())
        self._counters.worker_crashes += 1
        details = {"reason": reason, "in_a_row": crash.count, "restart_in_s": round(wait_s, 3)}
        self._memory.record("worker_crash", cause=str(slot.key), details=details)
        again = f"in {format_duration(wait_s)}" if wait_s else "at once"
        log.warning("the worker process of %s has ended: %s; it is started again %s", slot.key, reason, again)
        if slot.reservation is not None:
            slot.reservation.settle(0)  # its memory went with it
        if slot.state is SlotState.READY:
            self._departures.let_go(slot, cause="its worker ended")
        task = asyncio.get_running_loop().create_task(self._restart(slot.key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, key: ModelKey, reason: str) -> _Crash:
        now, former = self._clock(), self._crashes.get(key)
        first_s, longest_s = self._settings.failure_backoff_s, self._settings.failure_backoff_max_s
        count = former.count + 1 if former is not None and now < former.until + longest_s else 1
        wait_s = backoff_s(count - 1, first_s=first_s, longest_s=longest_s) if count > 1 else 0.0
        crash = self._crashes[key] = _Crash(reason, count, now + wait_s)
        return crash

    async def _restart(self, key: ModelKey) -> None:
        while not self._is_unwanted(key.name):
            try:
                (await self._acquire(key.name, key.version)).end()
            except WorkerRestarting as early:
                await asyncio.sleep(early.wait_s + _LATER_S)
                continue
            except ModelHostError as error:
                log.warning("%s is not there again: %s", key, error)
            return
