"""Memory of runs: a claim on the shared arena for each, from before its thread until its outputs have gone.

The gate predicts, waits and counts; it runs nothing. What it let through and the arena refused all the
same comes back to it for a claim on the whole arena.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from modelhost.errors import DeadlineExceeded, HostClosed, InsufficientMemory, MemoryRefusal, RunTooLarge
from modelhost.memory import MemoryManager
from modelhost.memory.board import Figure, Portion
from modelhost.pool.bounds import QueueBound
from modelhost.pool.demand import Demand, Feeds
from modelhost.pool.key import ModelKey
from modelhost.pool.turns import Turns
from modelhost.pool.waiter import Waiter
from modelhost.runtime.base import LoadedModel
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

T = TypeVar("T")

#: A run whose bytes nobody can tell claims one part in so many of the ceiling; a smaller one where there
#: are more threads, each of which may work on such a run.
_UNPREDICTED_PART: Final = 4

#: A prediction may be over by one part in so many: up to there the arena decides, not the prediction.
_OVER_PART: Final = 4

#: From this size on a run is worth a look at usage, which takes about 0.1 ms; it takes longer itself.
_LOOK_FROM_BYTES: Final = 4 << 20

#: Short runs that pass the line may take one part in so many over the ceiling together: predictions are seldom
#: reached, and what the arena refuses comes back.
_PASSING_PART: Final = 16

#: Of the limit, one part in so many stays free beside the runs: 8 MB at 256 MB.
_MARGIN_PART: Final = 32


class Claim:
    """Bytes of the arena for one run. Event-loop thread only, but for `keep`; the gate makes it.

    The run holds it until its thread has returned, whatever became of the requester. Where outputs
    are kept beyond that, they hold it at their size.
    """

    __slots__ = ("_gate", "_holds", "_is_abandoned", "_is_active", "_kept_bytes", "_passes", "is_alone", "size_bytes")

    def __init__(self, gate: ActivationGate, size_bytes: int, *, passes: bool = False) -> None:
        self.size_bytes = size_bytes
        self._passes = passes
        self.is_alone = size_bytes >= gate.maximum_bytes and gate.claimed_bytes == 0
        """Whether nobody else has anything in the arena until this claim ends."""
        self._gate = gate
        self._holds = 1  # the run, then its outputs; and their encoding
        self._is_active = True  # ends by itself: a run or an encoding, not outputs that wait
        self._is_abandoned = False
        self._kept_bytes: int | None = None
        gate.claimed_bytes = claimed_bytes = gate.claimed_bytes + size_bytes
        if claimed_bytes > gate._peak_bytes:
            gate._peak_bytes = claimed_bytes
        if size_bytes > gate._largest_bytes:
            gate._largest_bytes = size_bytes
        gate._passing_bytes += size_bytes * passes
        gate._active += 1

    def keep(self, kept: Kept[Any]) -> None:
        """Notes, on the run's thread, that outputs stay when it returns."""
        self._kept_bytes, kept._claim = kept.size_bytes, self

    def run_ended(self) -> None:
        """Ends the claim, or hands it over to the outputs that are kept."""
        if self._kept_bytes is None or self._is_abandoned:
            self._let_go()
            return
        self._set_active(False)
        self._shrink(min(self.size_bytes, self._kept_bytes))

    def abandon(self) -> None:
        """Says that nobody will take the outputs; a run that still goes on keeps the claim until it ends."""
        self._is_abandoned = True
        if self._holds and not self._is_active:
            self._let_go()

    def _hold(self) -> None:
        self._holds += 1
        self._set_active(True)

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._gate._active -= self._is_active
            self._is_active = False
            self._shrink(0)

    def _shrink(self, size_bytes: int) -> None:
        gate = self._gate
        gate.claimed_bytes -= self.size_bytes - size_bytes
        gate._passing_bytes -= (self.size_bytes - size_bytes) * self._passes
        self.size_bytes = size_bytes
        gate._portion.use(gate.claimed_bytes)
        if gate._line or gate._first:
            gate._pump()

    def _set_active(self, is_active: bool) -> None:
        self._gate._active += is_active - self._is_active
        self._is_active = is_active


