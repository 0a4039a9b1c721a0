"""Where memory goes: how fast what no model holds grows, how sure that is, and when thresholds would be reached.

What models hold comes and goes as requests want it, and leaves when it has to. What is left of usage without it should
stand still: the host's own memory, buffers, what runs and loads left behind. Growth of that is what no eviction stops
in the end, and what a forecast is about.

Pure arithmetic over readings; no clock, no threads. A look takes some 0.3 ms, a reading under a microsecond.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelhost.slope import Slope, bounds

#: Readings of so many seconds are one point, their smallest value: runs and loads only ever add to what stays. A series
#: each, for what fills memory within minutes, hours, a day, and a week.
_WIDTHS_S: Final = (1.0, 10.0, 100.0, 1000.0)
#: Points of one series.
_KEPT: Final = 90
#: Fewer points than this say nothing.
_LEAST_POINTS: Final = 16
#: Of the confidence interval, one-sided. Every look is a test, and a host looks tens of thousands of times a day.
_QUANTILE: Final = 4.0
#: Autocorrelation of the readings that is counted with, at most: above it an interval says nothing any more.
_LARGEST_CORRELATION: Final = 0.9
#: Each quarter of a series has to take part in the growth, with so much of its share: a step is no slope.
_LEAST_SHARE: Final = 0.35
#: What was seen has to be this share of what is left, at least: a forecast looks no further ahead than eight times as
#: far as it has seen. Caches fill, buffers grow to the largest request; both end.
_LEAST_SEEN: Final = 1 / 8
#: Growth that is not worth a word, as a share of the limit and in bytes.
_NOISE_SHARE: Final = 0.004
_NOISE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Growth:
    """Growth of what no model holds, in bytes a second, with the bounds of its confidence interval."""

    bytes_per_s: float
    low_bytes_per_s: float
    high_bytes_per_s: float
    seen_s: float
    """How long it has been watched."""
    seen_bytes: int
    """What came together in that time."""

    def as_dict(self) -> dict[str, float]:
        """Returns the figures for JSON."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Times:
    """Time until a threshold is reached, in seconds: as expected, and at the bounds of the growth."""

    expected_s: float
    soonest_s: float
    latest_s: float

    def as_dict(self) -> dict[str, float]:
        """Returns the figures for JSON."""
        return {name.removesuffix("_s"): round(value, 1) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is to come if things go on as they are.

    `growth` is None where nothing grows for certain; the times are too where it has grown by less than an eighth of
    what is left to critical.
    """

    growth: Growth | None = None
    to_warning: Times | None = None
    """Until usage reaches warning and the first models leave."""
    to_critical: Times | None = None
    """Until it reaches critical, all models that can leave having left."""


class Forecaster:
    """Takes readings of what no model holds, and tells what they come to. One thread, the owner's."""

    def __init__(self) -> None:
        self._series = [_Series(width_s) for width_s in _WIDTHS_S]

    def note(self, at_s: float, own_bytes: int) -> bool:
        """Takes a reading; moments only ever rise. Returns whether it ended a point: a look may find something new."""
        ended = [series.note(at_s, own_bytes) for series in self._series]
        return any(ended)

    def growth(self, limit_bytes: int) -> Growth | None:
        """Returns the growth that is beyond doubt, of the series that knows it best; None where there is none."""
        least_bytes = max(_NOISE_BYTES, _NOISE_SHARE * limit_bytes)
        found = [growth for series in self._series if (growth := series.growth(least_bytes)) is not None]
        return min(found, key=_vagueness, default=None)

    def look(
        self, *, usage_bytes: int, evictable_bytes: int, warning_bytes: int, critical_bytes: int, limit_bytes: int
    ) -> Forecast:
        """Returns the forecast from `usage_bytes`, of which `evictable_bytes` would leave before critical comes."""
        growth = self.growth(limit_bytes)
        left_bytes = critical_bytes - usage_bytes + evictable_bytes
        if growth is None or growth.seen_bytes < left_bytes * _LEAST_SEEN:
            return Forecast(growth)
        return Forecast(growth, _until(warning_bytes - usage_bytes, growth), _until(left_bytes, growth))


class _Series:
    """The smallest reading of each `width_s`, the last `_KEPT` of them."""

    def __init__(self, width_s: float) -> None:
        self.width_s = width_s
        self._points: deque[int] = deque(maxlen=_KEPT)
        self._begun: int | None = None  # which point is being made, as a multiple of the width
        self._least_bytes = 0
        self._growth: Growth | None = None  # of the points that there are, where it was worked out since the last one
        self._is_worked_out = False

    def note(self, at_s: float, own_bytes: int) -> bool:
        index = int(at_s // self.width_s)
        if index == self._begun:
            self._least_bytes = min(self._least_bytes, own_bytes)
            return False
        if self._begun is not None:
            # Where nothing was read for a while, as on a machine that slept, what came before says nothing of now.
            if index > self._begun + 3:
                self._points.clear()
            else:
                self._points.extend([self._least_bytes] * (index - self._begun))
        is_first = self._begun is None
        self._begun, self._least_bytes, self._is_worked_out = index, own_bytes, False
        return not is_first

    def growth(self, least_bytes: float) -> Growth | None:
        """Returns the growth where it is beyond doubt and comes to `least_bytes` over the time that was seen."""
        if not self._is_worked_out:
            self._growth, self._is_worked_out = self._work_out(), True
        growth = self._growth
        return growth if growth is not None and growth.seen_bytes >= least_bytes else None

    def _work_out(self) -> Growth | None:
        count = len(self._points)
        if count < _LEAST_POINTS:
            return None
        values = np.fromiter(self._points, np.float64, count)
        slope = slope_of(values)
        if slope.low <= 0 or not _is_everywhere(values, slope.value):
            return None
        return Growth(
            slope.value / self.width_s,
            slope.low / self.width_s,
            slope.high / self.width_s,
            seen_s=count * self.width_s,
            seen_bytes=round(slope.value * count),
        )


def slope_of(values: NDArray[np.float64]) -> Slope:
    """Returns the Theil-Sen slope of evenly spaced values, per step.

    It is that of `modelhost.slope`, worked out by numpy, as the event loop waits for it; its bounds are wider, by the
    square root of (1 + r) / (1 - r) too, where readings follow their predecessor with correlation r.
    """
    count = len(values)
    earlier, later = np.triu_indices(count, 1)
    slopes = np.sort((values[later] - values[earlier]) / (later - earlier))
    value = _middle(slopes)
    rest = values - _middle(np.sort(values)) - value * (np.arange(count) - (count - 1) / 2)
    rest -= rest.mean()
    power = float(rest @ rest)
    correlation = min(_LARGEST_CORRELATION, max(0.0, float(rest[1:] @ rest[:-1]) / power)) if power > 0 else 0.0
    wider = math.sqrt((1 + correlation) / (1 - correlation))
    low, high = bounds(count, quantile=_QUANTILE * wider)
    return Slope(value, float(slopes[low]), float(slopes[high]))


def _middle(ascending: NDArray[np.float64]) -> float:
    """Returns the median. numpy's own imports `numpy.ma` at its first call: 0.9 MB that every host would hold."""
    half = len(ascending) // 2
    return float(ascending[half]) if len(ascending) % 2 else float(ascending[half - 1] + ascending[half]) / 2


def _is_everywhere(values: NDArray[np.float64], slope: float) -> bool:
    """Whether each quarter lies above the one before it by a good part of what the slope would make of it."""
    middles = [_middle(np.sort(part)) for part in np.array_split(values, 4)]
    expected = slope * len(values) / 4
    return all(after - before >= _LEAST_SHARE * expected for before, after in pairwise(middles))


def _vagueness(growth: Growth) -> float:
    return (growth.high_bytes_per_s - growth.low_bytes_per_s) / growth.bytes_per_s


def _until(left_bytes: float, growth: Growth) -> Times:
    left_bytes = max(0.0, left_bytes)
    return Times(
        left_bytes / growth.bytes_per_s, left_bytes / growth.high_bytes_per_s, left_bytes / growth.low_bytes_per_s
    )
