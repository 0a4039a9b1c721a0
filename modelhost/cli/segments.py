"""Text for terminals as values: pieces with a meaning, in lines. How a meaning looks is the terminal's matter.

Nothing here needs colour to be understood, and nothing anything but the standard library.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

import click


class Role(Enum):
    """What a piece of text means."""

    PLAIN = "plain"
    STRONG = "strong"
    DIM = "dim"
    GOOD = "good"
    WARNING = "warning"
    CRITICAL = "critical"
    HOST = "host"
    MODELS = "models"
    LOADING = "loading"
    ACTIVATIONS = "activations"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a line."""

    text: str
    role: Role = Role.PLAIN


Line: TypeAlias = tuple[Segment, ...]

#: By role, for `click.style`: the terminal's own colours, which it has chosen for its background.
_ANSI: Final[dict[Role, Callable[[str], str]]] = {
    Role.PLAIN: str,
    Role.STRONG: lambda text: click.style(text, bold=True),
    Role.DIM: lambda text: click.style(text, dim=True),
    Role.GOOD: lambda text: click.style(text, fg="green"),
    Role.WARNING: lambda text: click.style(text, fg="yellow", bold=True),
    Role.CRITICAL: lambda text: click.style(text, fg="red", bold=True),
    Role.HOST: lambda text: click.style(text, fg="blue"),
    Role.MODELS: lambda text: click.style(text, fg="green"),
    Role.LOADING: lambda text: click.style(text, fg="yellow"),
    Role.ACTIVATIONS: lambda text: click.style(text, fg="magenta"),
    Role.CACHE: lambda text: click.style(text, fg="cyan"),
}


def line(*parts: str | Segment) -> Line:
    """Returns a line of these; texts are plain."""
    return tuple(Segment(part) if isinstance(part, str) else part for part in parts)


def plain(pieces: Iterable[Segment]) -> str:
    """Returns the text alone."""
    return "".join(piece.text for piece in pieces)


def ansi(pieces: Iterable[Segment]) -> str:
    """Returns the text with the terminal's codes for colour."""
    return "".join(_ANSI[piece.role](piece.text) for piece in pieces)


def dimmed(pieces: Iterable[Segment]) -> Line:
    """Returns the line as something that no longer holds."""
    return tuple(replace(piece, role=Role.DIM) for piece in pieces)


def columns(text: str) -> int:
    """Returns how many columns `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns_of(character) for character in text)


def _columns_of(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int) -> str:
    """Returns as much of `text` as `width` columns take; what is left out is three dots."""
    if columns(text) <= width:
        return text
    kept = text
    dots = "." * min(3, width)
    while columns(kept) > width - len(dots):
        kept = kept[:-1]
    return kept + dots


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Returns `text` in exactly `width` columns."""
    text = cut(text, width)
    space = " " * (width - columns(text))
    return space + text if right else text + space


def cut_line(pieces: Sequence[Segment], width: int) -> Line:
    """Returns as much of a line as `width` columns take."""
    kept: list[Segment] = []
    for piece in pieces:
        left = width - sum(columns(segment.text) for segment in kept)
        if columns(piece.text) > left:
            kept.append(replace(piece, text=cut(piece.text, max(0, left))))
            break
        kept.append(piece)
    return tuple(kept)


def wrapped(parts: Sequence[Line], width: int, *, indent: str = "", gap: str = "  ") -> list[Line]:
    """Returns the parts in as few lines as hold them whole, each indented but the first."""
    lines: list[list[Segment]] = []
    used = 0
    for part in parts:
        taken = columns(plain(part))
        if lines and used + len(gap) + taken <= width:
            lines[-1] += [Segment(gap), *part]
            used += len(gap) + taken
        else:
            lines.append([*([Segment(indent)] if lines and indent else []), *part])
            used = (len(indent) if len(lines) > 1 else 0) + taken
    return [cut_line(pieces, width) for pieces in lines]


def hung(pieces: Sequence[Segment], width: int, *, indent: int) -> list[Line]:
    """Returns a line in as many as it takes, broken between words; all but the first are indented."""
    whole = plain(pieces)
    if columns(whole) <= width:
        return [tuple(pieces)]
    first, *rest = textwrap.wrap(whole, max(width, indent + 10), subsequent_indent=" " * indent)
    return [cut_off(pieces, len(first)), *(line(Segment(part, pieces[-1].role)) for part in rest)]


def cut_off(pieces: Sequence[Segment], count: int) -> Line:
    """Returns the first `count` characters of a line."""
    kept: list[Segment] = []
    for piece in pieces:
        kept.append(replace(piece, text=piece.text[:count]))
        count -= len(kept[-1].text)
    return tuple(piece for piece in kept if piece.text)


def printable(text: str) -> str:
    """Returns text that came from elsewhere without what would move the cursor or worse."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)
