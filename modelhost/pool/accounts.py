"""What became of each model since the start: its loads, evictions and cold starts, and those of all together.

The totals of all models are `PoolCounters`; what is counted for a model too is counted here, once for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from modelhost.histogram import Histogram
from modelhost.pool.key import ModelKey
from modelhost.pool.snapshot import PoolCounters

#: Bounds of what loads take, and of what requests wait for them: from a prepared model's millisecond to a minute.
_LOAD_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

#: Bounds of how long models had not been used when they left.
_AGE_BOUNDS_S: Final = (1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)

_FAILURES_KEPT: Final = 20


@dataclass(slots=True)
class Account:
    """One version of a model, since the start."""

    loads: int = 0
    load_seconds: float = 0.0
    """What its loads took, together."""
    evictions: int = 0
    """Times that it left to make room."""
    cold_starts: int = 0
    """Requests that waited for it to be loaded, and got it."""


#: That of a model of which nothing has become yet.
NEVER_LOADED: Final = Account()


class Accounts:
    """By model, kept when it is unloaded; one that nobody has ever loaded has none. Event-loop thread."""

    def __init__(self) -> None:
        self.counters = PoolCounters()
        """Totals of all models."""
        self.load_times = Histogram(_LOAD_BOUNDS_S)
        """Seconds that loads took."""
        self.cold_waits = Histogram(_LOAD_BOUNDS_S)
        """Seconds that requests waited for a load, which then served them."""
        self.eviction_ages = Histogram(_AGE_BOUNDS_S)
        """Seconds since their last use after which models left to make room."""
        self.last_failures: deque[tuple[ModelKey, str]] = deque(maxlen=_FAILURES_KEPT)
        """The last loads that failed, and why."""
        self._models: dict[ModelKey, Account] = {}

    def __iter__(self) -> Iterator[tuple[ModelKey, Account]]:
        return iter(self._models.items())

    def get(self, key: ModelKey) -> Account:
        """Returns a model's account, to be looked at."""
        return self._models.get(key, NEVER_LOADED)

    def loaded(self, key: ModelKey, took_s: float) -> None:
        """Counts a load."""
        self.load_times.add(took_s)
        account = self._of(key)
        for counts in (self.counters, account):
            counts.loads += 1
            counts.load_seconds += took_s

    def load_failed(self, key: ModelKey, reason: str) -> None:
        """Counts a load that failed, and keeps why."""
        self.counters.load_failures += 1
        self.last_failures.append((key, reason))

    def evicted(self, models: Iterable[tuple[ModelKey, float]]) -> None:
        """Counts models that leave to make room, each with the seconds since its last use."""
        for key, age_s in models:
            self.eviction_ages.add(age_s)
            self.counters.evictions += 1
            self._of(key).evictions += 1

    def started_cold(self, key: ModelKey, waited_s: float) -> None:
        """Counts a request that had to wait for a load, and how long."""
        self.cold_waits.add(waited_s)
        self.counters.cold_starts += 1
        self._of(key).cold_starts += 1

    def _of(self, key: ModelKey) -> Account:
        account = self._models.get(key)
        if account is None:
            account = self._models[key] = Account()
        return account