class Kept(Generic[T]):
    """Outputs that stay in the arena when their run has returned. A scope; their claim ends with it.

    `finish` of a run returns it instead of the value, and who gets it has to enter it at once. Unless it
    is in use, who has it may wait for others: no run waits for that where it has nothing else to wait for.
    """

    __slots__ = ("_claim", "size_bytes", "value")

    def __init__(self, value: T, size_bytes: int) -> None:
        self.value, self.size_bytes = value, size_bytes
        self._claim: Claim | None = None

    def begin_use(self) -> None:
        """Says that work on the outputs has begun, which ends by itself; it may outlive the scope."""
        if self._claim is not None:
            self._claim._hold()

    def end_use(self) -> None:
        """Says that the work is over."""
        if self._claim is not None:
            self._claim._let_go()

    def __enter__(self) -> T:
        return self.value

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._claim is not None:
            self._claim._let_go()


class _Waiting:
    """One run in the line. `predicted_bytes` is 0 where nobody can tell; `must_fit`: it does not go at any price."""

    __slots__ = ("must_fit", "predicted_bytes", "remedies", "size_bytes", "waiter")

    def __init__(
        self,
        size_bytes: int,
        predicted_bytes: int,
        remedies: list[Callable[[], Awaitable[object]]],
        *,
        must_fit: bool = False,
    ) -> None:
        self.size_bytes, self.predicted_bytes = size_bytes, predicted_bytes
        self.remedies, self.must_fit = remedies, must_fit
        self.waiter: Waiter[Claim] = Waiter()


