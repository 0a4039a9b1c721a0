"""What runs of one model take, in bytes and in time, by the shapes of their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from modelhost.prepare.footprint import RunFootprint
from modelhost.tensors import Array, TensorSpec

Feeds = Mapping[str, Array]
Shapes = tuple[tuple[int, ...], ...]

#: Shapes whose figures are remembered for each model.
_SHAPES_KEPT: Final = 256

#: A run that took longer than expected moves the figure by one part in so many; a shorter one is believed:
#: what else the machine does can only make a run longer.
_SLOW_TO_RISE: Final = 16

#: A row in a batch has to take this share, or less, of what it takes alone. Where it does not, sharing a run
#: only makes everybody wait for everybody.
_PAYS_BELOW: Final = 0.9

#: A shared run takes no longer than this, or than so many times what a request in it would take alone: nothing
#: else has its thread meanwhile, and whoever comes first has to wait for whoever comes last.
_SHARED_NS: Final = 100_000_000
_SHARED_TIMES: Final = 2

#: Times that were long may have been so by chance: of so many chances to share, one is taken all the same.
_TRIED_EVERY: Final = 64

#: Runs of less are short: who waits for the rest of one does not wait long.
_SHORT_NS: Final = 20_000_000

#: Runs on inputs of the same shapes before what they take is believed, and …
_RUNS_TO_KNOW: Final = 2
#: … of a size before what a row takes in them is.
_ROW_RUNS_TO_KNOW: Final = 3

#: The expected number of rows moves towards the present one by one part in so many with each request.
_CROWD_FORGETS: Final = 256

#: Rows are held back for others where a row then takes this share, or less, of what it would take now …
_HOLDS_BELOW: Final = 0.7
#: … for this share of the run's time, at most …
_HOLD_SHARE: Final = 0.25
#: … and not at all for less: timers of the event loop have steps of a millisecond.
_HOLD_MIN_S: Final = 0.0005


class Figures:
    """What a run on inputs of certain shapes takes."""

    __slots__ = ("bytes", "output_bytes", "run_ns", "runs")

    def __init__(self, predicted_bytes: int | None) -> None:
        self.bytes = predicted_bytes
        """Of the arena, as predicted; None where nobody can tell."""
        self.run_ns: float = math.inf
        """Time without anything beside it, as far as runs have shown; infinite before the first."""
        self.runs = 0
        """Runs that were timed."""
        self.output_bytes = 0
        """Size of all outputs of the largest one."""

    @property
    def is_short(self) -> bool:
        """Whether such a run is known to be short."""
        return self.is_within(_SHORT_NS)

    def is_within(self, limit_ns: int) -> bool:
        """Whether such a run is known to take no longer."""
        return self.runs >= _RUNS_TO_KNOW and self.run_ns <= limit_ns

    def note(self, took_ns: int, output_bytes: int) -> None:
        """Takes note of a run."""
        self.runs += 1
        if took_ns < self.run_ns:
            self.run_ns = took_ns
        else:
            self.run_ns += (took_ns - self.run_ns) / _SLOW_TO_RISE
        if output_bytes > self.output_bytes:
            self.output_bytes = output_bytes

    def note_at_most(self, took_ns: int, output_bytes: int) -> None:
        """Takes note of a larger run: this one takes no longer. Else requests that always share a run, as they
        come together, would never be known to be short."""
        self.runs += 1
        self.run_ns = min(self.run_ns, took_ns)
        self.output_bytes = max(self.output_bytes, output_bytes)


class RowTimes:
    """What a row takes in runs of how many, for rows of one shape: so whether sharing a run pays.

    By powers of two: there are enough runs of each to know. Event-loop thread.
    """

    __slots__ = ("_asked", "_crowd", "_known", "predicted_bytes")

    def __init__(self) -> None:
        self.predicted_bytes: dict[int, int | None] = {}
        """What a run of so many is predicted to take of the arena, as far as anybody has asked; see Figures."""
        self._known: dict[int, tuple[int, float]] = {}
        self._asked = 0
        self._crowd = 0.0

    def crowd(self, present: int) -> int:
        """Returns how many rows are to be expected, of which `present` wait or run: as many as there were lately.

        Those whose answers have just been sent come again in a moment, most of them.
        """
        self._crowd = present if present > self._crowd else self._crowd - (self._crowd - present) / _CROWD_FORGETS
        return round(self._crowd)

    def hold_s(self, rows: int, share: int) -> float:
        """Returns how long `rows` may wait for the rest of their share, where both are known and it pays; else 0."""
        row_ns, alone_ns = self._row_ns(share), self._row_ns(rows)
        if row_ns is None or alone_ns is None or row_ns > _HOLDS_BELOW * alone_ns:
            return 0.0
        if self._expected_ns(share) > self._limit_ns(rows):
            return 0.0
        hold_s = _HOLD_SHARE * row_ns * share / 1e9
        return hold_s if hold_s >= _HOLD_MIN_S else 0.0

    def note(self, rows: int, took_ns: int) -> None:
        """Takes note of a run."""
        size, found_ns = rows.bit_length(), took_ns / rows
        runs, row_ns = self._known.get(size, (0, math.inf))
        row_ns = found_ns if found_ns < row_ns else row_ns + (found_ns - row_ns) / _SLOW_TO_RISE
        self._known[size] = runs + 1, row_ns

    def pays_up_to(self, rows: int, together: int) -> int:
        """Returns up to how many rows, of about so many as `together`, a row takes less in a run of them than in one of
        `rows`, while that is not long either: 0 where `together` are too many. Unknown sizes are tried, and all of them
        now and then."""
        self._asked += 1
        if self._asked % _TRIED_EVERY == 0:
            return together
        limit_ns = self._limit_ns(rows)
        if self._expected_ns(together) > limit_ns:
            return 0
        row_ns, alone_ns = self._row_ns(together), self._row_ns(rows)
        if row_ns is None or alone_ns is None:
            return together
        if row_ns > _PAYS_BELOW * alone_ns:
            return 0
        return min((1 << together.bit_length()) - 1, int(limit_ns / row_ns))

    def _limit_ns(self, rows: int) -> float:
        """Returns how long a run may be that one of `rows`, which is its own measure, shares; see `_SHARED_NS`."""
        return max(_SHARED_NS, _SHARED_TIMES * self._expected_ns(rows))

    def _expected_ns(self, rows: int) -> float:
        """Returns what a run of so many rows is expected to take, from the first run on; 0 where there was none.

        Where none had about so many: a row takes no more than in smaller runs, and the run no more than larger ones.
        """
        known, size = self._known, rows.bit_length()
        if size in known:
            return rows * known[size][1]
        bounds = [(rows if other < size else (1 << other) - 1) * row_ns for other, (_, row_ns) in known.items()]
        return min(bounds, default=0.0)

    def _row_ns(self, rows: int) -> float | None:
        """Returns what a row takes in runs of about so many; None where too few of them were timed."""
        runs, row_ns = self._known.get(rows.bit_length(), (0, math.inf))
        return row_ns if runs >= _ROW_RUNS_TO_KNOW else None


class Demand:
    """What runs of one model take; remembers the shapes seen last. Notes are the event loop's; any thread may look."""

    __slots__ = ("_footprint", "_inputs", "_known")

    def __init__(self, specs: Mapping[str, TensorSpec], footprint: RunFootprint | None) -> None:
        self._footprint = footprint
        # Those with a size that a request may choose: the others are alike in all runs.
        self._inputs = tuple(name for name, spec in specs.items() if spec.shape is None or -1 in spec.shape)
        self._known: dict[Shapes, Figures] = {}

    def look(self, feeds: Feeds) -> Figures:
        """Returns the figures of a run on `feeds`, which have all inputs."""
        return self.at(tuple([feeds[name].shape for name in self._inputs]))

    def at(self, shapes: Shapes) -> Figures:
        """Returns the figures for `shapes`: of the inputs with a size that a request may choose, in order."""
        known = self._known.get(shapes)
        if known is None:
            if len(self._known) >= _SHAPES_KEPT:
                self._known.clear()
            predicted = None
            if self._footprint is not None:
                predicted = self._footprint.predict(dict(zip(self._inputs, shapes, strict=True)))
            known = self._known[shapes] = Figures(predicted)
        return known

    def rows_like(self, feeds: Feeds, rows: int) -> Figures:
        """Returns the figures of a run on so many rows, each like those of `feeds`."""
        return self.at(tuple([(rows, *feeds[name].shape[1:]) for name in self._inputs]))

    def predict(self, feeds: Feeds) -> int | None:
        """Returns the bytes of a run on `feeds`; None where nobody can tell."""
        return self.look(feeds).bytes

    def rows(self, feeds: Feeds) -> int | None:
        """Returns how many rows `feeds` has; None where the model is not known to have any."""
        places = () if self._footprint is None else self._footprint.dims.get(self._footprint.rows, ())
        sizes = [feeds[name].shape[axis] for name, axis in places if name in feeds and axis < feeds[name].ndim]
        return max(sizes, default=None)

    def largest_rows(self, feeds: Feeds, ceiling_bytes: int) -> int | None:
        """Returns how many rows fit under the ceiling; None where nobody can tell."""
        return (
            None
            if self._footprint is None
            else self._footprint.largest_rows({name: value.shape for name, value in feeds.items()}, ceiling_bytes)
        )
