"""One job of the inference threads: a request's run, or several as one batch.

Requests that come while a batch waits for a thread join it. So nobody waits for a batch to fill, unless
`batching.max_delay` says so.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelhost.pool.activations import Claim, Kept
from modelhost.pool.demand import Demand, Feeds, Figures
from modelhost.pool.runner import Runner, without_frames
from modelhost.pool.statistics import ModelStatistics, Timing
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array

#: Inputs of a batch are copied side by side: at most so many bytes, beside the requests' own.
_MAX_STACKED_BYTES: Final = 4 << 20

#: A row in a batch has to take this share, or less, of what it takes alone. Where it does not, sharing a run
#: only makes everybody wait for everybody.
_PAYS_BELOW: Final = 0.9

#: Times that were long once may have been so by chance: every so many chances to join, one is taken.
_TRIED_EVERY: Final = 64

#: See Figures.note.
_SLOW_TO_RISE: Final = 16

#: Runs of a size before what they took is believed.
_RUNS_TO_KNOW: Final = 3


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How requests for one model may share a run."""

    max_rows: int
    max_delay_s: float = 0.0


def _nobody(run: Run) -> None:
    """Who is told the second time."""


class RowTimes:
    """What a row takes in runs of how many, for rows of one shape: so whether sharing a run pays.

    By powers of two: there are enough runs of each to know. Event-loop thread.
    """

    __slots__ = ("_asked", "_known")

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}
        self._asked = 0

    def note(self, rows: int, took_ns: int) -> None:
        """Takes note of a run. A short one is believed, a long one had to wait for others."""
        size = rows.bit_length()
        runs, row_ns = self._known.get(size, (0, math.inf))
        found_ns = took_ns / rows
        row_ns = found_ns if found_ns < row_ns else row_ns + (found_ns - row_ns) / _SLOW_TO_RISE
        self._known[size] = runs + 1, row_ns

    def pays(self, rows: int, together: int) -> bool:
        """Whether a run of `together` rows is expected to beat one of `rows`; unknown ones are tried, and all
        now and then."""
        self._asked += 1
        runs, row_ns = self._known.get(together.bit_length(), (0, 0.0))
        if runs < _RUNS_TO_KNOW or self._asked % _TRIED_EVERY == 0:
            return True
        alone_runs, alone_ns = self._known.get(rows.bit_length(), (0, math.inf))
        return alone_runs < _RUNS_TO_KNOW or row_ns <= _PAYS_BELOW * alone_ns


