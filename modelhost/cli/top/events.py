"""What has happened, as the view has seen it: the host's events, what was asked of it here, and what was missed."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Final

from modelhost.cli.memory_text import event_line
from modelhost.cli.segments import Line, Role, Segment, hung, line, printable

_KEPT: Final = 200
#: Where texts begin, after the time of the day.
_INDENT: Final = 9


class EventLog:
    """Lines, oldest first, of which the last 200 are kept. One thread, the view's."""

    def __init__(self) -> None:
        self._lines: deque[Line] = deque(maxlen=_KEPT)
        self._last_id: int | None = None
        self._uptime_s = 0.0

    @property
    def lines(self) -> tuple[Line, ...]:
        """All that are kept."""
        return tuple(self._lines)

    def shown(self, width: int) -> list[Line]:
        """All that are kept, those that are longer than `width` in several."""
        return [part for pieces in self._lines for part in hung(pieces, width, indent=_INDENT)]

    def take(self, snapshot: dict[str, Any]) -> bool:
        """Adds what the host's events have that is new; returns whether there was anything."""
        uptime_s = snapshot["host"]["uptime_s"]
        if self._last_id is not None and uptime_s < self._uptime_s:
            self.say(snapshot["at"], "the host was started again", Role.WARNING)
            self._last_id = -1
        self._uptime_s = uptime_s
        last_id, events = self._last_id, snapshot["events"]
        fresh = [event for event in events if last_id is None or event["id"] > last_id]
        if not fresh:
            self._last_id = -1 if last_id is None else last_id
            return False
        missed = 0 if last_id is None or last_id < 0 else fresh[0]["id"] - last_id - 1
        if missed:
            self._lines.append(
                line(Segment(f"{'':{_INDENT}}{missed} events between two looks are not shown", Role.DIM))
            )
        self._lines.extend(event_line(event) for event in fresh)
        self._last_id = fresh[-1]["id"]
        return True

    def say(self, at: float, text: str, role: Role = Role.PLAIN) -> None:
        """Adds a line of the view's own; `at` is Unix time."""
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        self._lines.append(line(Segment(f"{clock} ", Role.DIM), Segment(printable(text), role)))
