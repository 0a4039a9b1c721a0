"""Permission to run a loaded model, which keeps the model loaded until the work has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from modelhost.errors import HostClosed
from modelhost.pool.key import ModelKey
from modelhost.pool.runner import Runner
from modelhost.runtime.base import CancelToken, LoadedModel
from modelhost.tensors import Array, TensorSpec, check_feeds, check_outputs

T = TypeVar("T")


class Lease:
    """Counted from its grant until `end`, and until the last run that it started has returned.

    Event-loop thread only; the pool makes them. `hold` and `release` count, in the pool's slot.
    """

    __slots__ = ("_hold", "_is_open", "_model", "_release", "_runner", "key")

    def __init__(
        self,
        key: ModelKey,
        model: LoadedModel,
        runner: Runner,
        *,
        hold: Callable[[], None],
        release: Callable[[], None],
    ) -> None:
        self.key = key
        self._model: LoadedModel | None = model
        self._runner = runner
        self._hold, self._release = hold, release
        self._is_open = True

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
        model, cancel = self._open_model(), CancelToken()

        def work() -> T:
            return finish(model.run(feeds, outputs, cancel))

        self._hold()
        try:
            running = self._runner.submit(work, cancel=cancel, on_end=self._release)
        except BaseException:
            self._release()
            raise
        return await self._runner.result(running, cancel=cancel, deadline=deadline)

    def end(self) -> None:
        """Ends the lease; harmless when it has ended. Runs in progress keep the model until they return."""
        if self._is_open:
            self._is_open = False
            self._model = None
            self._release()

    def _open_model(self) -> LoadedModel:
        if self._model is None:
            raise HostClosed(f"the lease on {self.key} has ended")
        return self._model
