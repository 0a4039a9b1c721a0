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

    def use(self, model: int, at: int) -> bool:
        """Notes a request; returns whether the model is loaded."""

    def load(self, model: int, at: int) -> None:
        """Notes that a model has been loaded for the request at `at`."""

    def leave(self) -> int:
        """Returns who leaves next, and forgets it. Something is loaded."""


class LeastRecentlyUsed:
    """Who was not used for longest."""

    def __init__(self, fleet: Fleet, trace: Trace) -> None:
        self._loaded: OrderedDict[int, None] = OrderedDict()

    def use(self, model: int, at: int) -> bool:
        """See Rule."""
        if model in self._loaded:
            self._loaded.move_to_end(model)
            return True
        return False

    def load(self, model: int, at: int) -> None:
        """See Rule."""
        self._loaded[model] = None

    def leave(self) -> int:
        """See Rule."""
        return self._loaded.popitem(last=False)[0]


class GreedyDualSizeFrequency:
    """Who is worth least; see `modelhost.pool.worth`. Every request counts as a use."""

    def __init__(self, fleet: Fleet, trace: Trace) -> None:
        self._per_use = [
            per_use(*model) for model in zip(fleet.load_s.tolist(), fleet.size_bytes.tolist(), strict=True)
        ]
        self._age = 0.0
        self._uses = [0] * len(fleet)
        """Since the load; 0: not loaded."""
        self._worth = [0.0] * len(fleet)
        # A worth only grows while a model is loaded: what the heap has may be too low, and is mended when it is met.
        self._heap: list[tuple[float, int]] = []

    def use(self, model: int, at: int) -> bool:
        """See Rule."""
        uses = self._uses[model]
        if not uses:
            return False
        self._uses[model] = uses = uses + 1
        self._worth[model] = self._age + uses * self._per_use[model]
        return True

    def load(self, model: int, at: int) -> None:
        """See Rule."""
        self._uses[model] = 1
        self._worth[model] = found = self._age + self._per_use[model]
        heappush(self._heap, (found, model))

    def leave(self) -> int:
        """See Rule."""
        heap = self._heap
        while True:
            noted, model = heap[0]
            current = self._worth[model]
            if current == noted:
                break
            heapreplace(heap, (current, model))
        heappop(heap)
        self._uses[model] = 0
        self._age = max(self._age, current)
        return model


class Belady:
    """Who will not be wanted for longest: it knows the trace. `by_size`: who takes most bytes for longest.

    With models of one size no policy loads fewer (L. A. Belady, "A study of replacement algorithms for a
    virtual-storage computer", IBM Systems Journal 5, 1966). With mixed sizes the optimum is hard to compute
    (D. S. Berger et al., "Practical Bounds on Optimal Caching with Variable Object Sizes", SIGMETRICS 2018): then both
    forms are good policies that know the future, and no bounds.
    """

    def __init__(self, fleet: Fleet, trace: Trace, *, by_size: bool = False) -> None:
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
