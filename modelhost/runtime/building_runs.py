"""Measured runs: what one takes at most, for how long, and how that grows with each free dimension."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from modelhost.prepare.footprint import RunPoint
from modelhost.prepare.manifest import RunFigures
from modelhost.runtime.building_questions import Asking
from modelhost.runtime.building_sessions import Engine
from modelhost.runtime.building_steps import reset_peak, status_bytes
from modelhost.tensors import Array

#: Runs that are timed: so many, and more while they are short, but never for long. The fastest counts, in processor
#: time (a session here has one thread): others use the machine too.
_REPEATS, _MAX_REPEATS, _TIMED_S, _MAX_TIMED_S = 3, 50, 0.01, 0.1
#: A point is measured only where its run is expected to take no more than this. Processor time: others use the
#: machine too. More rows only show what eight have shown; that attention is quadratic shows at long sequences.
_POINT_BYTES, _ROWS_S, _POINT_S = 48 << 20, 0.1, 0.8
#: All points together take about as long at most.
_POINTS_S: Final = 2.0
_LARGEST: Final = 512
_ROWS: Final = (2, 4, 32, 256)
#: A run this short is run once more before it is measured, so that no page of code or weights is new to it.
_WARMED_S: Final = 0.01


def measured_run(session: Any, feed: Mapping[str, Array], engine: Engine) -> tuple[int, float]:
    """Returns the bytes that a run takes at most, from an empty arena, and its seconds of processor time."""
    engine.trim()
    reset_peak()
    before = status_bytes("VmRSS")
    started = time.process_time()
    session.run(None, feed)
    seconds = time.process_time() - started
    return max(0, status_bytes("VmHWM") - before), seconds


def run_figures(session: Any, feed: Mapping[str, Array], rows: int, engine: Engine) -> RunFigures:
    """Measures a run of a model that has just run on the same, and times some more."""
    taken_bytes, first_s = measured_run(session, feed, engine)
    times = [first_s]
    while sum(times) < _MAX_TIMED_S and (
        len(times) < _REPEATS or (sum(times) < _TIMED_S and len(times) < _MAX_REPEATS)
    ):
        started = time.process_time()
        session.run(None, feed)
        times.append(time.process_time() - started)
    return RunFigures(rows, taken_bytes, min(times) * 1e3)


class Points:
    """Runs at sizes beyond those of the questions, while they stay cheap. Yields each as it is measured."""

    def __init__(self, session: Any, asking: Asking, engine: Engine, runs: Sequence[RunFigures]) -> None:
        """Takes the questions' runs as known."""
        self._session, self._asking, self._engine = session, asking, engine
        self._known = {tuple(asking.sizes_with(found.rows).values()): (found.bytes, found.ms / 1e3) for found in runs}
        self._ends = time.process_time() + _POINTS_S

    def measure(self) -> Iterator[RunPoint]:
        """Measures more rows, larger sizes of each other dimension, and some of both."""
        asking = self._asking
        has_rows = len(asking.batches) > 1
        others = [name for name in asking.sizes if name != asking.dims.rows]
        if not (others or has_rows):
            return
        self._session.run(None, asking.feed_of(asking.sizes))  # touches the weights
        growing = [[name] for name in others] + ([others] if len(others) > 1 else [])
        largest = []
        for names in growing:
            sizes = dict(asking.sizes)
            for point in self._grow(sizes, names):
                yield point
                sizes = dict(point.sizes)
            largest.append(sizes)
        if has_rows:
            for sizes in [dict(asking.sizes), *largest]:
                yield from self._with_rows(sizes)
            for names in growing:
                yield from self._grow(asking.sizes_with(asking.batches[1]), names, _ROWS_S)

    def _with_rows(self, sizes: Mapping[str, int]) -> Iterator[RunPoint]:
        """Measures as many more rows as the bounds leave."""
        rows = self._asking.dims.rows
        for factor in _ROWS:
            yield from self._try({**sizes, rows: sizes[rows] * factor}, _ROWS_S)

    def _grow(self, start: Mapping[str, int], names: Sequence[str], limit_s: float = _POINT_S) -> Iterator[RunPoint]:
        """Makes dimensions larger, fourfold at first, then by what the bounds leave."""
        sizes, factor = dict(start), 4
        while factor > 1 and max(sizes[name] for name in names) < _LARGEST:
            larger = {**sizes, **{name: min(_LARGEST, sizes[name] * factor) for name in names}}
            points = list(self._try(larger, limit_s))
            if points:
                yield from points
                sizes = larger
            else:
                factor //= 2

    def _try(self, sizes: Mapping[str, int], limit_s: float = _POINT_S) -> Iterator[RunPoint]:
        key = tuple(sizes.values())
        if key in self._known or not self._is_cheap(key, limit_s):
            return
        try:
            feed = self._asking.feed_of(sizes)
            if self._expected(key)[1] < _WARMED_S:
                self._session.run(None, feed)
            found = measured_run(self._session, feed, self._engine)
        except Exception:  # a size that the model does not take
            self._known.setdefault(key, (0, math.inf))
            return
        self._known[key] = found
        yield RunPoint(dict(sizes), found[0])

    def _is_cheap(self, key: tuple[int, ...], limit_s: float) -> bool:
        taken_bytes, seconds = self._expected(key)
        return taken_bytes <= _POINT_BYTES and seconds <= min(limit_s, self._ends - time.process_time())

    def _expected(self, key: tuple[int, ...]) -> tuple[float, float]:
        """Scales what the nearest smaller run took, as a step that multiplies sizes with themselves would."""
        expected: tuple[float, float] = (math.inf, math.inf)
        for known, (taken_bytes, seconds) in self._known.items():
            ratios = [new / old for new, old in zip(key, known, strict=True)]
            if min(ratios) >= 1 and taken_bytes + seconds < math.inf:
                growth = math.prod(ratios) * (max(ratios) if self._squares(ratios) else 1)
                expected = min(expected, (taken_bytes * growth, seconds * growth))
        return expected

    def _squares(self, ratios: Sequence[float]) -> bool:
        """Rows do not meet each other; all else may."""
        return any(
            ratio > 1 and name != self._asking.dims.rows for name, ratio in zip(self._asking.sizes, ratios, strict=True)
        )
