"""Memory over time with its levels, and below it, on the same axis, loads and events, and the times of requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.plots import scales, svg
from benchmarks.plots.chart import LEFT, RIGHT, WIDTH, labels, x_axis, y_axis
from benchmarks.plots.theme import SERIES

_MEMORY: Final = 250
_LANE: Final = 15
_LANE_GAP: Final = 7
_TIMES: Final = 150
_MARKS: Final = 34
_GAP: Final = 26
_BOTTOM: Final = 46


def draw(recorded: Mapping[str, Any]) -> str:
    """Returns a row of kind `recorded` as a drawing."""
    x = scales.Scale(0.0, max(recorded["took_s"], 0.1), LEFT, WIDTH - RIGHT)
    lanes = list(_lanes(recorded, x))
    memory_bottom = _MARKS + _MEMORY
    bottom = memory_bottom + 12 + len(lanes) * (_LANE + _LANE_GAP)
    parts = list(_memory(recorded, x, _MARKS, memory_bottom))
    for index, (name, bars) in enumerate(lanes):
        top = memory_bottom + 12 + index * (_LANE + _LANE_GAP)
        parts.append(svg.text(LEFT - 8, top + 12, name, "faint", "end"))
        parts.append(svg.group(bars, top=top))
    asked = {name: one for name, one in recorded["requests"].items() if one["over_time"]["at_s"]}
    if asked:
        top, bottom = bottom + _GAP, bottom + _GAP + _TIMES
        parts += _times(asked, x, top, bottom)
    parts += x_axis(x, "s", bottom + 4, "time")
    parts += _marks(recorded["marks"], x, bottom + 4)
    return svg.drawing(WIDTH, bottom + _BOTTOM, parts, f"memory over time: {recorded['run']}")


def _memory(recorded: Mapping[str, Any], x: scales.Scale, top: float, bottom: float) -> Iterator[str]:
    usage, bounds = recorded["usage"], {name: value for name, value in recorded["bounds"].items() if value}
    y = scales.linear([*map(float, usage["high_bytes"]), *bounds.values()], bottom, top)
    yield from y_axis(y, "bytes", x)
    places = [x.at(at_s) for at_s in usage["at_s"]]
    low, high = ([(at, y.at(value)) for at, value in zip(places, usage[key], strict=True)] for key in _EDGES)
    low, high = _thinned(low, max), _thinned(high, min)
    yield svg.band(low, high, "fill-s0")
    yield svg.path(high, "s0")
    for name, value in bounds.items():
        yield svg.path([(x.at(at_s), y.at(size)) for at_s, size in _steps(recorded, name, value)], name)
    named = [(y.at(value), f"{name} {scales.shown(value, 'bytes')}", name) for name, value in bounds.items()]
    if high:
        peak = scales.shown(max(usage["high_bytes"]), "bytes")
        named.append((high[-1][1], f"usage, most {peak}", "s0"))
    yield from labels(named, x.to + 12, top, bottom, from_x=x.to)


def _steps(recorded: Mapping[str, Any], name: str, last: float) -> Iterator[tuple[float, float]]:
    """Yields the corners of a bound over time: level but where adaptive thresholds have moved it."""
    changes, end_s = recorded.get("thresholds", ()), max(recorded["took_s"], 0.1)
    moved = [change for change in changes if f"from_{name}_bytes" in change]
    yield 0.0, moved[0][f"from_{name}_bytes"] if moved else last
    for change in moved:
        yield change["at_s"], change[f"from_{name}_bytes"]
        yield change["at_s"], change[f"{name}_bytes"]
    yield end_s, moved[-1][f"{name}_bytes"] if moved else last


_EDGES: Final = ("low_bytes", "high_bytes")


def _thinned(points: Sequence[svg.Point], pick: Any) -> list[svg.Point]:
    """Returns one point for each pixel, the lowest or the highest: more would only be drawn over each other."""
    found: dict[int, float] = {}
    for place, value in points:
        column = round(place)
        found[column] = pick(found[column], value) if column in found else value
    return [(float(column), value) for column, value in found.items()]


def _lanes(recorded: Mapping[str, Any], x: scales.Scale) -> Iterator[tuple[str, list[str]]]:
    """Yields name and bars of each kind of event that there was."""
    if recorded["levels"]:
        yield "level", list(_levels(recorded["levels"], x))
    for name, key, style in (("preparing", "preparations", "fill-s3"), ("loading", "loads", "fill-s2")):
        if recorded[key]:
            yield name, [_bar(*span, style) for span in _spans(recorded[key], x)]
    for name, moments, style in (
        ("leaving", [at_s for at_s, _ in recorded["leaves"]], "fill-s0"),
        ("refused", recorded["refusals"], "at-critical"),
    ):
        if moments:
            yield name, [_bar(*span, style) for span in _spans([(at_s, at_s) for at_s in moments], x)]


def _levels(levels: Sequence[Sequence[Any]], x: scales.Scale) -> Iterator[str]:
    changes = [(0.0, "normal"), *((float(at_s), str(level)) for at_s, level in levels)]
    for (at_s, level), (end_s, _) in zip(changes, [*changes[1:], (x.high, "")], strict=True):
        yield _bar(x.at(at_s), x.at(end_s), f"at-{level}")
        if x.at(end_s) - x.at(at_s) > svg.CHARACTER * len(level) + 12:
            yield f'<text x="{x.at(at_s) + 5:.1f}" y="12" style="fill:var(--{_ON[level]})">{level}</text>'


#: Words on a bar of each level.
_ON: Final = {"normal": "faint", "warning": "ground", "critical": "ground"}


def _bar(start: float, to: float, style: str) -> str:
    return svg.rect(start, 0, max(1.5, to - start), _LANE, style)


def _spans(spans: Iterable[Sequence[Any]], x: scales.Scale) -> list[tuple[float, float]]:
    """Returns spans as pixels, those that touch as one."""
    found: list[tuple[float, float]] = []
    for start, to in sorted((x.at(span[0]), x.at(span[1])) for span in spans):
        if found and start <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], to))
        else:
            found.append((start, to))
    return found


def _times(asked: Mapping[str, Mapping[str, Any]], x: scales.Scale, top: float, bottom: float) -> Iterator[str]:
    values = [value for one in asked.values() for key in ("p50_ms", "most_ms") for value in one["over_time"][key]]
    y = scales.logarithmic(values, bottom, top)
    yield from y_axis(y, "ms", x)
    yield svg.text(LEFT, top - 10, "time of a request: median, and the longest above it", "faint")
    named: list[tuple[float, str, str]] = []
    for index, (name, one) in enumerate(asked.items()):
        style, over = SERIES[index % len(SERIES)], one["over_time"]
        for stretch in _stretches(over["at_s"], max(6 * one["window_s"], x.high / 40)):
            middle, most = (
                [(x.at(over["at_s"][at]), y.at(over[key][at])) for at in stretch] for key in ("p50_ms", "most_ms")
            )
            yield svg.band(middle, most, f"fill-{style}")
            yield svg.path(middle, style)
            if len(middle) == 1:
                yield svg.dot(*middle[0], f"fill-{style}")
        named.append((y.at(over["p50_ms"][-1]), name, style))
    yield from labels(named, x.to + 12, top, bottom, from_x=x.to)


def _stretches(at_s: Sequence[float], gap_s: float) -> Iterator[range]:
    """Yields the indices of moments that follow each other: no line is drawn where nothing was answered for long."""
    start = 0
    for index in range(1, len(at_s) + 1):
        if index == len(at_s) or at_s[index] - at_s[index - 1] > gap_s:
            yield range(start, index)
            start = index


def _marks(marks: Sequence[Sequence[Any]], x: scales.Scale, bottom: float) -> Iterator[str]:
    """Yields a line for each moment, and its words above where they have room, in two rows."""
    ends = [0.0, 0.0]
    for at_s, words in marks:
        at = x.at(at_s)
        yield svg.line(at, _MARKS - 2, at, bottom, "mark")
        row = next((row for row in (1, 0) if at > ends[row]), None)
        if row is None:
            continue
        width = svg.CHARACTER * len(words) + 10
        is_late = at + width > WIDTH
        yield svg.text(at - 4 if is_late else at, 12 + 15 * row, words, "faint", "end" if is_late else "start")
        ends[row] = at + width
