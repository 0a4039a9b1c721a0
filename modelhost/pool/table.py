"""The pool's mutable state: slots, queue, idle order. Plain functions that never wait.

Only `pool.py` and `scheduler.py` touch it, on the event-loop thread.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from cachetools import LRUCache

from modelhost.errors import ModelHostError
from modelhost.memory.board import Siblings
from modelhost.pool.activations import ActivationGate
from modelhost.pool.batch import BatchRule
from modelhost.pool.eviction import Candidate
from modelhost.pool.key import ModelKey
from modelhost.pool.lanes import Lane
from modelhost.pool.lease import Lease
from modelhost.pool.runner import Runner
from modelhost.pool.runs import ModelRuns, rows_are_independent
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.snapshot import ModelInfo
from modelhost.pool.statistics import ModelStatistics, Statistics
from modelhost.pool.worth import EvictionOrder, LeastRecentlyUsed
from modelhost.prepare.footprint import RunFootprint
from modelhost.tensors import TensorSpec

#: Prepared models hold less, and are wanted in each process of a host.
_DEAR_BYTES = 4 << 20


class SlotTable:
    """Every model that is wanted, loading, loaded or leaving has its slot here, others have none.

    `released` is called with a slot whose last lease has just ended.
    """

    def __init__(
        self,
        runner: Runner,
        activations: ActivationGate,
        *,
        statistics: Statistics,
        batching: BatchRule | None = None,
        order: EvictionOrder | None = None,
        siblings: Siblings | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.queue: list[Slot] = []
        """QUEUED slots, first come first."""
        self.unloaded: set[str] = set()
        """Names that were unloaded on request and have not been loaded since."""
        self.released: Callable[[Slot], None] = lambda slot: None
        self._slots: dict[ModelKey, Slot] = {}
        # Those that are to take the place of one of these, and those whose place was taken.
        self._aside: set[Slot] = set()
        # A model enters when its last lease ends and leaves at the next grant, so that iteration is
        # in the order of last use.
        self._idle: LRUCache[Slot, Slot] = LRUCache(math.inf)
        self._last_touched: Slot | None = None  # which is the last one in there already, if it is there at all
        self._runner, self._activations = runner, activations
        self._statistics, self._batching = statistics, batching
        self._order: EvictionOrder = order or LeastRecentlyUsed()
        self._siblings = siblings or Siblings()
        self._clock, self._wall_clock = clock, wall_clock

    def __iter__(self) -> Iterator[Slot]:
        return iter((*self._slots.values(), *self._aside))

    def get(self, key: ModelKey) -> Slot | None:
        """Returns the model's slot, or None for a model that is on disk only."""
        return self._slots.get(key)

    def has_place(self, slot: Slot) -> bool:
        """Whether a slot is the one that requests get, or is to take that one's place."""
        return slot.predecessor is not None or self._slots.get(slot.key) is slot

    @property
    def waiting(self) -> int:
        """Requests that wait for a lease."""
        return sum(len(slot.waiters) for slot in self)

    @property
    def can_evict(self) -> bool:
        """Whether an idle model may leave."""
        return any(not slot.is_kept for slot in self._idle.values())

    def candidates(self) -> list[Candidate]:
        """The idle models, in the order in which they are to leave."""
        idle = self._order.sort(self._idle.values())
        if any(slot.is_predicted for slot in idle):
            idle.sort(key=lambda slot: not slot.is_unused)  # nobody's place is taken by a guess
        if not self._siblings.is_alone:
            idle.sort(key=lambda slot: not self._is_second_copy(slot))  # nor by what is there twice
        return [Candidate(slot.key, slot.committed_bytes, slot.is_kept) for slot in idle]

    def _is_second_copy(self, slot: Slot) -> bool:
        """Whether another process of the host holds it too, which answers then; what holds next to nothing does not
        count."""
        return slot.committed_bytes >= _DEAR_BYTES and self._siblings.holder(str(slot.key)) is not None

    def evicted(self, slots: Sequence[Slot]) -> None:
        """Notes that these leave to make room."""
        self._order.evicted(slots)

    @property
    def rests_since(self) -> float | None:
        """Since when (monotonic) the idle model rests that has rested longest and may leave; None: there is none."""
        return next((slot.idle_since for slot in self._idle.values() if not slot.is_kept), None)

    def resting(self, since: float) -> list[Slot]:
        """The idle models that may leave and that nobody has used after `since` (monotonic), longest first."""
        # The order is that of last use: the first that is too young ends the search.
        rested = itertools.takewhile(lambda slot: slot.idle_since <= since, self._idle.values())
        return [slot for slot in rested if not slot.is_kept]

    @property
    def longest_idle(self) -> Slot | None:
        """The idle model that was used the longest ago; None where none is idle."""
        return next(iter(self._idle.values()), None)

    def in_use(self) -> list[Slot]:
        """The slots with leases."""
        return [slot for slot in self if slot.leases]

    def loaded(self) -> list[Slot]:
        """The slots that grant leases."""
        return [slot for slot in self._slots.values() if slot.state is SlotState.READY]

    def flush(self) -> None:
        """Starts the runs that wait only for others to share them."""
        for slot in self:
            if slot.runs is not None:
                slot.runs.flush()

    # --- coming and going --------------------------------------------------------------------------

    def add(self, slot: Slot) -> None:
        """Takes a new slot in; it is queued."""
        self._slots[slot.key] = slot
        self.queue.append(slot)

    def add_successor(self, slot: Slot, predecessor: Slot) -> None:
        """Takes in what is to take another one's place; it is queued, and that one goes on serving."""
        predecessor.successor, slot.predecessor = slot, predecessor
        self._aside.add(slot)
        self.queue.append(slot)

    def succeed(self, slot: Slot) -> Slot | None:
        """Puts a successor in its place; returns what it replaces, which has to leave and has no waiters now."""
        predecessor, slot.predecessor = slot.predecessor, None
        if predecessor is None:
            return None
        predecessor.successor = None
        self._aside.discard(slot)
        self._aside.add(predecessor)
        self._slots[slot.key] = slot
        slot.waiters += predecessor.waiters
        predecessor.waiters = []
        self._idle.pop(predecessor, None)  # nobody comes for it any more
        return predecessor

    def loading(self, slot: Slot) -> None:
        """Takes a slot out of the queue, whose load begins."""
        slot.move(SlotState.LOADING)
        self.queue.remove(slot)
        self._siblings.show(str(slot.key))

    def ready(self, slot: Slot) -> None:
        """Makes a loaded slot ready and grants its waiters, those that are still there."""
        slot.move(SlotState.READY)
        self._siblings.show(str(slot.key))
        slot.is_wanted = False
        slot.runs = self.runs(slot, self._statistics.of(slot.key))
        slot.runs_before = slot.runs.statistics.execution_count
        if not slot.departures:
            self.unloaded.discard(slot.key.name)
        waiters, slot.waiters = slot.waiters, []
        for waiter in waiters:
            if waiter.is_waiting:
                waiter.set(self.grant(slot))
        if slot.leases == 0:
            self._rest(slot)

    def drain(self, slot: Slot) -> None:
        """Has a slot grant nothing from here on, and leave when its last lease has ended."""
        slot.move(SlotState.DRAINING)
        self._hide(slot)

    def withdraw(self, slot: Slot) -> None:
        """Takes an idle or drained slot out of reach: it grants nothing from here on."""
        slot.move(SlotState.UNLOADING)
        self._hide(slot)
        slot.runs = None
        self._idle.pop(slot, None)

    def requeue(self, slot: Slot, *, is_first: bool = False) -> None:
        """Queues a slot again: its memory has gone while requests came in, or it has to be looked at anew."""
        slot.move(SlotState.QUEUED)
        self._hide(slot)
        _tell_departed(slot)
        slot.blocked_since = None
        slot.inspection = None  # the files may be others now
        self.queue.insert(0 if is_first else len(self.queue), slot)

    def drop(self, slot: Slot, error: ModelHostError) -> None:
        """Takes a slot that holds nothing out of the table and fails its waiters with `error`."""
        if slot in self.queue:
            self.queue.remove(slot)
        slot.move(SlotState.GONE)
        self._hide(slot)
        if self._slots.get(slot.key) is slot:
            del self._slots[slot.key]
        self._aside.discard(slot)
        if slot.predecessor is not None:
            slot.predecessor.successor = None
            slot.predecessor = None
        waiters, slot.waiters = slot.waiters, []
        for waiter in waiters:
            waiter.fail(error)
        _tell_departed(slot)

    def _hide(self, slot: Slot) -> None:
        """Has other processes of the host ask here no more, unless another slot of the model answers them."""
        if self._slots.get(slot.key) is slot:
            self._siblings.hide(str(slot.key))

    # --- leases ------------------------------------------------------------------------------------

    def grant(self, slot: Slot) -> Lease:
        """Counts a lease and makes it; the slot cannot be a victim from here on."""
        assert slot.runs is not None
        self._hold(slot)
        return Lease(slot.runs, release=lambda: self._release(slot))

    def touch(self, slot: Slot) -> None:
        """Notes a use that is over already, and for which nothing was counted."""
        slot.last_used = self._wall_clock()
        if slot.leases == 0:
            slot.idle_since = self._clock()
            if self._last_touched is not slot:
                self._last_touched = slot
                self._idle[slot] = self._idle.pop(slot)  # a look-up alone would not move it in the iteration

    def batch_rule(
        self,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        footprint: RunFootprint | None,
        said: bool | None,
    ) -> BatchRule | None:
        """Returns how requests for a model share runs; None where they do not. See `rows_are_independent`."""
        return self._batching if rows_are_independent(inputs, outputs, footprint, said) else None

    def runs(self, slot: Slot, statistics: ModelStatistics) -> ModelRuns:
        """Returns what runs a loaded slot's model, and counts the runs in `statistics`."""
        model = slot.model
        assert model is not None
        rule, lane = self.rule_of(slot), self.lane_of(slot)
        return ModelRuns(slot.key, model, self._runner, self._activations, statistics, rule, lane)

    def lane_of(self, slot: Slot) -> Lane:
        """Returns where a slot's runs wait for a thread, with the bounds that its options have now."""
        lane = self._runner.lane(str(slot.key))
        lane.max_running, lane.max_waiting = slot.options.max_concurrency, slot.options.max_queue
        return lane

    def rule_of(self, slot: Slot) -> BatchRule | None:
        """Returns how requests for a loaded slot's model share runs, as its options are now."""
        model = slot.model
        assert model is not None
        return self.batch_rule(model.inputs, model.outputs, model.run_footprint, slot.options.batching)

    def _hold(self, slot: Slot) -> None:
        if slot.leases == 0:
            self._idle.pop(slot, None)
        slot.leases += 1
        slot.last_used = self._wall_clock()

    def _release(self, slot: Slot) -> None:
        slot.leases -= 1
        slot.last_used = self._wall_clock()
        if slot.leases == 0:
            if slot.state is SlotState.READY:
                self._rest(slot)
            self.released(slot)

    def _rest(self, slot: Slot) -> None:
        self._last_touched = slot
        slot.idle_since = self._clock()
        self._idle[slot] = slot


def _tell_departed(slot: Slot) -> None:
    """Answers who waits for the slot's memory and came when it was already on its way."""
    departures, slot.departures = slot.departures, []
    for waiter in departures:
        waiter.set(None)


def info(slot: Slot) -> ModelInfo:
    """Returns what a slot says of itself."""
    return ModelInfo(
        name=slot.key.name,
        version=slot.key.version,
        state=slot.state.value,
        committed_bytes=slot.committed_bytes,
        leases=slot.leases,
        pinned=slot.pinned,
        last_used=slot.last_used or None,
        waiting=len(slot.waiters),
    )
