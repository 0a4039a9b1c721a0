"""Whether an operation leaks: repeated, with what grows after warm-up told from what grows at first."""

from __future__ import annotations

import gc
import os
import sys
import tracemalloc
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from modelhost.memory import allocator
from modelhost.slope import Slope, theil_sen
from modelhost.testing.belongings import Belongings, look
from modelhost.testing.census import Census, take_census
from modelhost.testing.snapshot import read_counts
from modelhost.units import format_bytes

#: Small objects, threads or files that have to stay per iteration before they are worth a closer look.
_SUSPECT_COUNT: Final = 0.2
_MIN_ITERATIONS: Final = 40
#: Rounds of iterations that all have to grow: a cache that fills slowly is full by then.
_ROUNDS: Final = 3
#: Growth that falls below this share of the last round's is slowing down, and is given more rounds to end, so many in
#: all: the C library keeps freed blocks of each size at hand, which count as in use, and in a fresh process are more
#: with each round, by a third as many as in the one before.
_SLOWING: Final = 0.8
_MOST_ROUNDS: Final = 8
#: Iterations that are traced where something was found, and as many before: of what is replaced meanwhile, only the new
#: is traced.
_TRACED: Final = 50
#: Mapped memory that grows by less than this share of Python's small objects is the memory that they lie in.
_ARENA_SHARE: Final = 0.5
_OWN_DIRECTORY: Final = os.path.dirname(__file__)


class Leak(Enum):
    """What can stay behind."""

    THREADS = "threads"
    FILES = "open files"
    PYTHON = "Python objects"
    NATIVE = "native memory"
    MAPPED = "anonymous mappings"
    SHARED = "mapped shared memory or files"

    @property
    def is_counted(self) -> bool:
        """Whether it is a number of things; else it is bytes."""
        return self in (Leak.THREADS, Leak.FILES)


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What a repeated operation leaves behind, per iteration; true where that is a leak, prints as a sentence."""

    iterations: int
    growth: tuple[tuple[Leak, Slope], ...] = ()
    """What stays of each kind, in bytes or by number, with its 99.9 % confidence interval."""
    where: tuple[str, ...] = ()
    """Lines that made what stays, most first; types of objects, files, threads and mappings that grew."""

    def of(self, kind: Leak) -> float:
        """What stays of a kind per iteration, in bytes or by number; 0 where nothing does."""
        return dict(self.growth)[kind].value if kind in self.kinds else 0.0

    @property
    def kinds(self) -> frozenset[Leak]:
        """All that leaks."""
        return frozenset(kind for kind, _ in self.growth)

    @property
    def python_bytes(self) -> float:
        """Live Python objects per iteration."""
        return self.of(Leak.PYTHON)

    @property
    def native_bytes(self) -> float:
        """Blocks of the C library's heap per iteration that are no Python objects."""
        return self.of(Leak.NATIVE)

    @property
    def bytes_per_iteration(self) -> float:
        """All that is bytes together."""
        return sum(slope.value for kind, slope in self.growth if not kind.is_counted)

    def __bool__(self) -> bool:
        return bool(self.growth)

    def __str__(self) -> str:
        if not self:
            return f"no leak in {self.iterations} iterations"
        parts = [_phrase(kind, slope) for kind, slope in self.growth]
        lines = [f"leak: {', '.join(parts)} per iteration, over {self.iterations} iterations"]
        return "\n".join([*lines, *(f"  {line}" for line in self.where)])


def _phrase(kind: Leak, slope: Slope) -> str:
    if kind.is_counted:
        return f"{slope.value:.1f} {kind.value} (99.9 %: {slope.low:.1f} to {slope.high:.1f})"
    return f"{_size(slope.value)} of {kind.value} (99.9 %: {_size(slope.low)} to {_size(slope.high)})"


