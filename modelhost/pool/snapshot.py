"""What the pool says of itself, as frozen values: for routes, metrics, logs and tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model that has a slot. `last_used` is Unix time in seconds, None before the first lease."""

    name: str
    version: str
    state: str
    committed_bytes: int
    leases: int
    pinned: bool
    last_used: float | None
    waiting: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON; `asdict` takes thirty times as long, and there may be hundreds of these."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class PoolCounters:
    """Totals since the start."""

    loads: int = 0
    load_failures: int = 0
    worker_crashes: int = 0
    load_seconds: float = 0.0
    evictions: int = 0
    cold_starts: int = 0
    """Requests that waited for their model to be loaded, and got it."""
    predicted_loads: int = 0
    """Models that were loaded before anybody asked for them, as they were likely to be wanted."""
    predicted_hits: int = 0
    """Those that were used then."""
    predicted_wasted: int = 0
    """Those that were not."""
    unloads: int = 0
    preparations: int = 0
    preparation_failures: int = 0
    preparation_seconds: float = 0.0
    expiries: int = 0
    swaps: int = 0
    """Changed files, and new versions, that took over."""
    swap_failures: int = 0
    """Those that did not, as they could not be opened or run."""
    refusals: dict[str, int] = field(default_factory=dict)
    overshoot_bytes: int = 0
    undershoot_bytes: int = 0

    def note_error(self, error_bytes: int) -> None:
        """Counts how far a load was from its prediction: over it, or (negative) under."""
        self.overshoot_bytes += max(0, error_bytes)
        self.undershoot_bytes += max(0, -error_bytes)

    def refuse(self, code: str) -> None:
        """Counts a refusal by its code."""
        self.refusals[code] = self.refusals.get(code, 0) + 1


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """One look at the pool."""

    models: tuple[ModelInfo, ...]
    waiting: int
    in_flight: int
    reservations: int
    counters: PoolCounters
