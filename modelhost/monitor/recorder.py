"""The last hour of a host, a sample each five seconds, and what is counted of the last seconds for rates."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add, sub
from typing import Any, Final

from modelhost.memory import Level, MemoryManager
from modelhost.pool import Pool
from modelhost.pool.statistics import ModelStatistics
from modelhost.pool.times import quantiles_ms

EVERY_S: Final = 5
SAMPLES: Final = 3600 // EVERY_S

#: Counts begin anew after so many samples; rates are of those since, and of as many before.
_SAMPLES_A_GENERATION: Final = 2

#: Rates are of no less: of a host that has just begun one request would be a flood.
_LEAST_S: Final = 1.0

#: What the page cache held is told for a sample where somebody has looked so lately.
_CACHED_S: Final = float(EVERY_S)

_UNKNOWN: Final = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """What had been counted of all requests at one moment."""

    at_s: float
    answered: Sequence[int]
    failed: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Of the last 10 to 20 seconds; quantiles are of answered requests, None where there were none."""

    requests_per_s: float
    failures_per_s: float
    p50_ms: float | None
    p99_ms: float | None

    @classmethod
    def of(cls, answered: Sequence[int], failed: int, span_s: float) -> Rates:
        """Makes them of counts by bucket, see pool/times.py."""
        p50_ms, p99_ms = quantiles_ms(answered, (0.5, 0.99)) or (None, None)
        return cls(
            round((sum(answered) + failed) / span_s, 3),
            round(failed / span_s, 3),
            _rounded(p50_ms),
            _rounded(p99_ms),
        )


class Recorder:
    """Takes a sample where one is due. Event-loop thread.

    A look that finds none due costs a quarter of a microsecond, and there are four a second; a sample 0.1 ms. All
    columns together are 57 bytes a sample: 41 KB when the hour is full.
    """

    def __init__(
        self,
        memory: MemoryManager,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._memory, self._pool, self._clock, self._wall_clock = memory, pool, clock, wall_clock
        self._at = array("d")
        self._sizes = {name: array("q") for name in ("usage_bytes", "models_bytes", "cached_bytes")}
        self._levels = array("B")
        self._counts = {name: array("I") for name in ("requests", "failures", "loads", "evictions", "refusals")}
        self._p99_ms = array("f")
        self._cached: tuple[float, int] | None = None
        self._samples = 0
        self._last = self._former = self._recent = self._mark()
        self._due_s = self._last.at_s + EVERY_S
        self._totals = self._read_totals(self._last)

    # --- called all the time ---------------------------------------------------------------------------

    def look(self) -> None:
        """Takes a sample where one is due; called wherever somebody has looked at memory."""
        now = self._clock()
        if now >= self._due_s:
            self._due_s += EVERY_S
            if now >= self._due_s:  # nobody could look for a while: the samples in between are not there
                self._due_s = now + EVERY_S
            self._take()

    def note_cached(self, cached_bytes: int | None) -> None:
        """Takes note of what the page cache holds of all weights: only looks for others are worth its price."""
        self._cached = None if cached_bytes is None else (self._clock(), cached_bytes)

    # --- asked -----------------------------------------------------------------------------------------

    def rates(self) -> Rates:
        """Returns those of all requests, also of those for models that there are not."""
        statistics, since = self._pool.statistics, self._former
        return Rates.of(_less(statistics.answered, since.answered), statistics.failed - since.failed, self._span_s())

    def rates_of(self, found: ModelStatistics) -> Rates:
        """Returns those of one model."""
        parts = [part for part in (found.former, found.recent) if part is not None]
        failed = sum(part.failed for part in parts)
        if not parts:
            return _NO_RATES
        answered = parts[0].answered if len(parts) == 1 else list(map(add, parts[0].answered, parts[1].answered))
        return Rates.of(answered, failed, self._span_s())

    def history(self) -> dict[str, Any]:
        """Returns the columns, oldest first."""
        labels = [level.label for level in Level]
        columns: dict[str, Any] = {"every_s": EVERY_S, "at": [round(at, 3) for at in self._at]}
        for name, sizes in self._sizes.items():
            columns[name] = [None if size_bytes == _UNKNOWN else size_bytes for size_bytes in sizes]
        columns["level"] = [labels[level] for level in self._levels]
        columns |= {name: counts.tolist() for name, counts in self._counts.items()}
        columns["p99_ms"] = [_rounded(None if math.isnan(p99_ms) else p99_ms) for p99_ms in self._p99_ms]
        return columns

    # --- inside ----------------------------------------------------------------------------------------

    def _take(self) -> None:
        mark, before = self._mark(), self._last
        totals, former = self._read_totals(mark), self._totals
        ledger = self._memory.ledger.totals
        (p99_ms,) = quantiles_ms(_less(mark.answered, before.answered), (0.99,)) or (math.nan,)
        self._at.append(self._wall_clock())
        self._sizes["usage_bytes"].append(self._memory.usage_bytes)
        self._sizes["models_bytes"].append(ledger.resident_bytes + ledger.leaving_bytes)
        self._sizes["cached_bytes"].append(self._cached_bytes(mark.at_s))
        self._levels.append(self._memory.level)
        for name, counts in self._counts.items():
            counts.append(totals[name] - former[name])
        self._p99_ms.append(p99_ms)
        if len(self._at) > SAMPLES:
            del self._at[0], self._levels[0], self._p99_ms[0]
            for column in (*self._sizes.values(), *self._counts.values()):
                del column[0]
        self._last, self._totals = mark, totals
        self._samples += 1
        if self._samples % _SAMPLES_A_GENERATION == 0:
            self._former, self._recent = self._recent, mark
            self._pool.statistics.rotate()

    def _mark(self) -> Mark:
        statistics = self._pool.statistics
        return Mark(self._clock(), statistics.answered[:], statistics.failed)

    def _read_totals(self, mark: Mark) -> dict[str, int]:
        counters = self._pool.accounts.counters
        return {
            "requests": sum(mark.answered) + mark.failed,
            "failures": mark.failed,
            "loads": counters.loads,
            "evictions": counters.evictions,
            "refusals": sum(counters.refusals.values()),
        }

    def _cached_bytes(self, now: float) -> int:
        if self._cached is None or now - self._cached[0] > _CACHED_S:
            return _UNKNOWN
        return self._cached[1]

    def _span_s(self) -> float:
        return max(_LEAST_S, self._clock() - self._former.at_s)


_NO_RATES: Final = Rates(0.0, 0.0, None, None)


def _less(counts: Sequence[int], before: Sequence[int]) -> list[int]:
    return list(map(sub, counts, before))


def _rounded(took_ms: float | None) -> float | None:
    """Returns a quantile without the digits that its buckets do not have."""
    return None if took_ms is None else float(f"{took_ms:.4g}")
