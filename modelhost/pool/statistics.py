"""What each model's requests took: totals, in the terms of V2's statistics extension."""

from __future__ import annotations

import json
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from operator import sub
from typing import Any, Final, NamedTuple

from modelhost.pool.key import ModelKey
from modelhost.pool.times import BOUNDS_NS, BUCKETS, empty_counts

#: Why requests were refused or failed, in Triton's words: before the run; by who asked; in the run; otherwise.
REASONS: Final = ("REJECTED", "CANCELED", "BACKEND", "OTHER")

#: Batch sizes that are counted by themselves, for each model; requests choose them.
_SIZES_KEPT: Final = 64


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


class Sums(NamedTuple):
    """Totals of answered requests: how many, their rows and runs, and nanoseconds."""

    success: int = 0
    inferences: int = 0
    executions: int = 0
    request_ns: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


#: Those of a model that nobody had asked for before this host.
_NOTHING: Final = Sums()


class Trace(NamedTuple):
    """What a client says of the trace that its request is part of, as it stands in its headers (W3C Trace Context)."""

    parent: str
    state: str = ""


class Timing:
    """What one request took, filled in along its way, in nanoseconds."""

    __slots__ = (
        "arrived_ns",
        "decoding_ns",
        "infer_ns",
        "input_ns",
        "load_ns",
        "output_ns",
        "queue_ns",
        "rows",
        "run_rows",
        "trace",
    )

    # Only traces ask for these, which know what is missing: nobody else pays for setting them to nothing.
    decoding_ns: int
    """When decoding began, on the clock of the arrival."""
    load_ns: int
    """Of the queue: what was waited for the model's load."""
    run_rows: int
    """Rows of the run, where others shared it."""
    trace: Trace | None
    """What the client says of its trace."""

    def __init__(self, arrived_ns: int) -> None:
        self.arrived_ns = arrived_ns
        """On the clock of time.perf_counter_ns."""
        self.input_ns = self.queue_ns = self.infer_ns = self.output_ns = 0
        self.rows = 1


class Recent:
    """Requests of one model within some seconds: answered ones by what they took, and how many failed."""

    __slots__ = ("answered", "failed")

    def __init__(self) -> None:
        self.answered: array[int] = empty_counts()
        self.failed = 0


