"""How fast a series grows, by the median of all its slopes: outliers and single steps do not move it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: More points than this are thinned out: the pairs grow with their square.
_MAX_POINTS: Final = 250
#: Two-sided 99.9 %.
_QUANTILE: Final = 3.29


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per step of a series, with the bounds of a 99.9 % confidence interval."""

    value: float
    low: float
    high: float


def pair_slopes(at: Sequence[float], values: Sequence[float]) -> list[float]:
    """Returns the slopes between all pairs of readings, `at` ascending moments, in ascending order: their median is
    the Theil-Sen slope."""
    readings = zip(at, values, strict=True)
    pairs = itertools.combinations(readings, 2)
    return sorted((later - earlier) / (then - before) for (before, earlier), (then, later) in pairs)


def theil_sen(values: Sequence[float], *, at: Sequence[float] | None = None) -> Slope:
    """Returns the Theil-Sen slope with Kendall's interval: per step, or per unit of `at`, ascending moments.

    Raises ValueError for fewer than 8 values.
    """
    if len(values) < 8:
        raise ValueError(f"expected at least 8 values, got {len(values)}")
    stride = -(-len(values) // _MAX_POINTS)
    points = range(0, len(values), stride)
    moments: Sequence[float] = points if at is None else [at[point] for point in points]
    slopes = pair_slopes(moments, [values[point] for point in points])
    low, high = bounds(len(points))
    return Slope(slopes[len(slopes) // 2], slopes[low], slopes[high])


def bounds(readings: int, *, quantile: float = _QUANTILE) -> tuple[int, int]:
    """Returns which of the ascending slopes between all pairs of so many readings bound the interval of the median.

    It is Kendall's: P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63, 1968.
    """
    pairs = readings * (readings - 1) // 2
    spread = quantile * math.sqrt(readings * (readings - 1) * (2 * readings + 5) / 18)
    return max(0, int((pairs - spread) / 2)), min(pairs - 1, int((pairs + spread) / 2) + 1)