class Run:
    """One request's run. `finish` makes something of the outputs, on the inference thread.

    `on_end` is called with the run on the event loop, once, when its thread has returned; `result` or
    `error` has what became of it.
    """

    __slots__ = ("_on_end", "cancel", "claim", "created_ns", "error", "feeds", "finish", "outputs", "result", "timing")

    def __init__(
        self,
        feeds: Feeds,
        outputs: Sequence[str],
        finish: Callable[[list[Array]], Any],
        *,
        claim: Claim,
        cancel: CancelToken,
        timing: Timing,
        on_end: Callable[[Run], None],
    ) -> None:
        self.feeds, self.outputs, self.finish = feeds, outputs, finish
        self.claim, self.cancel, self.timing = claim, cancel, timing
        self.result: Any = None
        self.error: BaseException | None = None
        self.created_ns = time.perf_counter_ns()
        self._on_end = on_end

    def take(self, arrays: list[Array], began_ns: int, infer_ns: int) -> None:
        """Makes the result of the outputs; on the inference thread."""
        timing = self.timing
        timing.queue_ns += began_ns - self.created_ns
        timing.infer_ns = infer_ns
        finished_ns = time.perf_counter_ns()
        try:
            result = self.finish(arrays)
            if isinstance(result, Kept):
                self.claim.keep(result)
            self.result = result
        except BaseException as error:
            self.error = without_frames(error)
        timing.output_ns = time.perf_counter_ns() - finished_ns

    def ended(self) -> None:
        """Ends the claim and tells who asked. Only the first call counts."""
        tell, self._on_end = self._on_end, _nobody
        tell(self)
        self.claim.run_ended()


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has returned; `figures` are those of its shapes."""

    figures: Figures
    rows: int
    infer_ns: int
    output_ns: int
    output_bytes: int


class Batch:
    """A run, or several of one model as one. Made and joined on the event loop, worked on a thread."""

    __slots__ = (
        "_bytes",
        "_demand",
        "_is_taken",
        "_lock",
        "_model",
        "_ran",
        "_rows",
        "_runs",
        "_statistics",
        "_timer",
        "_times",
    )

    def __init__(
        self,
        model: LoadedModel,
        demand: Demand,
        statistics: ModelStatistics,
        run: Run,
        times: RowTimes | None = None,
    ) -> None:
        self._model, self._demand, self._statistics, self._times = model, demand, statistics, times
        self._runs = [run]
        self._rows = run.timing.rows
        self._bytes = 0
        self._is_taken = False
        self._lock = threading.Lock()  # taken for a moment: by who joins, and by the thread that begins
        self._timer: asyncio.Handle | None = None
        self._ran: list[Ran] = []

    @property
    def waiting(self) -> int:
        """Runs beyond the first, which is what the runner counts."""
        return len(self._runs) - 1

    # --- on the event loop -----------------------------------------------------------------------------

    def join(self, run: Run, rule: BatchRule) -> bool:
        """Takes a run of the same row's shape in, where the batch has not begun, has room, and should pay."""
        size_bytes = sum(value.nbytes for value in run.feeds.values())
        rows = self._rows + run.timing.rows
        if rows > rule.max_rows or self._bytes + 2 * size_bytes > _MAX_STACKED_BYTES or not self._pays(run, rows):
            return False
        with self._lock:
            if self._is_taken:
                return False
            self._runs.append(run)
        self._rows = rows
        self._bytes += size_bytes
        return True

    @property
    def is_taken(self) -> bool:
        """Whether a thread has begun on it: nobody joins any more."""
        return self._is_taken

    def _pays(self, run: Run, together: int) -> bool:
        return self._times is None or self._times.pays(run.timing.rows, together)

    def start_later(self, runner: Runner, delay_s: float) -> None:
        """Starts after `delay_s`, so that others may join."""
        loop = asyncio.get_running_loop()
        if delay_s:
            self._timer = loop.call_later(delay_s, self.start_now, runner)
        else:  # when all that has come is looked at
            self._timer = loop.call_soon(self.start_now, runner)

    def start_now(self, runner: Runner) -> None:
        """Starts a batch that waits for others to come; harmless for one that has started."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        try:
            runner.start(self)
        except Exception as error:
            self._is_taken = True
            for run in self._runs:
                run.error = without_frames(error)
            self.ended()

    def ended(self) -> None:
        """Takes note of what was found, and tells those who asked."""
        for ran in self._ran:
            self._statistics.note_execution(ran.rows, ran.infer_ns, ran.output_ns)
            ran.figures.note(ran.infer_ns, ran.output_bytes)
            if self._times is not None:
                self._times.note(ran.rows, ran.infer_ns)
        runs, self._runs = self._runs, []
        for run in runs:
            run.ended()

    # --- on the inference thread -------------------------------------------------------------------------

    def work(self) -> None:
        """Runs, together where there are several; those alone that cannot be run together."""
        with self._lock:
            self._is_taken = True
        wanted = [run for run in self._runs if not run.cancel.is_cancelled]
        if len(wanted) > 1 and self._run_together(wanted):
            return
        for run in wanted:
            if not run.cancel.is_cancelled:  # in the meantime
                self._run_alone(run)

    def _run_alone(self, run: Run) -> None:
        began_ns = time.perf_counter_ns()
        try:
            arrays = self._model.run(run.feeds, run.outputs, run.cancel)
            infer_ns = time.perf_counter_ns() - began_ns
            size_bytes = sum([array.nbytes for array in arrays])
            run.take(arrays, began_ns, infer_ns)
        except BaseException as error:
            run.error = without_frames(error)
        else:
            figures = self._demand.look(run.feeds)
            self._ran.append(Ran(figures, run.timing.rows, infer_ns, run.timing.output_ns, size_bytes))

    def _run_together(self, wanted: list[Run]) -> bool:
        """Runs all as one; returns whether that worked. An error may be one request's own fault."""
        total = sum(run.timing.rows for run in wanted)
        names = list(dict.fromkeys(name for run in wanted for name in run.outputs))
        began_ns = time.perf_counter_ns()
        try:
            stacked = {name: np.concatenate([run.feeds[name] for run in wanted]) for name in wanted[0].feeds}
            arrays = dict(zip(names, self._model.run(stacked, names, CancelToken()), strict=True))
        except Exception:
            return False
        if any(array.ndim == 0 or array.shape[0] != total for array in arrays.values()):
            return False
        infer_ns = time.perf_counter_ns() - began_ns
        size_bytes = sum(array.nbytes for array in arrays.values())
        start = output_ns = 0
        for run in wanted:
            end = start + run.timing.rows
            run.take([arrays[name][start:end] for name in run.outputs], began_ns, infer_ns)
            start = end
            output_ns += run.timing.output_ns
        self._ran.append(Ran(self._demand.rows_like(wanted[0].feeds, total), total, infer_ns, output_ns, size_bytes))
        return True