class ModelStatistics:
    """Totals of one version of a model. Event-loop thread; additions only, since each request pays for them."""

    __slots__ = (
        "batches",
        "execution_count",
        "fail",
        "failures",
        "former",
        "infer_ns",
        "inference_count",
        "input_ns",
        "last_inference_ms",
        "output_ns",
        "queue_ns",
        "recent",
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
        self.failures: list[int] | None = None
        """Those of this host's own, by reason as in `REASONS`; None before the first."""
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
        self.recent: Recent | None = None
        """Requests since the last `Statistics.rotate`; None where there were none."""
        self.former: Recent | None = None
        """Those between the last two."""

    @property
    def last_s(self) -> float | None:
        """Unix time of the last request that was answered, in seconds; None before the first."""
        return self.last_inference_ms / 1e3 or None

    def note_execution(self, rows: int, infer_ns: int, output_ns: int) -> None:
        """Counts a run."""
        self.execution_count += 1
        batch = self.batches.get(rows)
        if batch is None:
            if len(self.batches) >= _SIZES_KEPT:
                return
            batch = self.batches[rows] = BatchTook()
        batch.count += 1
        batch.infer_ns += infer_ns
        batch.output_ns += output_ns

    def sums(self) -> Sums:
        """Returns what can only grow."""
        success = self.success
        return Sums(
            success.count,
            self.inference_count,
            self.execution_count,
            success.ns,
            self.queue_ns,
            self.input_ns,
            self.infer_ns,
            self.output_ns,
        )

    def to_line(self, **more: str) -> bytes:
        """Returns the totals as JSON in one line, with `more` in it; takes some microseconds."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        took = {"success": astuple(self.success), "fail": astuple(self.fail)}
        batches = [(rows, *astuple(batch)) for rows, batch in self.batches.items()]
        return json.dumps({**more, **numbers, **took, "batches": batches}).encode()

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> ModelStatistics:
        """Reads what `to_line` has written. Raises KeyError, TypeError or ValueError where it is something else."""
        found = cls()
        for name in _NUMBERS:
            setattr(found, name, _count(table[name]))
        found.success, found.fail = (Took(*map(_count, table[name])) for name in ("success", "fail"))
        for rows, *numbers in table["batches"][:_SIZES_KEPT]:
            found.batches[_count(rows)] = BatchTook(*map(_count, numbers))
        return found


#: What is one number each.
_NUMBERS: Final = (
    "last_inference_ms",
    "inference_count",
    "execution_count",
    "queue_ns",
    "input_ns",
    "infer_ns",
    "output_ns",
)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a count, got {value!r}")
    return value


class Statistics:
    """Totals by model, kept when it is unloaded. A model that nobody has asked for has none.

    Beside them are those of all requests to this process, also for models that there are not.
    """

    def __init__(self) -> None:
        self.answered = [0] * BUCKETS
        """Requests that were answered, by what they took; see times.py."""
        self.answered_ns = 0
        """What they took together."""
        self.failed = 0
        """Requests that were refused or failed."""
        self._models: dict[ModelKey, ModelStatistics] = {}
        self._asked: dict[ModelKey, Sums] = {}  # since the start, with what hosts before this one had counted

    def __iter__(self) -> Iterator[tuple[ModelKey, ModelStatistics]]:
        return iter(self._models.items())

    def get(self, key: ModelKey) -> ModelStatistics | None:
        """Returns a model's totals, None where it was never asked for."""
        return self._models.get(key)

    def restore(self, key: ModelKey, found: ModelStatistics) -> None:
        """Takes up a model's totals of a host before this one, where nobody has asked for it yet."""
        self._models.setdefault(key, found)

    def note_success(self, found: ModelStatistics, timing: Timing, took_ns: int) -> None:
        """Counts a request that was answered, for all and for its model. In one piece: each request pays for it."""
        bucket = bisect_left(BOUNDS_NS, took_ns)
        self.answered[bucket] += 1
        self.answered_ns += took_ns
        recent = found.recent
        if recent is None:
            recent = found.recent = Recent()
        recent.answered[bucket] += 1
        success = found.success
        success.count += 1
        success.ns += took_ns
        found.inference_count += timing.rows
        found.input_ns += timing.input_ns
        found.queue_ns += timing.queue_ns
        found.infer_ns += timing.infer_ns
        found.output_ns += timing.output_ns
        found.last_inference_ms = int(time.time() * 1e3)

    def note_failure(self, key: ModelKey | None, took_ns: int, reason: str = "OTHER") -> None:
        """Counts a request that was refused or failed, for one of `REASONS`; None where it was for no model
        that there is."""
        self.failed += 1
        if key is None:
            return
        found = self.of(key)
        found.fail.count += 1
        found.fail.ns += took_ns
        if found.failures is None:
            found.failures = [0] * len(REASONS)
        found.failures[REASONS.index(reason)] += 1
        if found.recent is None:
            found.recent = Recent()
        found.recent.failed += 1

    def rotate(self) -> None:
        """Lets what was recent be what was before; whoever calls it now and then makes rates of the two.

        Takes some 0.1 us for each model that was ever asked for.
        """
        for found in self._models.values():
            found.former, found.recent = found.recent, None

    def of(self, key: ModelKey) -> ModelStatistics:
        """Returns a model's totals, to be added to."""
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = ModelStatistics()
            self._asked[key] = _NOTHING
        elif key not in self._asked:
            self._asked[key] = found.sums()
        return found

    def asked(self) -> list[ModelKey]:
        """Returns the models that were loaded or asked for since the start."""
        return list(self._asked)

    def answered_at(self, key: ModelKey) -> int:
        """Returns when one of them answered last, as `last_inference_ms`."""
        return self._models[key].last_inference_ms

    def was_asked(self, key: ModelKey) -> bool:
        """Says whether `asked` has a model."""
        return key in self._asked

    def since_start(self, key: ModelKey) -> Sums:
        """Returns what this host has counted for a model, without those before it."""
        before = self._asked.get(key)
        if before is None:
            return _NOTHING
        now = self._models[key].sums()
        return now if before is _NOTHING else Sums(*map(sub, now, before))
