"""Scales: from a value to a place, and the values that get a tick, with their unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["bytes", "ms", "s", "count"]
_MB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Scale:
    """A stretch of values on a stretch of pixels; `to` is less than `start` where it grows upwards."""

    low: float
    high: float
    start: float
    to: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Returns the place of a value, at the end of the scale where it is beyond."""
        if self.is_log:
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(max(value, self.low))
        else:
            low, high = self.low, self.high
        share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
        return self.start + share * (self.to - self.start)

    def ticks(self, most: int, unit: Unit) -> list[float]:
        """Returns about `most` round values within the scale."""
        if self.is_log:
            return _log_ticks(self.low, self.high, most)
        step = _step((self.high - self.low) / max(1, most), unit)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def linear(values: list[float], start: float, to: float, *, low: float = 0.0, room: float = 1.05) -> Scale:
    """Returns a scale from `low` to a little above the largest of the values."""
    return Scale(low, max([low + 1e-9, *(low + (value - low) * room for value in values)]), start, to)


def logarithmic(values: list[float], start: float, to: float) -> Scale:
    """Returns a scale of whole powers of ten, or halves of them, around the values above 0."""
    above = [value for value in values if value > 0] or [1.0]
    low = 10 ** math.floor(math.log10(min(above)))
    high = 10 ** (math.ceil(math.log10(max(above)) * 2 - 1e-9) / 2)
    return Scale(low, max(high, low * 10), start, to, is_log=True)


def shown(value: float, unit: Unit) -> str:
    """Returns a value as a tick or a label says it."""
    if unit == "bytes":
        if value and abs(value) < _MB:
            return f"{value / 1024:.3g} KB"
        return f"{value / _MB:.4g} MB"
    if unit == "ms":
        return f"{value / 1000:g} s" if value >= 1000 else f"{value:.3g} ms"
    if unit == "s":
        return f"{value:.4g} s"
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _step(least: float, unit: Unit) -> float:
    """The next round step: of bytes those of powers of two, of time those of a clock, else 1, 2 and 5."""
    if unit == "bytes":
        return float(2 ** math.ceil(math.log2(max(least, 1))))
    if unit == "s" and least > 20:
        return next((step for step in (30, 60, 120, 300, 600, 1800, 3600) if step >= least), 7200.0)
    power = 10.0 ** math.floor(math.log10(max(least, 1e-12)))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= least * 0.999)


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high) + 1e-9)
    steps = (1, 2, 5) if (last - first + 1) * 3 <= most else (1,)
    every = max(1, math.ceil((last - first + 1) / most))
    values = [10**power * step for power in range(first, last + 1, every) for step in steps]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]
