"""How long requests took, by buckets: small enough for each model, fine enough for quantiles.

A bucket ends some 12 % above the one before it, so that a quantile is at most that far off. Its bounds have those of
the Prometheus histogram among them: one look-up for each request serves both.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Final


def _bounds_ns() -> tuple[int, ...]:
    """Returns 10 us to 100 s, in which each of 1, 2.5 and 5 times a power of ten is one."""
    marks = [mark * 10**power for power in range(4, 11) for mark in (1.0, 2.5, 5.0)] + [1e11]
    bounds = []
    for low, high in pairwise(marks):
        steps = 8 if high / low > 2.1 else 6
        bounds += [round(low * (high / low) ** (step / steps)) for step in range(steps)]
    return (*bounds, round(marks[-1]))


#: Upper bounds of all buckets but the last, in nanoseconds; a request that took exactly so long is within, so that
#: bisect_left says its bucket.
BOUNDS_NS: Final = _bounds_ns()
BUCKETS: Final = len(BOUNDS_NS) + 1


def empty_counts() -> array[int]:
    """Returns a count of 0 for each bucket: 4 bytes each."""
    return array("I", bytes(4 * BUCKETS))


def quantiles_ms(counts: Iterable[int], shares: Sequence[float]) -> list[float] | None:
    """Returns what each of `shares` (0 to 1) of the requests counted took at most, in milliseconds; None where there
    are none.

    Within a bucket requests are taken to be spread evenly on the logarithm. What is below the first bound or above the
    last one is told as that bound.
    """
    sums = list(accumulate(counts))
    return [_quantile_ms(sums, share) for share in shares] if sums[-1] else None


def _quantile_ms(sums: Sequence[int], share: float) -> float:
    rank = max(1.0, share * sums[-1])
    bucket = bisect_left(sums, rank)
    if bucket in (0, BUCKETS - 1):
        return BOUNDS_NS[min(bucket, BUCKETS - 2)] * 1e-6
    low, high, below = BOUNDS_NS[bucket - 1], BOUNDS_NS[bucket], sums[bucket - 1]
    within = (rank - below) / (sums[bucket] - below)
    return float(low * (high / low) ** within) * 1e-6


def not_over(counts: Sequence[int], bounds_ns: Iterable[int]) -> list[int]:
    """Returns how many requests took at most each of `bounds_ns`, which are among BOUNDS_NS."""
    sums = list(accumulate(counts))
    return [sums[bisect_left(BOUNDS_NS, bound_ns)] for bound_ns in bounds_ns]