class LeakDetector:
    """Repeats an operation and says what stays of it. One thread; others should be quiet meanwhile.

    Counts exact figures of the allocators and the kernel, not pages: 1 KB per iteration is found within 500,
    warm-up and confirmation included. Growth counts where the whole interval of its slope is above
    `min_bytes`, in a round of `iterations`, in its second half, and in two rounds after it, and in more
    of them while it slows down: what fills up and ends is none. Threads and open files that stay are
    leaks too, with what belongs to them. Collects garbage after each iteration.
    """

    def __init__(self, iterations: int = 120, *, warm_up: int | None = None, min_bytes: int = 128) -> None:
        if iterations < _MIN_ITERATIONS:
            raise ValueError(f"expected at least {_MIN_ITERATIONS} iterations, got {iterations}")
        if warm_up is not None and warm_up < 0:
            raise ValueError(f"expected a warm-up of 0 iterations or more, got {warm_up}")
        if min_bytes < 1:
            raise ValueError(f"expected min_bytes of 1 or more, got {min_bytes}")
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
            growing, rounds, is_slowing = self._round(operation), 1, False
            while growing and (rounds < _ROUNDS or (is_slowing and rounds < _MOST_ROUNDS)):
                before, again = growing, self._round(operation)
                growing = {name: slope for name, slope in again.items() if name in before}
                is_slowing = all(slope.value < _SLOWING * before[name].value for name, slope in growing.items())
                rounds += 1
            if not growing:
                return LeakReport(rounds * self.iterations)
            return self._located(operation, rounds * self.iterations, growing, freezes=freezes)
        finally:
            if freezes:
                gc.unfreeze()

    def _round(self, operation: Callable[[], object]) -> dict[str, Slope]:
        """Returns how each figure grows that does so from the round's beginning to its end."""
        names = ("blocks", "native", "mapped", "shared", "threads", "files")
        series = {name: array("q", bytes(8 * self.iterations)) for name in names}
        for index in range(self.iterations):
            operation()
            gc.collect()
            figures, counts = allocator.heap_figures(), read_counts()
            series["blocks"][index] = sys.getallocatedblocks()
            series["native"][index] = 0 if figures is None else figures.in_use_bytes
            # Without the heap's own figures, what it takes cannot be told from other mappings.
            series["mapped"][index] = 0 if figures is None else counts.writable_bytes - figures.system_bytes
            series["shared"][index] = counts.other_mapped_bytes
            series["threads"][index] = counts.threads
            series["files"][index] = counts.open_files or 0
        least = {"native": self.min_bytes, "mapped": self.min_bytes, "shared": self.min_bytes}
        found = ((name, _growth(values, least.get(name, _SUSPECT_COUNT))) for name, values in series.items())
        return {name: slope for name, slope in found if slope is not None}

    def _located(
        self, operation: Callable[[], object], measured: int, growing: dict[str, Slope], *, freezes: bool
    ) -> LeakReport:
        """Runs some more iterations with tracing, for what is Python's, which lines made it, and what it belongs to."""
        was_tracing = tracemalloc.is_tracing()
        if not was_tracing:
            tracemalloc.start()
        try:
            for _ in range(_TRACED):
                operation()
            gc.collect()
            things, objects, before = look(), _count(freezes), _Traced.now()
            traced = array("q", bytes(8 * _TRACED))
            for index in range(_TRACED):
                operation()
                gc.collect()
                traced[index] = tracemalloc.get_traced_memory()[0]
            lines, large = _Traced.now().since(before)
        finally:
            if not was_tracing:
                tracemalloc.stop()
        del before  # its own objects are not to be counted
        objects_after, things_after = _count(freezes), look()
        growth = self._kinds(theil_sen(traced), large, growing)
        kinds = {kind for kind, _ in growth}
        where = []
        if Leak.PYTHON in kinds:
            least_bytes = min(self.min_bytes, dict(growth)[Leak.PYTHON].value) / 4
            where += [f"{line}: {_size(size)} per iteration" for line, size in lines if size >= least_bytes]
        if growth:
            where += [
                f"{count / _TRACED:.1f} objects of type {name} per iteration"
                for name, count, _ in objects_after.grown(objects)
                if count >= _TRACED // 2 and name != "int"  # those of the counting itself
            ]
        arrays = objects_after.foreign_arrays - objects.foreign_arrays
        if Leak.NATIVE in kinds and arrays >= _TRACED // 2:
            where.append(f"{arrays / _TRACED:.1f} numpy arrays per iteration stay that are views of native memory")
        return LeakReport(measured, growth, tuple(where + _names(things, things_after, kinds)))

    def _kinds(self, python: Slope, large: float, growing: dict[str, Slope]) -> tuple[tuple[Leak, Slope], ...]:
        """Tells from each other what one leak has several figures grow by. `large` is Python's share of the heap."""
        found: dict[Leak, Slope] = {}
        for kind, name in ((Leak.THREADS, "threads"), (Leak.FILES, "files")):
            if name in growing:
                found[kind] = growing[name]
        if python.low > self.min_bytes / 2:
            found[Leak.PYTHON] = python
        small = max(0.0, python.value - large) if Leak.PYTHON in found else 0.0
        for kind, name, less in ((Leak.NATIVE, "native", large), (Leak.MAPPED, "mapped", small)):
            if name in growing:
                found[kind] = _lowered(growing[name], less)
        if "shared" in growing:
            found[Leak.SHARED] = growing["shared"]
        least = {**dict.fromkeys((Leak.NATIVE, Leak.SHARED), self.min_bytes), Leak.MAPPED: small * _ARENA_SHARE}
        found = {kind: slope for kind, slope in found.items() if kind.is_counted or slope.value > least.get(kind, 0)}
        if Leak.THREADS in found:  # their stacks, and the pages that guard them
            found = {kind: slope for kind, slope in found.items() if kind not in (Leak.MAPPED, Leak.SHARED)}
        if len(found) == 1 and Leak.PYTHON in found and python.value < self.min_bytes:
            return ()
        return tuple(found.items())


