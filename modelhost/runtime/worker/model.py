"""What the pool sees of a model that lives in a worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from modelhost.errors import ModelHostError, WorkerCrashed
from modelhost.runtime.base import CancelToken, Inspection, LoadPlan
from modelhost.runtime.face import inputs_of, outputs_of
from modelhost.runtime.run_errors import run_error
from modelhost.runtime.worker.channel import RefusedThere
from modelhost.runtime.worker.packing import STRUCTURED
from modelhost.runtime.worker.session import WorkerSession
from modelhost.tensors import Array, check_shared_dims

#: Shapes whose prediction is remembered.
_SHAPES_KEPT: Final = 64


class IsolatedModel:
    """One session in a worker. Any thread may run it."""

    is_isolated = True

    def __init__(
        self,
        session: WorkerSession,
        inspection: Inspection,
        plan: LoadPlan,
        mapped: tuple[Path, ...],
        *,
        ceiling_bytes: int,
        closed: Callable[[], None],
    ) -> None:
        """Raises LoadError where the V2 protocol cannot carry its inputs."""
        self._session, self._ceiling_bytes, self._closed = session, ceiling_bytes, closed
        self._footprint = plan.run
        self.mapped_files = mapped
        self.run_footprint = plan.run
        self.inputs = inputs_of(session.inputs, inspection.inputs)
        self.outputs = outputs_of(session.outputs, inspection.outputs)
        self._datatypes = {
            name: STRUCTURED if spec.is_structured else spec.datatype for name, spec in self.outputs.items()
        }
        self._predicted: dict[tuple[tuple[int, ...], ...], float] = {}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken | None) -> list[Array]:
        """Returns the named outputs, in that order. See LoadedModel for what it raises."""
        try:
            results = self._session.run(feeds, outputs, cancel, trim=self._is_large(feeds))
        except ModelHostError:
            raise
        except (RefusedThere, ValueError) as error:
            check_shared_dims(self.inputs, feeds)
            raise run_error(error, cancel, self._ceiling_bytes) from None
        for name, (datatype, _) in zip(outputs, results, strict=True):
            if datatype != self._datatypes[name]:
                self._session.worker.kill(f"it answered {datatype} for '{name}', which is {self._datatypes[name]}")
                raise WorkerCrashed(self._session.worker.reason())
        return [array for _, array in results]

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Has `on_end` called, on any thread, when the worker ends by itself; with the reason."""
        self._session.worker.watch(on_end)

    def close(self) -> None:
        """Ends the worker."""
        self._session.close()
        self._closed()

    def _is_large(self, feeds: Mapping[str, Array]) -> bool:
        """Whether a run may leave more in the arena than it should keep."""
        if self._footprint is None:
            return True
        shapes = tuple([array.shape for array in feeds.values()])
        predicted = self._predicted.get(shapes)
        if predicted is None:
            if len(self._predicted) >= _SHAPES_KEPT:
                self._predicted.clear()
            found = self._footprint.predict({name: array.shape for name, array in feeds.items()})
            predicted = self._predicted[shapes] = math.inf if found is None else found
        return predicted > self._session.kept_bytes // 2
