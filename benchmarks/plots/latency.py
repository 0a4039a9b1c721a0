"""How long requests take: the share that is answered within a time, with the tail spread out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.plots import scales, svg
from benchmarks.plots.chart import LEFT, RIGHT, WIDTH, labels, y_axis
from benchmarks.plots.theme import SERIES

_HEIGHT: Final = 300
_TOP: Final = 18
_BOTTOM: Final = _HEIGHT - 46
_TICKS: Final = ((0, "0"), (0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99"))


def draw(asked: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the curve of each phase of a recording."""
    most = max(one["ok"] for one in asked.values())
    x = scales.Scale(0.0, max(1.0, math.log10(max(10, most))), LEFT, WIDTH - RIGHT)
    times = [float(time_ms) for one in asked.values() for _, time_ms in one["percentiles"]]
    y = scales.logarithmic(times, _BOTTOM, _TOP)
    parts = [*y_axis(y, "ms", x), svg.line(x.start, _BOTTOM, x.to, _BOTTOM, "axis")]
    for share, label in _TICKS:
        at = x.at(_nines(share, most))
        if share <= 1 - 1 / most:
            parts += [svg.line(at, _TOP, at, _BOTTOM + 4, "grid")]
            parts += [svg.text(at, _BOTTOM + 18, f"{label} %", "faint", "middle")]
    parts.append(svg.text((x.start + x.to) / 2, _BOTTOM + 36, "share of requests answered within", "faint", "middle"))
    named: list[tuple[float, str, str]] = []
    for index, (name, one) in enumerate(asked.items()):
        style = SERIES[index % len(SERIES)]
        points = [
            (x.at(_nines(share, one["ok"])), y.at(time_ms))
            for share, time_ms in one["percentiles"]
            if share == 1 or share <= 1 - 1 / one["ok"]
        ]
        parts.append(svg.path(points, style))
        named.append((points[-1][1], f"{name}, {one['ok']:,}", style))
    parts += labels(named, x.to + 12, _TOP, _BOTTOM, from_x=x.to)
    return svg.drawing(WIDTH, _HEIGHT, parts, "times of requests")


def _nines(share: float, count: int) -> float:
    """Each tenfold of the tail takes the same width; the slowest of so many stands where 1 in that many would."""
    return -math.log10(max(1 - share, 1 / max(2, count)))
