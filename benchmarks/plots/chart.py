"""Lines over a common axis, with their names beside them: the plots that are not of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.plots import scales, svg
from benchmarks.plots.theme import SERIES

WIDTH: Final = 1116
LEFT: Final = 74
#: Names and figures of lines stand here, in more where they are long.
RIGHT: Final = 196
_LABEL_LEFT: Final = 12
_LABEL_ROOM: Final = 6
_TOP: Final = 16
_BOTTOM: Final = 44
_LABEL_GAP: Final = 15
#: From here on time is told in minutes.
_MINUTES_S: Final = 240


def axes(x: scales.Scale, y: scales.Scale, *, x_unit: scales.Unit, y_unit: scales.Unit, x_label: str) -> Iterator[str]:
    """Yields grid, ticks and the label below; `y.start` is the bottom."""
    yield from y_axis(y, y_unit, x)
    yield from x_axis(x, x_unit, y.start, x_label)


def y_axis(y: scales.Scale, unit: scales.Unit, x: scales.Scale) -> Iterator[str]:
    """Yields the horizontal grid with its figures."""
    for value in y.ticks(max(2, int(abs(y.to - y.start) / 38)), unit):
        at = y.at(value)
        yield svg.line(x.start, at, x.to, at, "grid")
        yield svg.text(x.start - 8, at + 4, scales.shown(value, unit), "faint", "end")


def x_axis(
    x: scales.Scale, unit: scales.Unit, bottom: float, label: str, ticks: Sequence[float] | None = None
) -> Iterator[str]:
    """Yields the axis at the bottom, its figures, and what it is."""
    yield svg.line(x.start, bottom, x.to, bottom, "axis")
    for value in x.ticks(9, unit) if ticks is None else ticks:
        yield svg.line(x.at(value), bottom, x.at(value), bottom + 4, "axis")
        shown = f"{value / 60:g} min" if unit == "s" and x.high > _MINUTES_S else scales.shown(value, unit)
        yield svg.text(x.at(value), bottom + 18, shown, "faint", "middle")
    yield svg.text((x.start + x.to) / 2, bottom + 36, label, "faint", "middle")


def labels(
    wanted: Sequence[tuple[float, str, str]], x: float, top: float, bottom: float, *, from_x: float
) -> Iterator[str]:
    """Yields words (place, text, style) at the right, apart from each other, with a leader where one was moved."""
    places = svg.apart([place for place, _, _ in wanted], _LABEL_GAP, top, bottom)
    for (place, words, style), found in zip(wanted, places, strict=True):
        if abs(found - place) > 2:
            yield svg.line(from_x, place, x - 3, found, "mark")
        yield svg.text(x, found + 4, words, style)


def draw(plot: Mapping[str, Any], *, height: float = 320) -> str:
    """Returns a row of kind `plot` as a drawing: series with names, and levels as lines across."""
    series, levels = plot["series"], plot.get("levels", ())
    xs = [float(point[0]) for one in series for point in one["points"]]
    ys = [float(point[1]) for one in series for point in one["points"]] + [level["at"] for level in levels]
    x_unit, y_unit = plot["x"]["unit"], plot["y"]["unit"]
    bottom = height - _BOTTOM
    names = [
        f"{one['name']}: {scales.shown(one['points'][-1][1], y_unit)}" if one["points"] else one["name"]
        for one in series
    ]
    longest = max(map(len, [*names, *(level["name"] for level in levels)]), default=0)
    right = max(RIGHT, _LABEL_LEFT + longest * svg.CHARACTER + _LABEL_ROOM)
    x = _along(xs, LEFT, WIDTH - right, is_log=plot["x"].get("log", False))
    is_log, low = plot["y"].get("log"), plot["y"].get("low", 0.0)
    y = scales.logarithmic(ys, bottom, _TOP) if is_log else scales.linear(ys, bottom, _TOP, low=low)
    ticks = plot["x"].get("ticks")
    parts = [*y_axis(y, y_unit, x), *x_axis(x, x_unit, bottom, plot["x"]["label"], ticks)]
    parts.append(svg.text(LEFT - 66, _TOP - 4, plot["y"]["label"], "faint"))
    named: list[tuple[float, str, str]] = []
    for level in levels:
        parts.append(svg.line(x.start, y.at(level["at"]), x.to, y.at(level["at"]), level["style"]))
        named.append((y.at(level["at"]), level["name"], level["style"]))
    for index, one in enumerate(series):
        points = [(x.at(first), y.at(second)) for first, second in one["points"]]
        style = SERIES[index % len(SERIES)]
        parts.append(svg.path(points, style + (" dashed" if one.get("dashed") else "")))
        if len(points) <= 24:
            parts += [svg.dot(*point, f"fill-{style}") for point in points]
        if points:
            named.append((points[-1][1], names[index], style))
    parts += labels(named, x.to + _LABEL_LEFT, _TOP, bottom, from_x=x.to)
    return svg.drawing(WIDTH, height, parts, plot["title"])


def _along(values: list[float], start: float, to: float, *, is_log: bool) -> scales.Scale:
    """A scale that ends with the values, and begins with the least of them where that is far from 0."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if is_log and 0 < low < high:
        return scales.Scale(low, high, start, to, is_log=True)
    return scales.Scale(0.0 if low < 0.2 * high else low, high, start, to)
