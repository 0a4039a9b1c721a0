"""Permission to run a loaded model, which keeps the model loaded until the work has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from modelhost.errors import ActivationsFull, HostClosed
from modelhost.pool.key import ModelKey
from modelhost.pool.runner import Runner
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array, TensorSpec, check_feeds, check_outputs

T = TypeVar("T")


class Lease:
    """Counted from its grant until `end`, and until the last run that it started has returned.

    Event-loop thread only; the pool makes them. `release` is called once, when both are over.
    """

    __slots__ = ("_holds", "_model", "_release", "_runner", "key")

    def __init__(
        self,
        key: ModelKey,
        model: LoadedModel,
        runner: Runner,
        *,
        release: Callable[[], None],
    ) -> None:
        self.key = key
        self._model: LoadedModel | None = model
        self._runner = runner
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
        feeds are not what the model expects, Overloaded where the queue for threads is full, and
        what LoadedModel.run raises.
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
        not hold up the event loop.
        """
        await self._runner.wait_turn(deadline)
        try:
            return await self._run_once(feeds, outputs, finish, deadline)
        except ActivationsFull:
            # Others held the arena: once more with all of it, after them and before who comes next.
            async with self._runner.alone(deadline):
                return await self._run_once(feeds, outputs, finish, deadline)

    async def _run_once(
        self,
        feeds: Mapping[str, Array],
        outputs: Sequence[str],
        finish: Callable[[list[Array]], T],
        deadline: float | None,
    ) -> T:
        model, cancel = self._open_model(), CancelToken()

        def work() -> T:
            return finish(model.run(feeds, outputs, cancel))

        self._holds += 1
        try:
            running = self._runner.submit(work, cancel=cancel, on_end=self._let_go)
        except BaseException:
            self._let_go()
            raise
        return await self._runner.result(running, cancel=cancel, deadline=deadline)

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
