"""One job of the inference threads: a request's run, or several as one batch.

Requests that come while a batch waits for a thread join it. So nobody waits for a batch to fill, unless
`batching.max_delay` says so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from modelhost.errors import MemoryRefusal, ModelHostError, WorkerCrashed, WorkerRestarting
from modelhost.pool.activations import Claim, Kept
from modelhost.pool.demand import Demand, Feeds, Figures, RowTimes
from modelhost.pool.lanes import Lane
from modelhost.pool.runner import Runner, without_frames
from modelhost.pool.statistics import ModelStatistics, Timing
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array

log = logging.getLogger("modelhost")

#: Inputs of a batch are copied side by side: at most so many bytes, beside the requests' own.
_MAX_STACKED_BYTES: Final = 4 << 20

#: Outputs of a request from which on their answer may have to wait for room, whatever its form: they are
#: copied out of the batch's, all of which would stay for one of them.
_MAY_WAIT_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class BatchRule:
    """How requests for one model may share a run."""

    max_rows: int
    max_delay_s: float = 0.0


def _no_rows(rows: int) -> None:
    """Who is told of the end of a run that shares with nobody."""


def _nobody(run: Run) -> None:
    """Who is told the second time."""


def _no_misfit() -> None:
    """Who is told of a misfit when it has been told."""


class Run:
    """One request's run. `finish` makes something of the outputs, on the inference thread.

    `on_end` is called with the run on the event loop, once, when its thread has returned; `result` or
    `error` has what became of it.
    """

    __slots__ = (
        "_on_end",
        "cancel",
        "claim",
        "created_ns",
        "error",
        "feeds",
        "figures",
        "finish",
        "outputs",
        "result",
        "timing",
    )

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
        figures: Figures,
    ) -> None:
        self.feeds, self.outputs, self.finish, self.figures = feeds, outputs, finish, figures
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
        self.cancel.release()
        tell, self._on_end = self._on_end, _nobody
        try:
            tell(self)
        finally:
            self.claim.run_ended()


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has returned; `figures` are those of its shapes."""

    figures: Figures
    rows: int
    infer_ns: int
    output_ns: int
    output_bytes: int
    is_shared: bool = False


