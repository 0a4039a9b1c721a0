"""Plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns rows in aligned columns under their heads; a cell may have several lines."""
    cells = [[str(cell).split("\n") for cell in row] for row in ([*rows] or [[""] * len(head)])]
    widths = [
        max(len(head[column]), *(len(line) for row in cells for line in row[column])) for column in range(len(head))
    ]
    lines = ["  ".join(name.ljust(width) for name, width in zip(head, widths, strict=True)).rstrip()]
    lines.append("  ".join("-" * width for width in widths))
    for row in cells:
        for parts in zip_longest(*row, fillvalue=""):
            padded = (part.ljust(width) for part, width in zip(parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
