"""Settings of memory, and of what waits for it and runs in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from modelhost.config.fields import (
    Duration,
    Isolation,
    PositiveDuration,
    PositiveInt,
    Seconds,
    Section,
    Size,
    SizeOrAuto,
    Threshold,
)
from modelhost.levels import MIN_FREE_BYTES
from modelhost.units import ThresholdSpec


class MemorySettings(Section):
    """The memory that the host may use, and when it acts."""

    limit: Size | None = None
    """Upper bound; only ever lowers the limit that the kernel sets. Read again at a reload."""
    warning: Threshold = ThresholdSpec.parse("auto")
    """Idle models leave from here on; auto: 20 MB or 5 % of the limit, whichever is more, below critical."""
    critical: Threshold = ThresholdSpec.parse("auto")
    """Loads are refused from here on; auto: the limit less the room for activations."""
    policy: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: warning and critical follow what is learnt of runs, loads and the page cache. What is set of them is
    then the highest that they may be; see docs/adaptive.md."""
    min_free: Size = MIN_FREE_BYTES
    """Never given to models, whatever the thresholds say."""
    activation_ceiling: SizeOrAuto = "auto"
    """Hard maximum of what all runs together may allocate; auto: the room above critical, at most a quarter
    of the limit."""
    sample_interval_s: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Time between two looks at usage."""
    event_history: PositiveInt = 256
    """Events kept for `GET /memory`; older ones are forgotten."""


class PoolSettings(Section):
    """Waiting, and patience with what fails."""

    max_waiting: PositiveInt = 512
    """Requests that may wait for models to load; one more is answered 503 `overloaded`."""
    wait_timeout_s: Seconds = 60.0
    """Longest wait of one request for its model."""
    memory_wait_s: Seconds = 5.0
    """How long a load may wait for models in use to become idle before it is refused."""
    load_timeout_s: Seconds = 300.0
    """A load that takes longer is cancelled and counts as failed. One that cannot be stopped is counted until it
    ends; models that are loaded go on, other loads are refused."""
    eviction: Literal["lru", "gdsf"] = "lru"
    """Which idle models leave first: `lru`, the least recently used; `gdsf`, those that few requests want, that hold
    much and are quick to load (GreedyDual-Size-Frequency). `python -m benchmarks policy` compares them."""
    predictive: bool = False
    """Whether models are loaded in quiet moments that, by when they were used before, will be wanted soon: where there
    is room below warning, and never at the price of another one."""
    failure_backoff_s: Seconds = 1.0
    """A failed load is remembered this long, twice as long after each further failure …"""
    failure_backoff_max_s: Seconds = 60.0
    """… and at most this long."""
    idle_ttl: Duration = 0.0
    """A model that nobody has used for so long leaves, and the pages of its files with it; 0: only memory
    decides. Reloading a prepared model takes a millisecond, so that short times cost little."""


class RuntimeSettings(Section):
    """ONNX Runtime, process-wide."""

    intra_op_threads: PositiveInt = 1
    """Threads inside one run, shared by all models; on small machines more than 1 costs throughput."""
    custom_op_libraries: tuple[Path, ...] = ()
    """Shared libraries with operators of your own, which every session gets. They are code that runs in the host:
    none is loaded that is not named here, whatever a model says."""
    isolation: Isolation = "none"
    """`process`: every model lives in a worker process of its own, whose crash fails only the requests that it was
    running; `none`: all live in the host. A model's own option wins. Linux only."""
    stop_grace: PositiveDuration = 5.0
    """A run in a worker process that is still going on so long after it was to stop ends with its process."""


class BatchingSettings(Section):
    """Requests for one model that wait at the same time share a run, where its rows are independent."""

    enabled: bool = True
    """Off: every request runs by itself."""
    max_rows: PositiveInt = 64
    """Most rows of a shared run."""
    max_delay: Duration = 0.0
    """How long a request may wait for others to share its run with, at most; 0: only with what has come by then,
    while all threads are busy, and a moment where others were there a moment ago and it pays."""
