"""Permission to run a loaded model, which keeps the model loaded until the work has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from modelhost.errors import ActivationsFull, HostClosed, RunTooLarge
from modelhost.pool.activations import Claim
from modelhost.pool.batch import Run
from modelhost.pool.runs import ModelRuns
from modelhost.pool.statistics import Timing
from modelhost.runtime.base import CancelToken
from modelhost.tensors import Array, TensorSpec, check_feeds, check_outputs

T = TypeVar("T")


class Lease:
    """Counted from its grant until `end`, and until the last run that it started has returned.

    Event-loop thread only; the pool makes them. `release` is called once, when both are over.
    """

    __slots__ = ("_holds", "_is_open", "_release", "_runs", "key", "waited_ns")

    def __init__(
        self,
        runs: ModelRuns,
        *,
        release: Callable[[], None],
    ) -> None:
        self.key = runs.key
        self.waited_ns = 0
        """What its request has waited for the model to be loaded."""
        self._runs = runs
        self._is_open = True
        self._release = release
        self._holds = 1  # the lease itself, and each of its runs

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The model's inputs by name. Raises HostClosed after `end`."""
        return self._open().model.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The model's outputs by name. Raises HostClosed after `end`."""
        return self._open().model.outputs

    async def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] = (), *, deadline: float | None = None
    ) -> dict[str, Array]:
        """Runs the model; returns the named outputs (all where none is named) as arrays of their own.

        `deadline` is on the event loop's clock. Raises InvalidRequest or InvalidTensor where the
        feeds are not what the model expects, and what `run_checked` raises.
        """
        check_feeds(self.inputs, feeds)
        check_outputs(self.outputs, outputs)
        names = tuple(outputs) or tuple(self.outputs)

        def finish(results: list[Array]) -> dict[str, Array]:
            # A result may lie in the runtime's arena, which has a ceiling: hand out copies.
            return {name: np.array(value) for name, value in zip(names, results, strict=True)}

        return await self.run_checked(feeds, names, finish, deadline=deadline)

    async def run_checked(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        finish: Callable[[list[Array]], T],
        *,
        deadline: float | None = None,
        timing: Timing | None = None,
    ) -> T:
        """Runs with feeds that were checked already; returns what `finish` makes of the outputs.

        `finish` runs on the inference thread, so that outputs never leave it and encoding them does
        not hold up the event loop. Where it returns a Kept, that has the claim on their memory. `timing`
        is filled in with what waiting, the run and `finish` take.

        Waits for memory of other runs. Raises RunTooLarge where there would not be enough without
        them, ActivationsFull where the arena refused what the prediction let through, twice;
        Overloaded where a queue is full, DeadlineExceeded, and what LoadedModel.run raises.
        """
        runs = self._open()
        gate, model = runs.gate, runs.model
        timing = timing or Timing(time.perf_counter_ns())
        max_waiting = None if runs.lane is None else runs.lane.max_waiting
        claim = await gate.claim(self.key, model, feeds, deadline=deadline, max_waiting=max_waiting)
        try:
            return await self._run_once(feeds, outputs, finish, claim, deadline, timing)
        except (ActivationsFull, RunTooLarge) as error:
            gate.missed(self.key, model, feeds, error, claim)
        # Others held the arena: once more with all of it, after them and before who comes next.
        claim = await gate.claim_alone(model, feeds, deadline=deadline)
        try:
            return await self._run_once(feeds, outputs, finish, claim, deadline, timing)
        except (ActivationsFull, RunTooLarge) as error:
            gate.missed(self.key, model, feeds, error, claim)
            raise

    async def _run_once(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        finish: Callable[[list[Array]], T],
        claim: Claim,
        deadline: float | None,
        timing: Timing,
    ) -> T:
        """Runs under `claim`, which ends with the run, or with the outputs where they are kept."""
        cancel = CancelToken()
        try:
            # No name for the future: it has the error, whose traceback will have this frame.
            return await self._runs.runner.result(
                self._submit(feeds, outputs, finish, claim, cancel, timing), cancel=cancel, deadline=deadline
            )
        except BaseException:
            claim.abandon()
            raise

    def _submit(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        finish: Callable[[list[Array]], T],
        claim: Claim,
        cancel: CancelToken,
        timing: Timing,
    ) -> asyncio.Future[T]:
        """Starts a run, which holds the lease until it has returned. Ends its claim where it does not begin."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def ended(run: Run) -> None:
            result, error = run.result, run.error
            run.result = run.error = None  # the error's traceback may have the run: no circle
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            self._let_go()

        try:
            self._open().start(
                Run(
                    feeds,
                    outputs,
                    finish,
                    claim=claim,
                    cancel=cancel,
                    timing=timing,
                    on_end=ended,
                    figures=self._runs.demand.look(feeds),
                ),
            )
        except BaseException:
            claim.run_ended()
            raise
        self._holds += 1
        return future

    def end(self) -> None:
        """Ends the lease; harmless when it has ended. Runs in progress keep the model until they return."""
        if self._is_open:
            self._is_open = False
            self._let_go()

    def when_over(self, told: Callable[[], None]) -> None:
        """Calls `told`, once, when the lease has ended and all its runs have returned. Before `end`."""
        release = self._release

        def over() -> None:
            release()
            told()

        self._release = over

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._release()

    def _open(self) -> ModelRuns:
        if not self._is_open:
            raise HostClosed(f"the lease on {self.key} has ended")
        return self._runs