class ActivationGate:
    """Owns what runs may take of the arena. Event-loop thread only; `max_waiting` bounds its line.

    `preparing_bytes` says how much of the reservations is in usage already, held by a child process.

    In turn: models that wait take turns, and nobody passes the one whose turn it is and delays it: so it goes,
    however many others come. Short runs may pass for as long as longer ones hold what it waits for: when those
    have ended, it waits for the rest of the short ones that are in progress, and no more of them begin.

    Why the line always moves: its head waits for runs and encodings in progress, which end by
    themselves; for a load, a child that opens a model, or a clean-up in progress, which do too; and for
    two clean-ups of its own.
    Where there is none of these it goes, whatever the figures say; but for one that wants more than was kept free for
    runs (`resize`): where models in use hold that, it is refused. It never waits for outputs that are kept while their
    request waits for others' bodies, as those may be bodies of requests in this line.
    """

    def __init__(
        self,
        ceiling_bytes: int,
        *,
        max_waiting: int,
        max_waiting_per_model: int | None = None,
        memory: MemoryManager,
        threads: int = 1,
        preparing_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._portion, self._is_alone = (
            Portion.of(ceiling_bytes, memory.siblings, Figure.RUNS),
            memory.siblings.is_alone,
        )
        self.maximum_bytes = self._portion.limit_bytes
        """Hard maximum of the arena; less where the memory limit was lowered since, and where other processes of the
        host have a part of it."""
        self.ceiling_bytes = self.maximum_bytes
        """What runs may take together now: all of it, or what is kept free for them; see `resize`."""
        self.wants_room: Callable[[int], None] = lambda size_bytes: None
        """Called with what a run takes that wants more than is kept free for runs."""
        self._peak_bytes = self._largest_bytes = 0
        self.claimed_bytes = 0
        """What runs in progress, those that wait for a thread, and kept outputs may hold."""
        self.refused_total = 0
        """Runs refused because they would not fit alone."""
        self.missed_total = 0
        """Runs that were let through and that the arena refused."""
        self._active = 0
        self._passing_bytes = 0  # of what is claimed: by runs that have passed the line
        self._unpredicted_part = max(_UNPREDICTED_PART, threads)
        self._bound = QueueBound(max_waiting, max_waiting_per_model)
        self._memory, self._preparing_bytes = memory, preparing_bytes
        self._line: Turns[_Waiting] = Turns()
        self._first: Turns[_Waiting] = Turns()  # before the line: those that ran once, and want it all
        self._demands: WeakKeyDictionary[LoadedModel, Demand] = WeakKeyDictionary()
        self._making_room: asyncio.Task[None] | None = None
        self._is_closed = False
        memory.on_change(self._pump)

    @property
    def waiting(self) -> int:
        """Runs that wait for their turn."""
        return len(self._line) + len(self._first)

    def resize(self, maximum_bytes: int, kept_bytes: int | None = None) -> None:
        """Changes what runs may take together, at most the arena's own maximum; claims that are held stay.

        `kept_bytes`: what is kept free for them, where that is less. A run that wants more gets it, by `wants_room`,
        as idle models leave for it.
        """
        self._portion.resize(maximum_bytes)
        self.maximum_bytes = most_bytes = self._portion.limit_bytes
        self.ceiling_bytes = most_bytes if kept_bytes is None else min(most_bytes, kept_bytes)
        self._pump()

    def take_peaks(self) -> tuple[int, int]:
        """Returns the most that was claimed together, and by one run, since the last call; what
        was wanted and had to wait is in it."""
        found = self._peak_bytes, self._largest_bytes
        self._peak_bytes, self._largest_bytes = self.claimed_bytes, 0
        return found

    # --- claiming ------------------------------------------------------------------------------------

    async def claim(
        self,
        key: ModelKey,
        model: LoadedModel,
        feeds: Feeds,
        *,
        deadline: float | None,
        max_waiting: int | None = None,
    ) -> Claim:
        """Claims what a run on `feeds` will take, when it is its turn; end it with `run_ended`.

        `deadline` is on the event loop's clock; `max_waiting` bounds how many wait for this model. Raises
        RunTooLarge where it would not fit alone, Overloaded where the line is full, DeadlineExceeded, HostClosed.
        """
        demand = self.demand(model)
        predicted_bytes = demand.predict(feeds)
        size_bytes = self._size_of(predicted_bytes)
        if size_bytes is None:
            assert predicted_bytes is not None
            raise self._predicted_too_large(key, model, feeds, predicted_bytes)
        wanted_bytes = self._stretch(predicted_bytes)
        if not wanted_bytes:
            claim = self._claim_now(size_bytes, predicted_bytes, is_short=demand.look(feeds).is_short)
            if claim is not None:
                return claim
        waiting, own_waiting = len(self._line), self._line.count(key)
        if self._bound.is_full(waiting, own_waiting, max_waiting):
            raise self._bound.refusal("the queue for memory of runs", str(key), waiting, own_waiting, max_waiting)
        predicted_bytes = wanted_bytes or predicted_bytes or 0
        return await self._wait(self._line, key, size_bytes, predicted_bytes, deadline, must_fit=wanted_bytes > 0)

    def _stretch(self, predicted_bytes: int | None) -> int:
        """Has more kept free for runs where one wants more than that; returns what it wants then, else 0."""
        wanted_bytes = self.maximum_bytes if predicted_bytes is None else min(predicted_bytes, self.maximum_bytes)
        if wanted_bytes <= self.ceiling_bytes:
            return 0
        self.ceiling_bytes = wanted_bytes
        self.wants_room(wanted_bytes)
        return wanted_bytes

    def try_claim(self, predicted_bytes: int | None, *, is_short: bool = False) -> Claim | None:
        """Claims what a run is predicted to take, where it need not wait for that; never waits.

        None also where it would be refused: `claim` says why.
        """
        size_bytes = self._size_of(predicted_bytes)
        return None if size_bytes is None else self._claim_now(size_bytes, predicted_bytes, is_short=is_short)

    def has_room(self, predicted_bytes: int | None) -> bool:
        """Whether a run may go now that is short, and need not claim: nothing else happens until it has returned."""
        if predicted_bytes is None or predicted_bytes >= _LOOK_FROM_BYTES:
            return False
        if self._line or self._first:
            return self._may_pass(predicted_bytes)
        return self._fits(self.claimed_bytes + predicted_bytes)

    def _fits(self, together_bytes: int) -> bool:
        """Whether runs may take so much together now; takes it from what other processes of the host have a part of."""
        return together_bytes <= self.ceiling_bytes and (self._is_alone or self._portion.fits(together_bytes))

    def _size_of(self, predicted_bytes: int | None) -> int | None:
        """Returns what a run claims; None where it would not fit alone."""
        maximum_bytes = self.maximum_bytes
        if predicted_bytes is None:
            self._largest_bytes = maximum_bytes  # for all that is known
            return maximum_bytes // self._unpredicted_part
        if predicted_bytes <= maximum_bytes:
            return predicted_bytes
        return maximum_bytes if predicted_bytes <= maximum_bytes + maximum_bytes // _OVER_PART else None

    def _claim_now(self, size_bytes: int, predicted_bytes: int | None, *, is_short: bool) -> Claim | None:
        if (predicted_bytes or 0) >= _LOOK_FROM_BYTES:
            return None
        if predicted_bytes is None and self.ceiling_bytes < self.maximum_bytes:
            return None  # it may take all of the arena
        if self._line or self._first:
            passes = is_short and predicted_bytes is not None and self._may_pass(size_bytes)
            return Claim(self, size_bytes, passes=True) if passes else None
        return Claim(self, size_bytes) if self._fits(self.claimed_bytes + size_bytes) else None

    def _may_pass(self, size_bytes: int) -> bool:
        """Whether a short run may go before the one whose turn it is, which waits for longer ones in any case."""
        if self._first or not self._line:
            return False
        longer_bytes = self.claimed_bytes - self._passing_bytes
        room_bytes = self.ceiling_bytes + self.ceiling_bytes // _PASSING_PART
        return (
            longer_bytes < self.ceiling_bytes  # else one of them has been promised all of it
            and longer_bytes + self._line.head.size_bytes > self.ceiling_bytes
            and self.claimed_bytes + size_bytes <= room_bytes
            and (self._is_alone or self._portion.fits(self.claimed_bytes + size_bytes))
        )

    async def claim_alone(self, model: LoadedModel, feeds: Feeds, *, deadline: float | None) -> Claim:
        """Claims the whole arena, before everybody who waits, for a run that the arena has refused.

        Not bounded in number: who asks has been let through once. Raises DeadlineExceeded, HostClosed.
        """
        must_fit = self._stretch(None) > 0
        predicted_bytes = self.maximum_bytes if must_fit else self.demand(model).predict(feeds) or 0
        return await self._wait(self._first, None, self.maximum_bytes, predicted_bytes, deadline, must_fit=must_fit)

    def missed(self, key: ModelKey, model: LoadedModel, feeds: Feeds, refusal: MemoryRefusal, claim: Claim) -> None:
        """Counts a run that was let through under `claim` and that the arena has refused.

        Raises RunTooLarge, with the largest batch where that is known, where it would be refused again.
        """
        self.missed_total += 1
        if not claim.is_alone and not isinstance(refusal, RunTooLarge):
            return
        self.refused_total += 1
        demand = self.demand(model)
        max_rows, rows = demand.largest_rows(feeds, self.maximum_bytes), demand.rows(feeds)
        if max_rows is not None and rows is not None and max_rows >= rows:
            max_rows = None  # just proved wrong
        needed_bytes = refusal.needed_bytes
        if claim.is_alone:  # and what is not free it had itself
            needed_bytes += max(0, self.maximum_bytes - refusal.available_bytes)
        raise RunTooLarge(
            f"{key}: this run needs at least {format_bytes(needed_bytes)} for activations, "
            f"memory.activation_ceiling is {format_bytes(self.maximum_bytes)}",
            needed_bytes=needed_bytes,
            available_bytes=self.maximum_bytes,
            max_rows=max_rows,
        ) from None

    def _predicted_too_large(self, key: ModelKey, model: LoadedModel, feeds: Feeds, needed_bytes: int) -> RunTooLarge:
        self.refused_total += 1
        demand = self.demand(model)
        rows = demand.rows(feeds)
        asked = "this run needs" if rows is None else "1 row needs" if rows == 1 else f"{rows} rows need"
        return RunTooLarge(
            f"{key}: {asked} {format_bytes(needed_bytes)} for activations, "
            f"memory.activation_ceiling is {format_bytes(self.maximum_bytes)}",
            needed_bytes=needed_bytes,
            available_bytes=self.maximum_bytes,
            max_rows=demand.largest_rows(feeds, self.maximum_bytes),
        )

    def demand(self, model: LoadedModel) -> Demand:
        """Returns what runs of a model take; the same value for as long as the model is loaded."""
        demand = self._demands.get(model)
        if demand is None:
            demand = self._demands[model] = Demand(model.inputs, model.run_footprint)
        return demand

    # --- the line ------------------------------------------------------------------------------------

    async def _wait(
        self,
        line: Turns[_Waiting],
        key: ModelKey | None,
        size_bytes: int,
        predicted_bytes: int,
        deadline: float | None,
        *,
        must_fit: bool = False,
    ) -> Claim:
        if self._is_closed:
            raise HostClosed("the host is shutting down")
        if not must_fit:
            predicted_bytes = min(predicted_bytes, size_bytes)
        # Free memory first; then idle models leave for a run, as many as it takes.
        remedies: list[Callable[[], Awaitable[object]]] = [
            self._memory.trim,
            lambda: self._free(predicted_bytes),
            self._clean_up,
        ]
        entry = _Waiting(size_bytes, predicted_bytes, remedies, must_fit=must_fit)
        line.append(key, entry)
        self._pump()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(deadline):
                return await entry.waiter.wait()
        except BaseException as error:
            claim = entry.waiter.leave()
            if claim is not None:  # granted, and nobody is there to use it
                claim.run_ended()
            if line.remove(key, entry):
                self._pump()
            if isinstance(error, TimeoutError):
                waited_s = asyncio.get_running_loop().time() - began
                raise DeadlineExceeded("waiting for the memory that other runs hold", waited_s=waited_s) from None
            raise

    def _pump(self) -> None:
        """Grants to the head of the line for as long as that may go."""
        while line := self._first or self._line:
            entry = line.head
            if entry.waiter.is_waiting:
                if self._may_go(entry):
                    entry.waiter.set(Claim(self, entry.size_bytes))
                elif entry.waiter.is_waiting:
                    return
            line.take()

    def _may_go(self, entry: _Waiting) -> bool:
        together_bytes = self.claimed_bytes + entry.size_bytes
        if not self._fits(together_bytes) and (self._active or self._portion.is_contended):
            self._peak_bytes = max(self._peak_bytes, min(together_bytes, self.maximum_bytes))  # it was wanted
            return False
        return entry.predicted_bytes < _LOOK_FROM_BYTES or self._memory_allows(entry)

    def _memory_allows(self, entry: _Waiting) -> bool:
        """Says whether usage outside of the arena leaves room for the run, or nothing can be done about it."""
        room_bytes = self._free_bytes()
        if entry.predicted_bytes <= room_bytes:
            return True
        if self._active or self._memory.is_changing or self._making_room is not None:
            return False  # each of these pumps again when it ends
        if len(entry.remedies) <= 1 and self._preparing_bytes():
            return False  # a child ends by itself, with more than what is left would give; the next sample sees it
        if not entry.remedies or self._is_closed:
            # Up to here models may hold by default: then it goes as any other.
            if not entry.must_fit or self._memory.usage_bytes < self._memory.fixed_thresholds.critical_bytes:
                return True
            entry.waiter.fail(_no_room(entry.predicted_bytes, max(0, room_bytes)))
            return False
        self._making_room = asyncio.get_running_loop().create_task(self._make_room(entry.remedies.pop(0)))
        return False

    def _free_bytes(self) -> int:
        """Looks at what is free beside loads and runs in progress; below 0 where less is than should be."""
        info = self._memory.memory_info()
        # How much of the others' claims is in usage already cannot be told: all of it counts as to come.
        to_come_bytes = max(0, info.reserved_bytes - self._preparing_bytes()) + self.claimed_bytes
        return info.limit_bytes - info.limit_bytes // _MARGIN_PART - info.usage_bytes - to_come_bytes

    async def _make_room(self, remedy: Callable[[], Awaitable[object]]) -> None:
        try:
            await remedy()
        except Exception:
            log.exception("making room for a run failed")
        finally:
            self._making_room = None
            self._pump()

    async def _clean_up(self) -> None:
        await self._memory.attempt_cleanup(everything=True, cause="run")

    async def _free(self, wanted_bytes: int) -> None:
        """Has idle models leave in their order until so much is free, and a little more for those who come next: each
        time costs tens of milliseconds, in which nobody else of the line goes."""
        slack_bytes = self._memory.thresholds.hysteresis_bytes
        await self._memory.free(wanted_bytes + slack_bytes - self._free_bytes(), cause="run")

    # --- life ----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Refuses everybody who waits, and waits for a clean-up in progress; harmless when closed."""
        self._is_closed = True
        for line in (self._first, self._line):
            for entry in line:
                entry.waiter.fail(HostClosed("the host is shutting down"))
        if self._making_room is not None:
            await asyncio.wait([self._making_room])


def _no_room(needed_bytes: int, available_bytes: int) -> InsufficientMemory:
    return InsufficientMemory(
        f"the run needs {format_bytes(needed_bytes)}, {format_bytes(available_bytes)} are free: models in use hold "
        "what was not kept free for runs so far. It is from now on",
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
    )
