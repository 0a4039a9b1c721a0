"""Elements of an SVG as text, coloured by the classes of `theme`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]

#: Average width of a character at 12 px in the fonts of the page: for what has to fit beside something.
CHARACTER: Final = 6.4


def text(x: float, y: float, words: str, style: str = "", anchor: Anchor = "start") -> str:
    """Returns words; `y` is their base line."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """Returns one straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def rect(x: float, y: float, width: float, height: float, style: str) -> str:
    """Returns a bar, at least one pixel wide and high."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width):.1f}" height="{max(1.0, height):.1f}" class="{style}"/>'
    )


def path(points: Iterable[Point], style: str) -> str:
    """Returns a line through all points."""
    return f'<polyline points="{_joined(points)}" class="{style}"/>'


def band(lower: Sequence[Point], upper: Sequence[Point], style: str) -> str:
    """Returns the area between two lines with the same x."""
    return f'<polygon points="{_joined([*upper, *reversed(lower)])}" class="{style}"/>'


def dot(x: float, y: float, style: str) -> str:
    """Returns a point that can be seen."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{style}"/>'


def group(parts: Iterable[str], *, left: float = 0, top: float = 0) -> str:
    """Returns parts moved together."""
    return f'<g transform="translate({left:.1f},{top:.1f})">{"".join(parts)}</g>'


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """Returns the whole; `label` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def apart(wanted: Sequence[float], gap: float, lowest: float, highest: float) -> list[float]:
    """Returns places near the wanted ones, `gap` from each other, within bounds where they fit; in the same order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    before = lowest - gap
    for index in order:
        before = placed[index] = max(wanted[index], before + gap)
    after = highest + gap
    for index in reversed(order):
        after = placed[index] = min(placed[index], after - gap)
    return placed


def _joined(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