class Batch:
    """A run, or several of one model as one. Made and joined on the event loop, worked on a thread.

    `on_misfit` is called on the event loop where runs could not be run together, and each of them could alone;
    `on_end` with its rows when it has ended.
    """

    holds_interpreter: ClassVar[bool] = False

    __slots__ = (
        "_bytes",
        "_claimed_bytes",
        "_demand",
        "_is_misfit",
        "_is_taken",
        "_lane",
        "_lock",
        "_model",
        "_on_end",
        "_on_misfit",
        "_paying_rows",
        "_pays_up_to",
        "_ran",
        "_rows",
        "_runner",
        "_runs",
        "_statistics",
        "_timer",
        "_times",
    )

    def __init__(
        self,
        runner: Runner,
        model: LoadedModel,
        demand: Demand,
        statistics: ModelStatistics,
        run: Run,
        *,
        lane: Lane | None = None,
        times: RowTimes | None = None,
        on_misfit: Callable[[], None],
        on_end: Callable[[int], None] = _no_rows,
    ) -> None:
        self._times, self._on_end, self._lane = times, on_end, lane
        self._runner, self._model, self._demand, self._statistics = runner, model, demand, statistics
        self._on_misfit, self._is_misfit = on_misfit, False
        self._runs = [run]
        self._rows = run.timing.rows
        self._bytes = self._claimed_bytes = 0  # of all runs, from the second on
        self._paying_rows = self._pays_up_to = 0  # how large it may become with more runs of so many rows
        self._is_taken = False
        self._lock = threading.Lock()  # taken for a moment: by who joins, and by the thread that begins
        self._timer: asyncio.Handle | None = None
        self._ran: list[Ran] = []
        run.cancel.bind(self._leave_if_unwanted)

    # --- on the event loop -----------------------------------------------------------------------------

    def join(self, run: Run, rule: BatchRule, share: int) -> bool:
        """Takes a run of the same row's shape in, where the batch has not begun, has room, and should pay.

        `share` is how many rows it may have, so that there are some for every thread. Raises Overloaded or
        HostClosed where nothing may wait any more.
        """
        if self.is_taken:
            return False
        self._runner.check_room(self._lane)
        rows, most = self._rows + run.timing.rows, min(share, rule.max_rows)
        if rows > most:
            return False
        if not self._bytes:
            self._bytes, self._claimed_bytes = _size_bytes(self._runs[0]), self._runs[0].claim.size_bytes
        size_bytes, claimed_bytes = self._bytes + _size_bytes(run), self._claimed_bytes + run.claim.size_bytes
        if size_bytes > _MAX_STACKED_BYTES or not self._pays(run, rows, claimed_bytes):
            return False
        with self._lock:
            if self._is_taken:
                return False
            self._runs.append(run)
        self._runner.note_admitted(self._lane)
        run.cancel.bind(self._leave_if_unwanted)
        self._rows, self._bytes, self._claimed_bytes = rows, size_bytes, claimed_bytes
        if rows == most:
            self.start_now()
        return True

    @property
    def is_taken(self) -> bool:
        """Whether a thread has begun on it: nobody joins any more."""
        return self._is_taken

    def _pays(self, run: Run, rows: int, claimed_bytes: int) -> bool:
        """Whether one run on all rows is expected to be faster than several, and to take no more memory."""
        times, own_rows = self._times, run.timing.rows
        if times is None:
            return False
        if rows not in times.predicted_bytes:
            times.predicted_bytes[rows] = self._demand.rows_like(run.feeds, rows).bytes
        together_bytes = times.predicted_bytes[rows]
        if together_bytes is not None and together_bytes > claimed_bytes:
            return False
        if rows > self._pays_up_to or own_rows != self._paying_rows:  # else it was found for one before
            self._paying_rows, self._pays_up_to = own_rows, times.pays_up_to(own_rows, rows)
        return rows <= self._pays_up_to

    def start(self) -> None:
        """Waits for a thread. Raises Overloaded or HostClosed; it never ends then."""
        self._runner.start(self, self._lane)

    def start_later(self, delay_s: float) -> None:
        """Starts after `delay_s`, so that others may join. Raises as `start` does.

        With no delay at all it starts when the event loop has looked at all that has come by now: of requests
        that come together, the first would otherwise begin a run of its own.
        """
        self._runner.admit(self._lane)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_s, self.start_now) if delay_s else loop.call_soon(self.start_now)

    def start_now(self) -> None:
        """Starts a batch that waits for others to come; harmless for one that has started."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        try:
            self._runner.start_admitted(self, self._lane)
        except Exception as error:
            self._is_taken = True
            self._runner.note_begun(len(self._runs), self._lane)
            for run in self._runs:  # each raises its own, else tracebacks pile up on it
                run.error = error.twin() if isinstance(error, ModelHostError) else error
            self.ended()

    def _leave_if_unwanted(self) -> None:
        """Gives up the place in the queue where nobody is left who wants a result."""
        if self._is_taken or not all(run.cancel.is_cancelled for run in self._runs):
            return
        self.start_now()
        if self._runner.withdraw(self, self._lane):
            self._is_taken = True
            self._runner.note_begun(len(self._runs) - 1, self._lane)

    def ended(self) -> None:
        """Takes note of what was found, and tells those who asked."""
        for ran in self._ran:
            self._statistics.note_execution(ran.rows, ran.infer_ns, ran.output_ns)
            ran.figures.note(ran.infer_ns, ran.output_bytes)
            for run in self._runs if ran.is_shared else ():
                share_bytes = ran.output_bytes * run.timing.rows // ran.rows
                run.figures.note_at_most(ran.infer_ns, share_bytes)
            if self._times is not None:
                self._times.note(ran.rows, ran.infer_ns)
        self._on_end(self._rows)
        if self._is_misfit:
            self._on_misfit()
        # Its model's runs may remember this batch: the model, when it has left, would wait for a collection.
        self._on_end, self._on_misfit = _no_rows, _no_misfit
        runs, self._runs = self._runs, []
        for run in runs:
            try:
                run.ended()
            except Exception:  # the others have to end all the same
                log.exception("the end of a run could not be told")

    # --- on the inference thread -------------------------------------------------------------------------

    def work(self) -> None:
        """Runs, together where there are several; those alone that cannot be run together."""
        with self._lock:
            self._is_taken = True
        if (joined := len(self._runs) - 1) > 0:
            self._runner.note_begun(joined, self._lane)
        wanted = [run for run in self._runs if not run.cancel.is_cancelled]
        if len(wanted) > 1 and self._run_together(wanted):
            return
        for run in wanted:
            if not run.cancel.is_cancelled:  # in the meantime
                self._run_alone(run)
        self._is_misfit &= len(self._ran) == len(wanted)

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
            self._ran.append(Ran(run.figures, run.timing.rows, infer_ns, run.timing.output_ns, size_bytes))

    def _run_together(self, wanted: list[Run]) -> bool:
        """Runs all as one; returns whether that worked. An error may be one request's own fault."""
        total = sum(run.timing.rows for run in wanted)
        names = list(dict.fromkeys(name for run in wanted for name in run.outputs))
        began_ns = time.perf_counter_ns()
        try:
            stacked = {name: np.concatenate([run.feeds[name] for run in wanted]) for name in wanted[0].feeds}
            arrays = dict(zip(names, self._model.run(stacked, names, _cancelled_by_all(wanted)), strict=True))
        except (WorkerCrashed, WorkerRestarting) as error:
            for run in wanted:  # all of them were running; each raises its own
                run.error = error.twin()
            return True
        except BaseException as error:
            self._is_misfit = not isinstance(error, MemoryRefusal | MemoryError)
            return False
        finally:
            for run in wanted:
                run.cancel.release()  # which has the others' tokens until then
        if any(array.ndim == 0 or array.shape[0] != total for array in arrays.values()):
            self._is_misfit = True
            return False
        infer_ns = time.perf_counter_ns() - began_ns
        size_bytes = sum(array.nbytes for array in arrays.values())
        start = output_ns = 0
        for run in wanted:
            end = start + run.timing.rows
            run.timing.run_rows = total
            run.take(_cut([arrays[name] for name in run.outputs], start, end), began_ns, infer_ns)
            start = end
            output_ns += run.timing.output_ns
        figures = self._demand.rows_like(wanted[0].feeds, total)
        self._ran.append(Ran(figures, total, infer_ns, output_ns, size_bytes, is_shared=True))
        return True


def _size_bytes(run: Run) -> int:
    return sum([value.nbytes for value in run.feeds.values()])


def _cut(arrays: Sequence[Array], start: int, end: int) -> list[Array]:
    """Returns one request's rows of a batch's outputs; see `_MAY_WAIT_BYTES`."""
    parts = [array[start:end] for array in arrays]
    return parts if sum([part.nbytes for part in parts]) < _MAY_WAIT_BYTES else [part.copy() for part in parts]


def _cancelled_by_all(runs: Sequence[Run]) -> CancelToken:
    """Returns what stops a shared run: that nobody wants it any more."""
    shared, tokens = CancelToken(), [run.cancel for run in runs]

    def one_has_gone() -> None:
        if all(token.is_cancelled for token in tokens):
            shared.cancel()

    for token in tokens:
        token.bind(one_has_gone)
    return shared
