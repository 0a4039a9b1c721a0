"""The picture of `python -m benchmarks throughput`: one self-contained SVG, drawn from the results.

A panel for each workload and form: a bar for each server and number of connections, its length the
requests a second beside the best in the panel, its label the figure and the multiple of the hand-written
app; and at the right the times, a dot at the median and a line to the 99th percentile, on one logarithmic
scale for the panel. The plain loop, which no connection slows down, is a dashed line where it fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from benchmarks.report import Report, environment

_WIDTH: Final = 1280
_MARGIN: Final = 24
_GAP: Final = 40
_COLUMNS: Final = 2
_PANEL: Final = (_WIDTH - 2 * _MARGIN - _GAP * (_COLUMNS - 1)) / _COLUMNS
_NAMES: Final = 168
_BARS: Final = 170
_TIMES_FROM: Final = _NAMES + _BARS + 105
_TIMES: Final = _PANEL - _TIMES_FROM
_ROW: Final = 13
_GROUP_GAP: Final = 7
_TITLE: Final = 44
_TOP: Final = 92
_PLAIN: Final = "plain"

#: One hue for us, two greys for the yardsticks, one pale hue for the others; readable without colour by the names.
_COLOURS: Final = {"modelhost": "#0b6e99", "bare": "#6b7280", "hand-written": "#9ca3af"}
_OTHERS: Final = "#d9a05b"
_INK: Final = "#1f2328"
_FAINT: Final = "#6e7781"


def of_report(report: Report) -> str:
    """Returns the picture of a report, which says where it was measured."""
    found, plan = environment(), report.parameters
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("python", "onnxruntime"))
    subtitle = (
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores; {versions}; commit {found['commit']}; "
        f"medians of {plan['rounds']} runs of {plan['seconds']} s, in turns, driven by wrk on the same cores"
    )
    return draw(report.rows, title="modelhost: requests a second, and how long they take", subtitle=subtitle)


def draw(rows: Sequence[Mapping[str, Any]], *, title: str, subtitle: str) -> str:
    """Returns the picture of the rows of kind `cell`, as a report has them."""
    panels = list(_panels(row for row in rows if row["kind"] == "cell"))
    heights = [_height(cells) for _, cells in panels]
    parts, top = [], float(_TOP)
    for start in range(0, len(panels), _COLUMNS):
        for column, (name, cells) in enumerate(panels[start : start + _COLUMNS]):
            left = _MARGIN + column * (_PANEL + _GAP)
            parts.append(f'<g transform="translate({left:.1f},{top:.1f})">{"".join(_panel(name, cells))}</g>')
        top += max(heights[start : start + _COLUMNS]) + 26
    head = [_text(_MARGIN, 34, title, size=20, weight=600), _text(_MARGIN, 56, subtitle, colour=_FAINT)]
    head.append(_text(_MARGIN, 74, _KEY, colour=_FAINT))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" height="{top:.0f}" '
        'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(head)}{"".join(parts)}</svg>\n'
    )


_KEY: Final = (
    "bars: requests a second, and that as a multiple of the hand-written app; dashed: the plain loop on all cores; "
    "right: time of a request, dot at the median, line to the 99th percentile"
)


def _panels(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Groups the rows by workload and form, in the order in which they came."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(f"{row['workload'].replace('_', ' ')}, {row['form']}", []).append(row)
    yield from found.items()


def _servers(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups a panel's rows by server, the plain loops aside: the host first, then the fastest."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if not cell["server"].startswith(_PLAIN):
            found.setdefault(cell["server"], []).append(cell)

    def order(name: str) -> tuple[bool, float]:
        return not name.startswith("modelhost"), -max(cell["requests_per_second"] for cell in found[name])

    return {name: found[name] for name in sorted(found, key=order)}


def _height(cells: Sequence[Mapping[str, Any]]) -> float:
    return _TITLE + sum(_ROW * len(group) + _GROUP_GAP for group in _servers(cells).values())


def _panel(name: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    servers = _servers(cells)
    drawn = [cell for group in servers.values() for cell in group]
    most = max((cell["requests_per_second"] for cell in drawn), default=0) or 1
    times = [time for cell in drawn for time in (cell["p50_ms"], cell["p99_ms"]) if time > 0] or [1.0]
    scale = _Scale(min(times), max(times))
    bottom = _height(cells) - _GROUP_GAP
    yield _text(0, 14, name, size=15, weight=600)
    yield from _ticks(scale, bottom)
    yield from _plain(cells, most, bottom)
    top = float(_TITLE)
    for server, group in servers.items():
        colour = _colour(server)
        yield _text(_NAMES - 34, top + 10, server, anchor="end", weight=600 if server.startswith("modelhost") else 400)
        for cell in group:
            yield _text(_NAMES - 6, top + 10, str(cell["connections"]), anchor="end", colour=_FAINT, size=10)
            yield from _row(cell, top, most, scale, colour)
            top += _ROW
        top += _GROUP_GAP


def _row(cell: Mapping[str, Any], top: float, most: float, scale: _Scale, colour: str) -> Iterator[str]:
    length = _BARS * cell["requests_per_second"] / most
    yield f'<rect x="{_NAMES}" y="{top + 1:.1f}" width="{max(length, 1):.1f}" height="{_ROW - 3}" fill="{colour}"/>'
    label = _figure(cell["requests_per_second"])
    if cell.get("x_handwritten") is not None and cell["server"] != "hand-written":
        label += f" ({cell['x_handwritten']:.2f}\N{MULTIPLICATION SIGN})"
    at, middle = _NAMES + length + 4, top + _ROW / 2
    yield f'<rect x="{at - 2:.1f}" y="{top:.1f}" width="{6.4 * len(label):.0f}" height="{_ROW}" fill="#ffffff"/>'
    yield _text(at, top + 10, label, size=11)
    if cell["p50_ms"] > 0:
        left, right = scale.at(cell["p50_ms"]), scale.at(cell["p99_ms"])
        yield (
            f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
            f'stroke="{colour}" stroke-width="2"/><circle cx="{left:.1f}" cy="{middle:.1f}" r="3.5" fill="{colour}"/>'
        )


def _plain(cells: Sequence[Mapping[str, Any]], most: float, bottom: float) -> Iterator[str]:
    """Draws the plain loop where it is within the bars' reach, else says how far away it is."""
    rates = sorted(cell["requests_per_second"] for cell in cells if cell["server"] == _PLAIN)
    if not rates:
        return
    rate = rates[len(rates) // 2]
    label, at = f"plain {_figure(rate)}", _NAMES + _BARS * rate / most
    if rate > 1.25 * most:
        yield _text(_NAMES + _BARS, 34, f"{label}, beyond", size=11, colour=_FAINT, anchor="end")
        return
    yield (
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TITLE - 4}" y2="{bottom:.1f}" stroke="{_INK}" '
        'stroke-width="1" stroke-dasharray="4 3"/>'
    )
    yield _text(at, 34, label, size=11, anchor="middle")


class _Scale:
    """Times on a logarithmic scale of whole powers of ten."""

    def __init__(self, least: float, most: float) -> None:
        self.low, self.high = math.floor(math.log10(least)), math.ceil(math.log10(most))
        self.high = max(self.high, self.low + 1)

    def at(self, time_ms: float) -> float:
        """Returns where a time is, from the left of the panel."""
        share = (math.log10(max(time_ms, 10.0**self.low)) - self.low) / (self.high - self.low)
        return _TIMES_FROM + min(1.0, share) * (_TIMES - 8)


def _ticks(scale: _Scale, bottom: float) -> Iterator[str]:
    step = 1 if scale.high - scale.low <= 3 else 2  # labels need room
    for power in range(scale.low, scale.high + 1, step):
        at = scale.at(10.0**power)
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TITLE - 4}" y2="{bottom:.1f}" stroke="#e5e7eb"/>'
        label = f"{10.0**power:g} ms" if power < 3 else f"{10 ** (power - 3)} s"
        yield _text(at, 34, label, size=11, colour=_FAINT, anchor="middle")


def _colour(server: str) -> str:
    return _COLOURS.get(server.split(",")[0], _OTHERS)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _text(
    x: float, y: float, text: str, *, size: int = 12, colour: str = _INK, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
