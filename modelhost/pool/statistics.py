"""What each model's requests took: totals since the start, in the terms of V2's statistics extension."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelhost.pool.key import ModelKey


@dataclass(slots=True)
class Took:
    """How often something was done, and how long that took together, in nanoseconds."""

    count: int = 0
    ns: int = 0


@dataclass(slots=True)
class BatchTook:
    """Runs of one batch size: how many, and what they took together, in nanoseconds."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


class ModelStatistics:
    """Totals of one version of a model. Event-loop thread; additions only, since each request pays for them."""

    __slots__ = (
        "batches",
        "execution_count",
        "fail",
        "inference_count",
        "infer_ns",
        "input_ns",
        "last_inference_ms",
        "output_ns",
        "queue_ns",
        "success",
    )

    def __init__(self) -> None:
        self.last_inference_ms = 0
        """Unix time of the last request that was answered, in milliseconds; 0 before the first."""
        self.inference_count = 0
        """Rows that were answered: a request with a batch of four counts as four."""
        self.execution_count = 0
        """Runs: several requests may have shared one."""
        self.success = Took()
        """Requests that were answered, from arrival to answer."""
        self.fail = Took()
        """Requests that were refused or failed."""
        self.queue_ns = 0
        """Waiting for the model, for memory and for a thread. Like the next three, of answered requests."""
        self.input_ns = 0
        """Decoding."""
        self.infer_ns = 0
        """Runs; a shared one counts for each request in it."""
        self.output_ns = 0
        """Encoding."""
        self.batches: dict[int, BatchTook] = {}
        """Runs by their number of rows."""


class Statistics:
    """Totals by model, kept when it is unloaded. A model that nobody has asked for has none."""

    def __init__(self) -> None:
        self._models: dict[ModelKey, ModelStatistics] = {}

    def __iter__(self) -> Iterator[tuple[ModelKey, ModelStatistics]]:
        return iter(self._models.items())

    def get(self, key: ModelKey) -> ModelStatistics | None:
        """Returns a model's totals, None where it was never asked for."""
        return self._models.get(key)

    def of(self, key: ModelKey) -> ModelStatistics:
        """Returns a model's totals, to be added to."""
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = ModelStatistics()
        return found
