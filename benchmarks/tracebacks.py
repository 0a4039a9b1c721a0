"""Tracebacks in a host's log, in each form that it may have: ours in text and in JSON, the interpreter's own, and those
that a library has made the text of a message."""

from __future__ import annotations

import re
from typing import Final

#: Ours are frames without a heading, below a line of text or in the object's `exception`: see `modelhost.api.logs`.
_FRAMES: Final = re.compile(
    r'Traceback \(most recent call last\)|^  File "[^"\n]*", line \d+|"exception":"', re.MULTILINE
)
_SHOWN_CHARACTERS: Final = 2000


def first_traceback(log: str) -> str | None:
    """Returns the first traceback, from the line that tells of it, shortened; None where the log has none."""
    found = _FRAMES.search(log)
    if found is None:
        return None
    begin = log.rfind("\n", 0, max(0, found.start() - 1)) + 1
    return log[begin : begin + _SHOWN_CHARACTERS]
