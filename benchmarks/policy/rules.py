"""Eviction policies as the simulation runs them: who leaves when room is needed.

They take the host's own formula where it has one (`modelhost.pool.worth`), but not its data structures: a host sorts
some hundred idle models when it needs room, a simulation needs room ten million times among thousands.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy.fleet import Fleet
from benchmarks.policy.traces import Trace
from modelhost.pool.worth import per_use


class Rule(Protocol):
    """Knows what is loaded, and in which order it is to leave. Requests are numbered by their place in the trace."""

    age: float
    """What the last that left was worth, in this rule's own unit: it grows as long as room is scarce."""

    def use(self, model: int, at: int) -> bool:
        """Notes a request; returns whether the model is loaded."""

    def load(self, model: int, at: int) -> None:
        """Notes that a model has been loaded for the request at `at`."""

    def leave(self) -> int:
        """Returns who leaves next, and forgets it. Something is loaded."""


class LeastRecentlyUsed:
    """Who was not used for longest."""

    def __init__(self, fleet: Fleet, trace: Trace) -> None:
        self.age: float = 0
        self._loaded: OrderedDict[int, int] = OrderedDict()
        """With the last use of each."""

    def use(self, model: int, at: int) -> bool:
        """See Rule."""
        loaded = self._loaded
        if model in loaded:
            loaded[model] = at
            loaded.move_to_end(model)
            return True
        return False

    def load(self, model: int, at: int) -> None:
        """See Rule."""
        self._loaded[model] = at

    def leave(self) -> int:
        """See Rule."""
        model, self.age = self._loaded.popitem(last=False)
        return model


class GreedyDualSizeFrequency:
    """Who is worth least; see `modelhost.pool.worth`. Every request counts as a use."""

    def __init__(self, fleet: Fleet, trace: Trace) -> None:
        self.age = 0.0
        self._fleet = fleet
        self._loaded: dict[int, _Valued] = {}
        # A worth only grows while a model is loaded: what the heap has may be too low, and is mended when it is met.
        self._heap: list[tuple[float, int]] = []

    def use(self, model: int, at: int) -> bool:
        """See Rule."""
        valued = self._loaded.get(model)
        if valued is None:
            return False
        valued.uses = uses = valued.uses + 1
        valued.worth = self.age + uses * valued.per_use
        return True

    def load(self, model: int, at: int) -> None:
        """See Rule."""
        gain = per_use(self._fleet.load_s.item(model), self._fleet.size_bytes.item(model))
        self._loaded[model] = valued = _Valued(gain, self.age + gain)
        heappush(self._heap, (valued.worth, model))

    def leave(self) -> int:
        """See Rule."""
        heap, loaded = self._heap, self._loaded
        while True:
            noted, model = heap[0]
            current = loaded[model].worth
            if current == noted:
                break
            heapreplace(heap, (current, model))
        heappop(heap)
        del loaded[model]
        self.age = max(self.age, current)
        return model


class _Valued:
    """What a loaded model is worth, and what each use adds."""

    __slots__ = ("per_use", "uses", "worth")

    def __init__(self, per_use: float, worth: float) -> None:
        self.per_use, self.uses, self.worth = per_use, 1, worth


class Belady:
    """Who will not be wanted for longest: it knows the trace. `by_size`: who takes most bytes for longest.

    With models of one size no policy loads fewer (L. A. Belady, "A study of replacement algorithms for a
    virtual-storage computer", IBM Systems Journal 5, 1966). With mixed sizes the optimum is hard to compute
    (D. S. Berger et al., "Practical Bounds on Optimal Caching with Variable Object Sizes", SIGMETRICS 2018): then both
    forms are good policies that know the future, and no bounds.
    """

    def __init__(self, fleet: Fleet, trace: Trace, *, by_size: bool = False) -> None:
        self.age: float = 0  # it knows better
        self._next = array("q", next_uses(trace).tobytes())  # read one by one, which an array of numpy's is slow at
        self._sizes: list[int] = fleet.size_bytes.tolist() if by_size else [1] * len(fleet)
        self._wanted: dict[int, int] = {}
        # A heap for each power of two of sizes, as bytes times distance keep no order while time goes on: the farthest
        # of each is a candidate. Entries are (-when it is wanted next, model); those of requests that have passed stay
        # behind until they are met, or are many.
        self._heaps: list[list[tuple[int, int]]] = [[] for _ in range(max(self._sizes).bit_length() + 1)]
        self._entries = self._now = 0

    def use(self, model: int, at: int) -> bool:
        """See Rule."""
        if model not in self._wanted:
            return False
        self.load(model, at)
        return True

    def load(self, model: int, at: int) -> None:
        """See Rule."""
        self._now = at
        self._wanted[model] = wanted = self._next[at]
        heappush(self._heaps[self._sizes[model].bit_length()], (-wanted, model))
        self._entries += 1
        if self._entries > 4 * len(self._wanted) + 4096:
            self._tidy()

    def leave(self) -> int:
        """See Rule."""
        best_score, best = -1, -1
        for heap in self._heaps:
            while heap and self._wanted.get(heap[0][1]) != -heap[0][0]:
                heappop(heap)
                self._entries -= 1
            if heap:
                wanted, model = heap[0]
                score = (-wanted - self._now) * self._sizes[model]
                if score > best_score:
                    best_score, best = score, model
        del self._wanted[best]
        return best

    def _tidy(self) -> None:
        for heap in self._heaps:
            heap.clear()
        for model, wanted in self._wanted.items():
            self._heaps[self._sizes[model].bit_length()].append((-wanted, model))
        for heap in self._heaps:
            heapify(heap)
        self._entries = len(self._wanted)


def next_uses(trace: Trace) -> NDArray[np.int64]:
    """Returns for each request the place of the next one for the same model; twice the trace's length for the last."""
    order = np.argsort(trace, kind="stable")
    following = np.full(len(trace), 2 * len(trace), np.int64)
    is_same = trace[order[1:]] == trace[order[:-1]]
    following[order[:-1][is_same]] = order[1:][is_same]
    return following


#: By the name that the command line has for them.
RULES: Final[Mapping[str, Callable[[Fleet, Trace], Rule]]] = {
    "lru": LeastRecentlyUsed,
    "gdsf": GreedyDualSizeFrequency,
    "belady": Belady,
    "belady-size": partial(Belady, by_size=True),
}
