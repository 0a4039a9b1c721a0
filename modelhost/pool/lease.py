"""Permission to run a loaded model, which keeps the model loaded until the work has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from modelhost.errors import ActivationsFull, HostClosed, RunTooLarge
from modelhost.pool.activations import ActivationGate, Claim, Kept
from modelhost.pool.key import ModelKey
from modelhost.pool.runner import Runner
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array, TensorSpec, check_feeds, check_outputs

T = TypeVar("T")


class Lease:
    """Counted from its grant until `end`, and until the last run that it started has returned.

    Event-loop thread only; the pool makes them. `release` is called once, when both are over.
    """

    __slots__ = ("_activations", "_holds", "_model", "_release", "_runner", "key")

    def __init__(
        self,
        key: ModelKey,
        model: LoadedModel,
        runner: Runner,
        activations: ActivationGate,
        *,
        release: Callable[[], None],
    ) -> None:
        self.key = key
        self._model: LoadedModel | None = model
        self._runner = runner
        self._activations = activations
        self._release = release
        self._holds = 1  # the lease itself, and each of its runs

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The model's inputs by name. Raises HostClosed after `end`."""
        return self._open_model().inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The model's outputs by name. Raises HostClosed after `end`."""
        return self._open_model().outputs

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
    ) -> T:
        """Runs with feeds that were checked already; returns what `finish` makes of the outputs.

        `finish` runs on the inference thread, so that outputs never leave it and encoding them does
        not hold up the event loop. Where it returns a Kept, that has the claim on their memory.

        Waits for memory of other runs. Raises RunTooLarge where there would not be enough without
        them, ActivationsFull where the arena refused what the prediction let through, twice;
        Overloaded where a queue is full, DeadlineExceeded, and what LoadedModel.run raises.
        """
        gate, model = self._activations, self._open_model()
        claim = await gate.claim(self.key, model, feeds, deadline=deadline)
        try:
            return await self._run_once(feeds, outputs, finish, claim, deadline)
        except (ActivationsFull, RunTooLarge) as error:
            gate.missed(self.key, model, feeds, error, claim)
        # Others held the arena: once more with all of it, after them and before who comes next.
        claim = await gate.claim_alone(model, feeds, deadline=deadline)
        try:
            return await self._run_once(feeds, outputs, finish, claim, deadline)
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
    ) -> T:
        """Runs under `claim`, which ends with the run, or with the outputs where they are kept."""
        cancel = CancelToken()
        try:
            # No name for the job: it has the error, whose traceback will have this frame.
            return await self._runner.result(
                self._submit(feeds, outputs, finish, claim, cancel), cancel=cancel, deadline=deadline
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
    ) -> asyncio.Future[T]:
        try:
            model = self._open_model()
        except HostClosed:  # the lease has ended while the run waited
            claim.run_ended()
            raise

        def work() -> T:
            result = finish(model.run(feeds, outputs, cancel))
            if isinstance(result, Kept):
                claim.keep(result)
            return result

        def ended() -> None:
            claim.run_ended()
            self._let_go()

        self._holds += 1
        try:
            return self._runner.submit(work, cancel=cancel, on_end=ended)
        except BaseException:
            ended()
            raise

    def end(self) -> None:
        """Ends the lease; harmless when it has ended. Runs in progress keep the model until they return."""
        if self._model is not None:
            self._model = None
            self._let_go()

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._release()

    def _open_model(self) -> LoadedModel:
        if self._model is None:
            raise HostClosed(f"the lease on {self.key} has ended")
        return self._model