def _count(freezes: bool) -> Census:
    """What stays may hang on what is frozen, where it would not be found."""
    if freezes:
        gc.unfreeze()
    census = take_census()
    if freezes:
        gc.freeze()
    return census


def _growth(series: Sequence[int], above: float) -> Slope | None:
    """The slope where the series grows, and goes on growing; None where it does not."""
    if min(series) == max(series):  # as most are; slopes take a while
        return None
    whole, later = theil_sen(series), theil_sen(series[len(series) // 2 :])
    return whole if whole.low > above and later.low > above else None


def _lowered(slope: Slope, less: float) -> Slope:
    return Slope(slope.value - less, slope.low - less, slope.high - less)


@dataclass(frozen=True, slots=True)
class _Traced:
    """What `tracemalloc` has of the live Python objects."""

    lines: dict[tuple[str, int], int]
    """File and line to the bytes that it made."""
    large_bytes: int
    """What lies in the C library's heap, since Python's own allocator takes up to 512 bytes."""

    @classmethod
    def now(cls) -> _Traced:
        lines, large_bytes = Counter[tuple[str, int]](), 0
        for trace in tracemalloc.take_snapshot().traces:
            frame = trace.traceback[0]
            if not frame.filename.startswith((_OWN_DIRECTORY, tracemalloc.__file__)):  # counting takes some itself
                lines[frame.filename, frame.lineno] += trace.size
                large_bytes += trace.size if trace.size > 512 else 0
        return cls(dict(lines), large_bytes)

    def since(self, before: _Traced) -> tuple[list[tuple[str, float]], float]:
        """Returns what grew per iteration: the lines that made most of it, and how much of it lies in the heap."""
        more = ((at, (size - before.lines.get(at, 0)) / _TRACED) for at, size in self.lines.items())
        grown = sorted((entry for entry in more if entry[1] > 0), key=lambda entry: -entry[1])[:8]
        large = max(0.0, (self.large_bytes - before.large_bytes) / _TRACED)
        return [(f"{file}:{line}", size) for (file, line), size in grown], large


def _names(before: Belongings, after: Belongings, kinds: set[Leak]) -> list[str]:
    """Names what grew of files, threads and mappings, the most three of each."""
    lines = []
    if Leak.FILES in kinds:
        for name, count in (after.files - before.files).most_common(3):
            lines.append(f"open: {name}" + (f", {count} times" if count > 1 else ""))
    if Leak.THREADS in kinds:
        for name, count in (after.threads - before.threads).most_common(3):
            lines.append(f"running: {name}" + (f", {count} times" if count > 1 else ""))
    if Leak.SHARED in kinds:
        for name, size in (after.mappings - before.mappings).most_common(3):
            lines.append(f"mapped: {name}, {_size(size / _TRACED)} per iteration")
    return lines


def _size(size_bytes: float) -> str:
    return f"{size_bytes:.0f} bytes" if abs(size_bytes) < 1024 else format_bytes(size_bytes)
