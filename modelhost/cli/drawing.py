"""What terminals show while something goes on: a line or block that is drawn again, a small curve."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Final, TextIO

_STEPS = "▁▂▃▄▅▆▇█"
_PLAIN_STEPS = "_.:-=+*#"
#: Terminals that do not know their width say 0.
_UNKNOWN_COLUMNS: Final = 80


def sparkline(values: Sequence[float], *, width: int = 60, encoding: str | None = "utf-8") -> str:
    """Returns the values as a curve from 0 to their maximum, the maximum of each column; "" for none."""
    if not values:
        return ""
    steps = _STEPS
    try:
        _STEPS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        steps = _PLAIN_STEPS
    columns = min(width, len(values))
    edges = [column * len(values) // columns for column in range(columns + 1)]
    tops = [max(values[low:high]) for low, high in itertools.pairwise(edges)]
    highest = max(tops)
    return "".join(steps[round(top / highest * (len(steps) - 1))] if highest > 0 else steps[0] for top in tops)


class Redrawn:
    """Text on a terminal that replaces what stood there before; on anything else nothing is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lines = stream, 0
        self.is_shown = stream.isatty()

    def draw(self, text: str) -> None:
        """Shows `text` in place of what was shown; "" takes it away."""
        if not self.is_shown:
            return
        columns = os.get_terminal_size(self._stream.fileno()).columns or _UNKNOWN_COLUMNS
        # A line that wraps would be two, and the way up one too short.
        text = "\n".join(line[: columns - 1] for line in text.split("\n"))
        up = f"\x1b[{self._lines - 1}A" if self._lines > 1 else ""
        self._stream.write(f"\r{up}\x1b[J{text}")
        self._stream.flush()
        self._lines = text.count("\n") + 1 if text else 0
