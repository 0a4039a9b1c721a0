"""Whether an operation leaks: repeated, with what grows after warm-up told from what grows at first."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from modelhost.memory import allocator
from modelhost.testing.slope import Slope, theil_sen
from modelhost.testing.snapshot import take_snapshot
from modelhost.units import format_bytes

#: Small objects that have to stay per iteration before it is worth a closer look.
_SUSPECT_BLOCKS: Final = 0.2
_MIN_ITERATIONS: Final = 40
#: Rounds of iterations that all have to grow: a cache that fills slowly is full by then.
_ROUNDS: Final = 3
#: Iterations that are traced where Python objects are suspected.
_TRACED: Final = 60


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a repeated operation leaves behind, per iteration; true where that is a leak, prints as a sentence."""

    iterations: int
    python_bytes: float
    native_bytes: float
    where: tuple[str, ...] = ()
    """Lines that made what stays, most first, and the types of objects that grew."""

    @property
    def bytes_per_iteration(self) -> float:
        """Both kinds together."""
        return self.python_bytes + self.native_bytes

    def __bool__(self) -> bool:
        return self.bytes_per_iteration > 0

    def __str__(self) -> str:
        if not self:
            return f"no leak in {self.iterations} iterations"
        parts = [
            f"{format_bytes(size)} of {what}"
            for size, what in ((self.python_bytes, "Python objects"), (self.native_bytes, "native memory"))
            if size > 0
        ]
        lines = [f"leak: {' and '.join(parts)} per iteration, over {self.iterations} iterations"]
        return "\n".join([*lines, *(f"  {line}" for line in self.where)])


class LeakDetector:
    """Repeats an operation and says what stays of it. One thread; others should be quiet meanwhile.

    Counts exact figures of the allocators, not pages: 1 KB per iteration is found within 500, warm-up and
    confirmation included. Growth counts where the whole interval of its slope is above `min_bytes`, in a
    round of `iterations`, in its second half, and in two rounds after it: what fills up and ends is none.
    Collects garbage after each iteration.
    """

    def __init__(self, iterations: int = 120, *, warm_up: int | None = None, min_bytes: int = 128) -> None:
        if iterations < _MIN_ITERATIONS:
            raise ValueError(f"expected at least {_MIN_ITERATIONS} iterations, got {iterations}")
        self.iterations, self.min_bytes = iterations, min_bytes
        self.warm_up = max(10, iterations // 5) if warm_up is None else warm_up

    def run(self, operation: Callable[[], object]) -> LeakReport:
        """Repeats `operation` and returns the report. What the operation raises goes through."""
        gc.collect()
        # What lives already need not be looked at again; a process that froze objects itself keeps them frozen.
        freezes = gc.get_freeze_count() == 0
        try:
            for _ in range(self.warm_up):
                operation()
            gc.collect()
            if freezes:
                gc.freeze()
            found = [self._round(operation)]
            while len(found) < _ROUNDS and any(found[-1]):
                found.append(self._round(operation))
            native, blocks = found[-1]
            measured = self.iterations * len(found)
            if native is None and blocks is None:
                return LeakReport(measured, 0.0, 0.0)
            return self._located(operation, measured, native)
        finally:
            if freezes:
                gc.unfreeze()

    def _round(self, operation: Callable[[], object]) -> tuple[Slope | None, Slope | None]:
        """Returns how the heap and the number of Python's small objects grow, None for what does not."""
        heap, blocks = array("q", bytes(8 * self.iterations)), array("q", bytes(8 * self.iterations))
        for index in range(self.iterations):
            operation()
            gc.collect()
            figures = allocator.heap_figures()
            heap[index] = 0 if figures is None else figures.in_use_bytes
            blocks[index] = sys.getallocatedblocks()
        return self._growth(heap, self.min_bytes), self._growth(blocks, _SUSPECT_BLOCKS)

    @staticmethod
    def _growth(series: Sequence[int], above: float) -> Slope | None:
        """The slope where the series grows, and goes on growing; None where it does not."""
        whole, later = theil_sen(series), theil_sen(series[len(series) // 2 :])
        return whole if whole.low > above and later.low > above else None

    def _located(self, operation: Callable[[], object], measured: int, native: Slope | None) -> LeakReport:
        """Runs some more iterations with tracing, for what is Python's and which lines made it."""
        was_tracing = tracemalloc.is_tracing()
        if not was_tracing:
            tracemalloc.start()
        try:
            before_types = take_snapshot(objects=True)
            before = tracemalloc.take_snapshot()
            traced = array("q", bytes(8 * _TRACED))
            for index in range(_TRACED):
                operation()
                gc.collect()
                traced[index] = tracemalloc.get_traced_memory()[0]
            after = tracemalloc.take_snapshot()
            after_types = take_snapshot(objects=True)
        finally:
            if not was_tracing:
                tracemalloc.stop()
        slope = theil_sen(traced)
        python_bytes = max(0.0, slope.value) if slope.low > self.min_bytes / 2 else 0.0
        large = sum(_large(snapshot) * sign for snapshot, sign in ((after, 1), (before, -1))) / _TRACED
        native_bytes = native.value - max(0.0, large) if native is not None else 0.0
        if native_bytes < self.min_bytes:
            native_bytes = 0.0
        if python_bytes < self.min_bytes and not native_bytes:
            python_bytes = 0.0
        where = []
        for line in after.compare_to(before, "lineno")[:10]:
            if python_bytes and line.size_diff / _TRACED >= min(self.min_bytes, python_bytes) / 4:
                frame = line.traceback[0]
                if frame.filename not in (__file__, tracemalloc.__file__):
                    size = format_bytes(line.size_diff / _TRACED)
                    where.append(f"{frame.filename}:{frame.lineno}: {size} per iteration")
        assert before_types.objects is not None
        assert after_types.objects is not None
        arrays = after_types.objects.foreign_arrays - before_types.objects.foreign_arrays
        if native_bytes and arrays >= _TRACED // 2:
            where.append(f"{arrays / _TRACED:.1f} numpy arrays per iteration stay that are views of native memory")
        return LeakReport(measured, python_bytes, native_bytes, tuple(where))


def _large(snapshot: tracemalloc.Snapshot) -> int:
    """What is traced and lies in the C library's heap, since Python's own allocator takes up to 512 bytes."""
    return sum(trace.size for trace in snapshot.traces if trace.size > 512)
