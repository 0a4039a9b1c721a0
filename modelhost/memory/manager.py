"""The memory manager: levels, reservations, verified clean-up. Knows no models and no ONNX Runtime.

Everything here runs on the event-loop thread, except what `change` and the plans' `act` do: they run
on the manager's one memory thread. One thread for all loads and unloads is what makes their figures
exact: a measurement around one of them cannot see another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from modelhost.conditions import Conditions
from modelhost.config import MemorySettings
from modelhost.errors import InsufficientMemory, NeverFits
from modelhost.memory import allocator
from modelhost.memory.board import Figure, Siblings
from modelhost.memory.events import (
    NOISE_BYTES,
    History,
    Level,
    MemoryEvent,
    Recovery,
    excess_bytes,
    next_level,
)
from modelhost.memory.ledger import Ledger, Reservation
from modelhost.memory.page_cache import PageCache
from modelhost.memory.pressure import KernelPressure, PressureGauge, PressureInfo
from modelhost.memory.probe import MemoryProbe, Probe, Usage
from modelhost.memory.sharing import Sharing
from modelhost.memory.steady import SteadyProbe
from modelhost.memory.thresholds import Thresholds, follow, resolve
from modelhost.memory.words import Cleaner, CleanupGoal, CleanupPlan, Measured, MemoryInfo
from modelhost.threads import one_thread
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

T = TypeVar("T")

#: A load may take all that is left under the limit: so often is looked, while it goes on, whether that has changed.
_LIMIT_LOOK_S: Final = 0.05

#: A critical that was lowered, other than by the limit, waits so long for usage to be below it.
_LOWERED_AFTER_S: Final = 5.0

#: Less than this free in the heap is not worth a reading before and after each load.
_WORTH_READING_BYTES: Final = 1 << 20


class MemoryManager:
    """Owns the thresholds, the level and the ledger.

    Use it as an async context manager: it measures the baseline and samples usage until it is left.
    `quiet_marker` returns a value that changes with every inference run, or None while one is going
    on; measurements across a change of it are not exact.
    """

    def __init__(
        self,
        settings: MemorySettings | None = None,
        *,
        probe: MemoryProbe | None = None,
        conditions: Conditions | None = None,
        siblings: Siblings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or MemorySettings()
        self.conditions = conditions or Conditions()
        self.siblings = siblings or Siblings()
        """The host's other processes, where there are any."""
        self.sharing = Sharing(
            self.siblings,
            free=partial(self.free, cause="another process's load"),
            look_again=self._tell_listeners,
            is_changing=lambda: self.is_changing,
            spawn=self._spawn,
        )
        self.ledger = Ledger(lambda: self.sharing.publish_claims(self.ledger.totals))
        self.history = History(
            self.settings.event_history, first_id=self.siblings.number + 1, id_step=self.siblings.seats
        )
        self.probe: MemoryProbe = probe or Probe(self.settings.limit)
        self._steady = SteadyProbe(
            self.probe, resident_bytes=lambda: self.ledger.totals.resident_bytes, on_change=self._note_readable
        )
        # Beside a scripted machine the real one's page cache would be somebody else's.
        self.gauge = PressureGauge(KernelPressure() if isinstance(self.probe, Probe) else None, clock=clock)
        self.page_cache = PageCache(clock=clock)
        self.quiet_marker: Callable[[], object | None] = lambda: 0
        # As above: a scripted machine has no heap, unless it says what is free in it.
        self.read_heap_free: Callable[[], int] = allocator.free_bytes if isinstance(self.probe, Probe) else lambda: 0
        self.read_workers: Callable[[], int] = lambda: 0
        """What worker processes hold now; asked where the probe does not see them, on the memory thread."""
        self.read_booked: Callable[[], int] = lambda: 0
        """What of it came with models and goes with them. A short call, on the memory thread."""
        self.shortfall_bytes_total = 0
        self._clock = clock
        self._fixed: Thresholds | None = None  # as the settings make them under the limit
        self._thresholds: Thresholds | None = None
        self._lowering: tuple[Thresholds, float] | None = None  # a critical that usage is still above, until when
        self._level = Level.NORMAL
        self._usage_bytes = 0
        self._workers_bytes = 0  # beside the probe's usage; at the last sample or change
        self._heap_free_bytes = 0  # after the last change; the memory thread writes it, others read
        self._wanted_limit_bytes: int | None = None  # which is being approached
        self._thrashing_since: float | None = None
        self._cleaner: Cleaner | None = None
        self._trimmers: list[Callable[[], object]] = []
        self._change_listeners: list[Callable[[], None]] = []
        self._threshold_listeners: list[Callable[[Thresholds], None]] = []
        self._changes = 0
        self._trimmed_at: object | None = None
        self._thread = one_thread("modelhost-memory")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sampler: asyncio.Task[None] | None = None

    # --- life ------------------------------------------------------------------------------------

    async def __aenter__(self) -> MemoryManager:
        self.set_baseline()
        self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def meet(self) -> None:
        """Waits until all processes of the host are there, see Sharing."""
        if not self.siblings.is_alone:
            self._usage()  # which the others count
        await self.sharing.meet()

    def set_baseline(self) -> Thresholds:
        """Measures the baseline and derives the thresholds from it. Raises ConfigError."""
        self._look_at_workers()  # nobody is served yet
        usage = self.sharing.group_baseline(self._usage().usage_bytes)
        self._fixed = resolve(self.settings, limit_bytes=self._steady.limit_bytes, baseline_bytes=usage)
        self._thresholds = self._fixed
        self._heap_free_bytes = self.read_heap_free()
        return self._thresholds

    def start(self) -> None:
        """Starts the sampler."""
        self._sampler = self._spawn(self._sample())
        self.sharing.open()

    async def close(self) -> None:
        """Stops the sampler and waits for the change in progress; harmless when closed."""
        if self._sampler is not None:
            self._sampler.cancel()
            self.sharing.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._thread.shutdown()
        self.page_cache.close()

    # --- asking ------------------------------------------------------------------------------------

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds in force. Raises RuntimeError before `set_baseline`."""
        if self._thresholds is None:
            raise RuntimeError("the memory manager has no baseline yet: enter it, or call set_baseline()")
        return self._thresholds

    @property
    def fixed_thresholds(self) -> Thresholds:
        """The thresholds as the settings make them under the limit, whatever `use_thresholds` has put in force."""
        if self._fixed is None:
            raise RuntimeError("the memory manager has no baseline yet: enter it, or call set_baseline()")
        return self._fixed

    @property
    def level(self) -> Level:
        """The level at the last look."""
        return self._level

    @property
    def usage_bytes(self) -> int:
        """Usage at the last look."""
        return self._usage_bytes

    @property
    def is_exhausted(self) -> bool:
        """Whether less than `memory.min_free` was left at the last look."""
        return self._usage_bytes > self.thresholds.limit_bytes - self.thresholds.min_free_bytes

    @property
    def is_changing(self) -> bool:
        """Whether a load or a clean-up is in progress; its outcome is not in the figures yet."""
        return self._changes > 0

    def memory_info(self) -> MemoryInfo:
        """Looks at limit and usage now, notes a change of level, and returns the figures."""
        if self._thresholds is not None:
            self._follow_limit()
        usage = self._look("request")
        found = self.thresholds
        return MemoryInfo(
            limit_bytes=found.limit_bytes,
            limit_source=self._steady.limit_source,
            baseline_bytes=found.baseline_bytes,
            usage_bytes=usage.usage_bytes,
            reserved_bytes=self.ledger.totals.loading_bytes + self.sharing.loading_bytes,
            warning_bytes=found.warning_bytes,
            critical_bytes=found.critical_bytes,
            min_free_bytes=found.min_free_bytes,
            level=self._level,
            raw=dict(usage.raw),
            heap_free_bytes=self._heap_free_bytes,
        )

    def pressure(self) -> PressureInfo:
        """Returns what the page cache suffers, at most a second old; notes where thrashing begins or ends."""
        since = self._thrashing_since
        info = self.gauge.look()
        if info.is_thrashing and since is None:
            self._thrashing_since = self._clock()
            self._note_thrashing("thrashing", info)
            log.warning(
                "memory thrashes: %s/s of file pages are read again, the page cache holds %s (stalled %s %% of the "
                "time); use fewer models at once, raise the memory limit, or put the models on a faster disk",
                format_bytes(info.refaulted_bytes_per_s or 0),
                format_bytes(info.cache_bytes or 0),
                "?" if info.reading.psi_full_avg10 is None else info.reading.psi_full_avg10,
            )
        elif since is not None and not info.is_thrashing:
            self._thrashing_since = None
            lasted_s = self._clock() - since
            self._note_thrashing("thrashing_over", info, lasted_s=round(lasted_s, 3))
            log.info("memory no longer thrashes, after %.0f s", lasted_s)
        return info

    # --- reserving ---------------------------------------------------------------------------------

    def reserve(self, size_bytes: int, *, owner: str = "load") -> Reservation:
        """Claims `size_bytes` for a load, before it starts.

        Raises NeverFits where the baseline and the claim together reach critical, InsufficientMemory
        where usage and all claims do. Takes nothing where it raises.
        """
        found = self.thresholds
        if found.baseline_bytes + size_bytes >= found.critical_bytes:
            raise NeverFits(
                f"{owner} needs {format_bytes(size_bytes)}; with nothing else loaded "
                f"{format_bytes(found.critical_bytes - found.baseline_bytes)} are there",
                needed_bytes=size_bytes,
                available_bytes=found.critical_bytes - found.baseline_bytes,
            )
        info = self.memory_info()
        if size_bytes >= info.available_bytes:
            raise InsufficientMemory(
                f"{owner} needs {format_bytes(size_bytes)}, {format_bytes(info.available_bytes)} are free below "
                f"critical ({format_bytes(found.critical_bytes)} of {format_bytes(found.limit_bytes)})",
                needed_bytes=size_bytes,
                available_bytes=info.available_bytes,
            )
        return self.ledger.reserve(owner, size_bytes)

    # --- changing ----------------------------------------------------------------------------------

    async def change(self, work: Callable[[], T]) -> tuple[T, Measured]:
        """Runs `work` on the memory thread; returns its result and what it holds now."""

        def measured() -> tuple[T, Measured]:
            is_quiet = self._watch_quiet()
            # A load that fits into holes commits nothing, and holds as much as any other.
            free = self._look_into_heap() if self._heap_free_bytes >= _WORTH_READING_BYTES else None
            before = self._committed_bytes()
            result = work()
            delta = self._committed_bytes() - before
            if free is not None:
                delta += free - self._look_into_heap()
            return result, Measured(delta, is_quiet())

        return await self._on_thread(measured)

    async def attempt_cleanup(self, *, everything: bool = False, cause: str = "request") -> Recovery | None:
        """Frees what the level asks for, and verifies that it came back.

        At normal only free heap pages are returned; at warning idle models leave until usage is
        below warning, or above it only for what is free inside the heap; at critical, or with
        `everything`, all that can leave does. Returns None where there was nothing to free.
        """
        self._look(cause)
        if everything or self._level is Level.NORMAL or self.quiet_marker() != self._trimmed_at:
            await self.trim()
            self._look(cause)
        else:
            await self._on_thread(self._look_into_heap)
        if self._cleaner is None or (self._level is Level.NORMAL and not everything):
            return None
        found, info = self.thresholds, self.memory_info()
        excess = excess_bytes(
            info.usage_bytes,
            reusable_bytes=info.reusable_bytes,
            warning=found.warning_bytes,
            hysteresis=found.hysteresis_bytes,
        )
        everything = everything or info.is_critical
        if not excess and not everything:
            return None
        plan = self._cleaner(CleanupGoal(excess, everything))
        return None if plan is None else await self.recover(plan, cause=cause)

    async def free(self, excess_bytes: int, *, cause: str) -> Recovery | None:
        """Has what can leave do so in its order until `excess_bytes` have come back; None where nothing can or must."""
        if self._cleaner is None or excess_bytes <= 0:
            return None
        plan = self._cleaner(CleanupGoal(excess_bytes, everything=False))
        return None if plan is None else await self.recover(plan, cause=cause)

    async def recover(self, plan: CleanupPlan, *, cause: str) -> Recovery:
        """Carries out `plan` on the memory thread, verifies it, and books a shortfall."""

        def act() -> Recovery:
            started, is_quiet = self._clock(), self._watch_quiet()
            free, before = self._look_into_heap(), self._committed_bytes()

            def look(*, trimmed: bool) -> Recovery:
                after = self._committed_bytes()
                return Recovery(
                    cause=cause,
                    victims=plan.victims,
                    before_bytes=before,
                    after_bytes=after,
                    expected_bytes=plan.expected_bytes,
                    duration_s=self._clock() - started,
                    trimmed=trimmed,
                    tolerance_bytes=NOISE_BYTES if is_quiet() else self.thresholds.activation_room_bytes,
                )

            plan.act()
            recovery = look(trimmed=False)
            if recovery.unreturned_bytes:
                self._trim_now()
                recovery = look(trimmed=True)
            # Last, as it is dear where no trim has joined what is free.
            return replace(recovery, kept_free_bytes=max(0, self._look_into_heap() - free))

        try:
            recovery = await self._on_thread(act, always=plan.done)
        finally:
            usage = self._look(cause)
        self._book(recovery, usage)
        return recovery

    async def trim(self, *, deep: bool = True) -> None:
        """Returns free arena pages to the kernel, and with `deep` the heap's, which takes milliseconds."""

        def deeply() -> None:
            self._trim_now()
            self._look_into_heap()

        self._trimmed_at = self.quiet_marker()
        await self._on_thread(deeply if deep else self._trim_cheaply)

    def record(self, kind: str, *, cause: str, details: dict[str, Any]) -> MemoryEvent:
        """Adds an event of another's making to the history."""
        return self.history.add(
            kind, level=self._level, usage_bytes=self._usage().usage_bytes, cause=cause, details=details
        )

    # --- being told --------------------------------------------------------------------------------

    def use_limit(self, limit_bytes: int | None) -> None:
        """Changes `memory.limit` while the host runs; thresholds follow, and what is too much leaves.

        A lower one is approached as models leave, so that no request is refused for what is just leaving. Raises
        ConfigError where the change takes a new start.
        """
        self.probe.configure(limit_bytes)
        self._wanted_limit_bytes = limit_bytes
        self._follow_limit()

    def _approach_limit(self) -> None:
        """Lets the configured limit stay a quarter of it above usage, until usage is so far below."""
        wanted_bytes, now_bytes = self._wanted_limit_bytes, self.thresholds.limit_bytes
        if wanted_bytes is None:
            return
        step_bytes = max(wanted_bytes, self._usage().usage_bytes + wanted_bytes // 4)
        if step_bytes == wanted_bytes or wanted_bytes >= now_bytes:
            step_bytes, self._wanted_limit_bytes = wanted_bytes, None
        self.probe.configure(min(step_bytes, max(now_bytes, wanted_bytes)))

    def use_thresholds(self, found: Thresholds, *, cause: str, reason: str, details: dict[str, Any]) -> None:
        """Puts other thresholds in force, under the same limit and above the same baseline: an event, and a line in
        the log with the reason.

        A critical that usage is above waits a moment for models to leave in their order, as all that is idle leaves
        at critical.
        """
        now, self._lowering = self.thresholds, None
        if found.critical_bytes < now.critical_bytes:
            self._lowering = (found, self._clock() + _LOWERED_AFTER_S)
            self._thresholds = replace(found, critical_bytes=now.critical_bytes)
            self._lower_critical()
        else:
            self._thresholds = found
        log.info(
            "warning %s -> %s, critical %s -> %s: %s",
            *map(format_bytes, (now.warning_bytes, found.warning_bytes, now.critical_bytes, found.critical_bytes)),
            reason,
        )
        self.history.add("policy", level=self._level, usage_bytes=self._usage_bytes, cause=cause, details=details)
        self._tell_thresholds(found)

    def _lower_critical(self) -> None:
        """Puts a lower critical in force when usage and loads are below it, or that took too long."""
        if self._lowering is None:
            return
        found, until = self._lowering
        if self._usage_bytes + self.ledger.totals.loading_bytes < found.critical_bytes or self._clock() >= until:
            self._thresholds, self._lowering = found, None

    def set_cleaner(self, cleaner: Cleaner) -> None:
        """Names the one who gives memory back when the level asks for it."""
        self._cleaner = cleaner

    def add_trimmer(self, trimmer: Callable[[], object]) -> None:
        """Adds something that returns free memory cheaply, called on the memory thread."""
        self._trimmers.append(trimmer)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever a change has ended and at every sample: figures may be better now."""
        self._change_listeners.append(listener)

    def on_thresholds(self, listener: Callable[[Thresholds], None]) -> None:
        """Calls `listener` with the new thresholds where the limit was changed while the host runs, or they were."""
        self._threshold_listeners.append(listener)

    def _tell_thresholds(self, found: Thresholds) -> None:
        for listener in self._threshold_listeners:  # later: who asks for the figures is in the middle of a decision
            asyncio.get_running_loop().call_soon(listener, found)

    # --- inside ------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(self.settings.sample_interval_s)
            try:
                await self._sample_once()
            except Exception:  # without the sampler nobody would act on pressure any more
                log.exception("a look at memory failed")

    async def _sample_once(self) -> None:
        """One look; acts on the level, and returns what idle runs left in the arena."""
        self._follow_limit()
        if not self.probe.sees_children and not self.is_changing:  # else it is read when that has ended
            await asyncio.get_running_loop().run_in_executor(self._thread, self._look_at_workers)
        self._look("sample")
        self._lower_critical()
        self.pressure()
        self.sharing.publish_idle()
        self.sharing.help()
        marker = self.quiet_marker()
        loading_bytes = self.ledger.totals.loading_bytes + self.sharing.loading_bytes
        if self.is_changing or (self._level is Level.WARNING and loading_bytes):
            pass  # the peak of a load, or of a child that opens a model, is no reason to evict for
        elif self._level is Level.WARNING and not self.siblings.is_my_turn():
            pass  # who has what has rested longest evicts, and not everybody for the same bytes
        elif self._level is not Level.NORMAL:
            await self.attempt_cleanup(cause=f"level {self._level.label}")
        elif marker is not None and marker != self._trimmed_at:
            await self.trim(deep=False)
        self._notify()

    def _follow_limit(self) -> None:
        """Looks whether somebody has changed the limit; the thresholds follow it, and all that hangs on them."""
        self._approach_limit()
        self._steady.refresh()
        former, limit_bytes = self.fixed_thresholds, self._steady.limit_bytes
        if limit_bytes == former.limit_bytes:
            return
        found, why = follow(self.settings, limit_bytes=limit_bytes, baseline_bytes=former.baseline_bytes)
        self._fixed = self._thresholds = found
        self._lowering = None
        log.warning(
            "the memory limit is %s now, it was %s: warning %s, critical %s",
            *map(format_bytes, (limit_bytes, former.limit_bytes, found.warning_bytes, found.critical_bytes)),
        )
        if why:
            self.conditions.note("memory_limit_too_low", why)
        else:
            self.conditions.clear("memory_limit_too_low")
        details = {"limit_bytes": limit_bytes, "from_bytes": former.limit_bytes}
        self.history.add(
            "limit", level=self._level, usage_bytes=self._usage_bytes, cause=self._steady.limit_source, details=details
        )
        self._tell_thresholds(found)

    def _note_readable(self, reason: str | None) -> None:
        """Takes note that usage or limit cannot be read any more (why), or can be read again (None)."""
        kind = "memory_readable" if reason is None else "memory_unreadable"
        self.history.add(kind, level=self._level, usage_bytes=self._usage_bytes, cause=reason or "memory_unreadable")
        if reason is None:
            self.conditions.clear("memory_unreadable")
        else:
            self.conditions.note(
                "memory_unreadable", f"usage and limit cannot be read, the last figures count ({reason})"
            )

    def _look(self, cause: str) -> Usage:
        """Reads usage and notes a change of level, once."""
        usage = self._usage()
        self._usage_bytes = usage.usage_bytes
        found = self._thresholds
        if found is None:
            return usage
        level = next_level(
            self._level,
            usage.usage_bytes,
            warning=found.warning_bytes,
            critical=found.critical_bytes,
            hysteresis=found.hysteresis_bytes,
        )
        if level is not self._level:
            previous, self._level = self._level, level
            self.history.add(
                "level", level=level, usage_bytes=usage.usage_bytes, cause=cause, details={"from": previous.label}
            )
            log.log(
                logging.INFO if level < previous else logging.WARNING,
                "memory level %s -> %s at %s of %s (%s)",
                previous.label,
                level.label,
                format_bytes(usage.usage_bytes),
                format_bytes(found.limit_bytes),
                cause,
            )
        return usage

    def _usage(self) -> Usage:
        """Reads usage, with the workers in it: those that the probe does not see as they were last looked at."""
        usage = self._steady.usage()
        if not self._workers_bytes and (self.siblings.is_alone or self.probe.sees_children):
            return usage
        usage = Usage(usage.usage_bytes + self._workers_bytes, {**usage.raw, "workers_bytes": self._workers_bytes})
        if self.siblings.is_alone or self.probe.sees_children:
            return usage
        self.siblings.publish(Figure.OWN, usage.usage_bytes)
        others_bytes = self.siblings.others(Figure.OWN)
        return Usage(usage.usage_bytes + others_bytes, {**usage.raw, "others_bytes": others_bytes})

    def _look_at_workers(self) -> None:
        """Reads what workers hold where the probe sees only this process. Takes a millisecond for each."""
        self._workers_bytes = 0 if self.probe.sees_children else self.read_workers()

    def _committed_bytes(self) -> int:
        """Reads the process's memory exactly, with what its workers are booked at. On the memory thread."""
        return self._steady.committed_bytes() + self.read_booked()

    def _watch_quiet(self) -> Callable[[], bool]:
        """Returns what says whether nothing else has run, and all figures could be read, since this call."""
        marker, failures = self.quiet_marker(), self._steady.failures
        return lambda: marker is not None and marker == self.quiet_marker() and failures == self._steady.failures

    def _look_into_heap(self) -> int:
        """Reads what is free in the heap, for the decisions until the next change. On the memory thread."""
        self._heap_free_bytes = self.read_heap_free()
        return self._heap_free_bytes

    def _note_thrashing(self, kind: str, info: PressureInfo, **more: float) -> None:
        self.history.add(
            kind, level=self._level, usage_bytes=self._usage_bytes, cause="page cache", details=info.as_event() | more
        )

    def _book(self, recovery: Recovery, usage: Usage) -> None:
        details = recovery.as_dict()
        self.history.add(
            "recovery", level=self._level, usage_bytes=usage.usage_bytes, cause=recovery.cause, details=details
        )
        if recovery.shortfall_bytes:
            self.shortfall_bytes_total += recovery.shortfall_bytes
            self.history.add(
                "shortfall", level=self._level, usage_bytes=usage.usage_bytes, cause=recovery.cause, details=details
            )
            log.warning(
                "%s of %s did not come back after %s left (%s)",
                format_bytes(recovery.shortfall_bytes),
                format_bytes(recovery.expected_bytes),
                ", ".join(recovery.victims),
                recovery.cause,
            )

    async def _on_thread(self, work: Callable[[], T], *, always: Callable[[], None] = lambda: None) -> T:
        """Runs `work` on the memory thread to its end, even if the caller is cancelled meanwhile."""
        self._changes += 1

        def work_and_look() -> T:
            try:
                return work()
            finally:
                self._look_at_workers()

        async def run() -> T:
            try:
                working = asyncio.get_running_loop().run_in_executor(self._thread, work_and_look)
                while not (await asyncio.wait([working], timeout=_LIMIT_LOOK_S))[0]:
                    if self._thresholds is not None:
                        self._follow_limit()
                return working.result()
            finally:
                self._changes -= 1
                always()
                self._notify()
                self.siblings.poke()  # there may be room now

        return await asyncio.shield(self._spawn(run()))

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _notify(self) -> None:
        self.sharing.publish_idle()
        self._tell_listeners()

    def _tell_listeners(self) -> None:
        for listener in self._change_listeners:
            try:
                listener()
            except Exception:  # what has just ended did end well
                log.exception("a listener to memory changes failed")

    def _trim_cheaply(self) -> None:
        for trimmer in self._trimmers:
            trimmer()

    def _trim_now(self) -> None:
        self._trim_cheaply()
        allocator.trim()
