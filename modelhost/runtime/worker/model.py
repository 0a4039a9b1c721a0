"""What the pool sees of a model that lives in a worker."""

from __future__ import annotations

import logging
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

log = logging.getLogger("modelhost")

#: Runs that take more leave nothing in the worker's arena: there is no ceiling on what all arenas keep together.
_LEFT_BYTES: Final = 1 << 20

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
        self._leaves_much: dict[tuple[tuple[int, ...], ...], bool] = {}

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
        known = self._leaves_much.get(shapes)
        if known is None:
            if len(self._leaves_much) >= _SHAPES_KEPT:
                self._leaves_much.clear()
            predicted = self._footprint.predict({name: array.shape for name, array in feeds.items()})
            known = self._leaves_much[shapes] = predicted is None or predicted > _LEFT_BYTES
        return known
