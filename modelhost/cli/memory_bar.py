"""The memory of a host as a bar: what it is made of, and where the thresholds are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

from modelhost.cli.segments import Line, Role, Segment, line
from modelhost.units import format_bytes


@dataclass(frozen=True, slots=True)
class Part:
    """What some of the memory is for, and the character that the bar is filled with for it."""

    name: str
    size_bytes: int
    character: str
    role: Role


@dataclass(frozen=True, slots=True)
class Mark:
    """A threshold, by a letter."""

    name: str
    at_bytes: int
    letter: str
    role: Role


_FREE: Final = Segment(".", Role.DIM)

#: Key in the feed's `bar`, name, character and role, in the order in which they are drawn.
_PARTS: Final = (
    ("host_bytes", "host", "#", Role.HOST),
    ("models_bytes", "models", "=", Role.MODELS),
    ("loading_bytes", "loading", ">", Role.LOADING),
    ("activations_bytes", "activations", "~", Role.ACTIVATIONS),
)


def parts_of_feed(bar: dict[str, Any]) -> list[Part]:
    """Returns the parts of usage as `GET /monitor` tells them, and beside them the weights in the page cache."""
    parts = [Part(name, bar[key], character, role) for key, name, character, role in _PARTS]
    return [*parts, *_cached(bar["weights_cached_bytes"])]


def parts_of_memory(memory: dict[str, Any]) -> list[Part]:
    """Returns usage in one, as `GET /memory` tells it, and beside it the weights in the page cache."""
    return [
        Part("in use", memory["usage_bytes"], "#", Role.HOST),
        *_cached(memory["page_cache"]["cached_bytes"]),
    ]


def _cached(size_bytes: int | None) -> list[Part]:
    return [] if size_bytes is None else [Part("in cache", size_bytes, ":", Role.CACHE)]


def marks_of(memory: dict[str, Any]) -> list[Mark]:
    """Returns the thresholds, the least first; the limit is the bar's end."""
    return [
        Mark("baseline", memory["baseline_bytes"], "b", Role.STRONG),
        Mark("warning", memory["warning_bytes"], "w", Role.WARNING),
        Mark("critical", memory["critical_bytes"], "C", Role.CRITICAL),
        Mark("limit", memory["limit_bytes"], "]", Role.STRONG),
    ]


def bar(parts: Sequence[Part], marks: Sequence[Mark], *, width: int) -> Line:
    """Returns the bar in `width` columns, from 0 to the last mark; what is beyond that is left out."""
    *inner, limit = marks
    size = max(len(marks), width - 2)

    def column(at_bytes: int) -> int:
        return min(size, at_bytes * size // max(1, limit.at_bytes))

    cells: list[Segment] = []
    used_bytes = 0
    for part in parts:
        used_bytes += max(0, part.size_bytes)
        cells += [Segment(part.character, part.role)] * (column(used_bytes) - len(cells))
    cells += [_FREE] * (size - len(cells))
    # From the right: where two fall together the lower one gives way, by a column where there is one.
    taken = size
    for mark in reversed(inner):
        taken = min(taken - 1, column(mark.at_bytes))
        if taken < 0:
            break
        cells[taken] = Segment(mark.letter, mark.role)
    runs = (Segment("".join(cell.text for cell in run), role) for role, run in groupby(cells, lambda cell: cell.role))
    return (Segment("["), *runs, Segment(limit.letter, limit.role))


def legend(parts: Sequence[Part]) -> list[Line]:
    """Returns what each character stands for, and how much it is."""
    return [line(Segment(part.character, part.role), f" {part.name} {format_bytes(part.size_bytes)}") for part in parts]


def mark_legend(marks: Sequence[Mark]) -> list[Line]:
    """Returns what each letter stands for, and where it is."""
    return [line(Segment(mark.letter, mark.role), f" {mark.name} {format_bytes(mark.at_bytes)}") for mark in marks]
