"""Runs of one loaded model: on an inference thread, shared with others, or in place on the event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from modelhost.errors import DeadlineExceeded
from modelhost.pool.activations import ActivationGate
from modelhost.pool.batch import Batch, BatchRule, Run
from modelhost.pool.demand import Feeds, Figures, RowTimes
from modelhost.pool.key import ModelKey
from modelhost.pool.lanes import Lane
from modelhost.pool.runner import Runner
from modelhost.pool.statistics import ModelStatistics, Timing
from modelhost.prepare.footprint import RunFootprint
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array, TensorSpec

log = logging.getLogger("modelhost")

#: Runs that have shown to take less happen on the event loop itself, where there is more than one core:
#: handing one over to a thread and back takes some 50 us of both, and both hold the interpreter's lock.
_IN_PLACE_NS: Final = 120_000

#: With one core a thread gives nothing but a turn for others, and the chance to share a run: where that cannot
#: be, a run may take as long as a turn may be.
_IN_PLACE_ALONE_NS: Final = 1_500_000

#: Outputs of more are encoded on a thread.
_IN_PLACE_OUTPUT_BYTES: Final = 16 << 10

#: Shapes of a row whose last batch is remembered.
_SHAPES_KEPT: Final = 64

RowShape = tuple[tuple[int, ...], ...]


class ModelRuns:
    """A loaded model to those who run it. Event-loop thread; the pool makes one at each load."""

    def __init__(
        self,
        key: ModelKey,
        model: LoadedModel,
        runner: Runner,
        gate: ActivationGate,
        statistics: ModelStatistics,
        rule: BatchRule | None,
        lane: Lane | None = None,
    ) -> None:
        self.key, self.model, self.gate, self.statistics = key, model, gate, statistics
        self.demand = gate.demand(model)
        self.attached: Any = None
        """What a front end keeps with the model for as long as it is loaded; the pool does not look at it."""
        self.runner = runner
        self.lane = lane
        """Where its jobs wait for a thread; None: where those that are no model's do."""
        self.rule = rule
        """How requests share runs; None where they do not."""
        self._inputs = tuple(model.inputs)
        self.has_text_inputs = any(spec.datatype == "BYTES" for spec in model.inputs.values())
        """Whether decoding takes time for each element, raw tensors too."""
        self._has_rows = bool(model.inputs) and all(spec.shape and spec.shape[0] < 0 for spec in model.inputs.values())
        self._in_place_ns = _IN_PLACE_NS if runner.threads > 1 or rule is not None else _IN_PLACE_ALONE_NS
        if model.is_isolated:
            self._in_place_ns = 0  # another process's turn would be everybody's wait
        # By the shape of a row: the last batch, which may wait for a thread, or for its delay.
        self._waiting: dict[RowShape, Batch] = {}
        self._times: dict[RowShape, RowTimes] = {}
        self._present_rows = 0  # of batches that wait or run

    def rows(self, feeds: Feeds) -> int:
        """Returns how many rows `feeds` have; 1 for a model without rows."""
        if not self._has_rows:
            return 1
        return int(feeds[self._inputs[0]].shape[0])

    # --- on the event loop -----------------------------------------------------------------------------

    def try_in_place(self, feeds: Feeds, outputs: Sequence[str], timing: Timing) -> list[Array] | None:
        """Runs here and now where that is known to be short, and free; None where it is not.

        Nothing else happens until it has returned, so that it needs neither a lease nor a claim: nobody
        can decide meanwhile that the model leaves. Raises what LoadedModel.run raises; ActivationsFull
        and RunTooLarge mean that it has to be asked for with a claim.
        """
        figures = self.demand.look(feeds)
        if (
            not figures.is_within(self._in_place_ns)
            or figures.output_bytes > _IN_PLACE_OUTPUT_BYTES
            or not self.gate.has_room(figures.bytes)
            or not self.runner.has_turn_left()
        ):
            return None
        self.runner.check_open()
        guard, clock_ns = self.runner.guard, self.runner.clock_ns
        cancel = guard.begin()
        began_ns = clock_ns()
        try:
            arrays = self.model.run(feeds, outputs, cancel)
        except DeadlineExceeded:  # stopped, as it was long after all
            figures.note(clock_ns() - began_ns, 0)
            return None
        finally:
            guard.end()
        took_ns = clock_ns() - began_ns
        self.runner.note_run_in_place(took_ns)
        timing.rows = rows = self.rows(feeds)
        timing.queue_ns, timing.infer_ns = 0, took_ns
        self.statistics.note_execution(rows, took_ns, 0)
        figures.note(took_ns, sum([array.nbytes for array in arrays]))
        return arrays

    # --- on inference threads ----------------------------------------------------------------------------

    def try_start(
        self,
        feeds: Feeds,
        outputs: Sequence[str],
        finish: Callable[[list[Array]], Any],
        *,
        cancel: CancelToken,
        timing: Timing,
        on_end: Callable[[Run], None],
        figures: Figures,
    ) -> bool:
        """Starts a run whose memory is free now; returns False where it has to wait for that.

        `figures` are those of `feeds`. Raises Overloaded or HostClosed. The caller holds a lease, and ends it in
        `on_end`.
        """
        claim = self.gate.try_claim(figures.bytes, is_short=figures.is_short)
        if claim is None:
            return False
        run = Run(feeds, outputs, finish, claim=claim, cancel=cancel, timing=timing, on_end=on_end, figures=figures)
        try:
            self.start(run)
        except BaseException:
            claim.run_ended()
            raise
        return True

    def start(self, run: Run) -> None:
        """Starts a run, or has it join one that waits. Raises Overloaded or HostClosed; it never ends then."""
        run.timing.rows = rows = self.rows(run.feeds)
        rule = self.rule
        shape = None if rule is None else self._row_shape(run)
        if rule is None or shape is None:
            self._batch(run).start()
        else:
            self._share(run, shape, rule)
        self._present_rows += rows

    def _share(self, run: Run, shape: RowShape, rule: BatchRule) -> None:
        """Has a run join the last batch of its shape, or begins another that later ones may join."""
        rows, last = run.timing.rows, self._waiting.get(shape)
        times = self._times.get(shape)
        if times is None:
            times = self._times[shape] = RowTimes()
        # No thread is left without work because one has all of it; unless whoever waits was told to.
        share = rule.max_rows if rule.max_delay_s else -(-times.crowd(self._present_rows + rows) // self.runner.threads)
        share = min(share, rule.max_rows)
        if last is not None and last.join(run, rule, share):
            return
        batch = self._batch(run, times)
        if last is not None:
            last.start_now()  # nobody would join it any more
        if rows < share:
            batch.start_later(rule.max_delay_s or times.hold_s(rows, share))
        else:
            batch.start()
        self._remember(shape, batch)

    def flush(self) -> None:
        """Starts what waits only for others to come."""
        for batch in self._waiting.values():
            batch.start_now()
        self._waiting.clear()

    def _batch(self, run: Run, times: RowTimes | None = None) -> Batch:
        return Batch(
            self.runner,
            self.model,
            self.demand,
            self.statistics,
            run,
            lane=self.lane,
            times=times,
            on_misfit=self._stop_sharing,
            on_end=self._batch_ended,
        )

    def _batch_ended(self, rows: int) -> None:
        self._present_rows -= rows

    def _stop_sharing(self) -> None:
        """Has every request run by itself from here on: what was said of the model's rows is not so."""
        if self.rule is not None:
            log.warning("%s: requests share no run any more, as its answers have no rows to be cut by", self.key)
            self.rule = None
            self.flush()

    def _remember(self, shape: RowShape, batch: Batch) -> None:
        if len(self._waiting) >= _SHAPES_KEPT:
            self._waiting = {known: last for known, last in self._waiting.items() if not last.is_taken}
            self._times = {known: times for known, times in self._times.items() if known in self._waiting}
        self._waiting[shape] = batch

    def _row_shape(self, run: Run) -> RowShape | None:
        """Returns the shape of one row; None where the inputs do not agree on how many there are."""
        rows, inputs = run.timing.rows, self._inputs
        if len(inputs) == 1:  # as most models have: whose rows they are
            return (run.feeds[inputs[0]].shape[1:],) if rows else None
        shapes = [run.feeds[name].shape for name in inputs]
        return tuple([shape[1:] for shape in shapes]) if rows and all(shape[0] == rows for shape in shapes) else None


def rows_are_independent(
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    footprint: RunFootprint | None,
    said: bool | None,
) -> bool:
    """Whether requests for a model may share a run.

    `said` is what its options say; where they say nothing, what preparing it has proved: that its answers
    are the same whatever rows are beside them. Either way the first dimension of all its tensors has to
    be free, and to be that of the rows.
    """
    tensors = (*inputs.values(), *outputs.values())
    if said is False or not inputs or any(not spec.shape or spec.shape[0] >= 0 for spec in tensors):
        return False
    if any(spec.is_structured for spec in tensors):  # outputs that are no tensors have no rows to be cut by
        return False
    if said:
        return True
    if footprint is None or footprint.rows_independent is not True:
        return False
    return set(footprint.dims.get(footprint.rows, ())) == {(name, 0) for name in inputs}
