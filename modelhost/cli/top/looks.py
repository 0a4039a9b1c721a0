"""How meanings look in textual: colours for dark and light backgrounds, and lines as text of rich's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.text import Text

from modelhost.cli.segments import Line, Role, Segment

DARK: Final[dict[Role, str]] = {
    Role.PLAIN: "",
    Role.STRONG: "bold",
    Role.DIM: "#8b8b8b",
    Role.GOOD: "#7ed491",
    Role.WARNING: "bold #ffc14d",
    Role.CRITICAL: "bold #ff7a70",
    Role.HOST: "#dbe9ff on #23508f",
    Role.MODELS: "#e0f5e3 on #23693a",
    Role.LOADING: "#fff2cf on #7a5a00",
    Role.ACTIVATIONS: "#ffe0f7 on #7d2f6c",
    Role.CACHE: "#d6f3f7 on #1d5661",
}

LIGHT: Final[dict[Role, str]] = {
    Role.PLAIN: "",
    Role.STRONG: "bold",
    Role.DIM: "#767676",
    Role.GOOD: "#1b7a34",
    Role.WARNING: "bold #8f5a00",
    Role.CRITICAL: "bold #c2241a",
    Role.HOST: "#0b2f66 on #b5d0f7",
    Role.MODELS: "#0d4420 on #b3e3bf",
    Role.LOADING: "#5c4300 on #f6dd96",
    Role.ACTIVATIONS: "#5c1650 on #f2bfe6",
    Role.CACHE: "#0c444e on #b9e6ee",
}


def text(pieces: Iterable[Segment], looks: dict[Role, str]) -> Text:
    """Returns a line in these looks."""
    return Text.assemble(*((piece.text, looks[piece.role]) for piece in pieces))


def block(lines: Iterable[Line], looks: dict[Role, str]) -> Text:
    """Returns lines below each other; what is too long is cut off."""
    return Text("\n", no_wrap=True, overflow="crop").join(text(pieces, looks) for pieces in lines)
