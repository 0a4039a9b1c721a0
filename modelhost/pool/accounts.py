"""What became of each model since the start: its loads, evictions and cold starts, and those of all together.

The totals of all models are `PoolCounters`; what is counted for a model too is counted here, once for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from modelhost.pool.key import ModelKey
from modelhost.pool.snapshot import PoolCounters


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
        self._models: dict[ModelKey, Account] = {}

    def __iter__(self) -> Iterator[tuple[ModelKey, Account]]:
        return iter(self._models.items())

    def get(self, key: ModelKey) -> Account:
        """Returns a model's account, to be looked at."""
        return self._models.get(key, NEVER_LOADED)

    def loaded(self, key: ModelKey, took_s: float) -> None:
        """Counts a load."""
        account = self._of(key)
        for counts in (self.counters, account):
            counts.loads += 1
            counts.load_seconds += took_s

    def evicted(self, keys: Iterable[ModelKey]) -> None:
        """Counts models that leave to make room."""
        for key in keys:
            self.counters.evictions += 1
            self._of(key).evictions += 1

    def started_cold(self, key: ModelKey) -> None:
        """Counts a request that had to wait for a load."""
        self.counters.cold_starts += 1
        self._of(key).cold_starts += 1

    def _of(self, key: ModelKey) -> Account:
        account = self._models.get(key)
        if account is None:
            account = self._models[key] = Account()
        return account
