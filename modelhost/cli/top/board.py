"""What the live view shows, and how it changes with each answer and key. Has no clock of its own."""

from __future__ import annotations

from typing import Any

from modelhost.cli.segments import Line, Role, Segment, cut_line, dimmed
from modelhost.cli.top.events import EventLog
from modelhost.cli.top.link import Link
from modelhost.cli.top.models import SORTS, Row, Table, matching, ordered, table
from modelhost.cli.top.view import models_title, overview


class Board:
    """Figures, order, filter and events. Clock readings (`now_s`) are passed in. One thread, the view's."""

    def __init__(
        self,
        url: str,
        snapshot: dict[str, Any],
        now_s: float,
        *,
        interval_s: float,
        sort: str = "committed",
        is_reversed: bool = False,
    ) -> None:
        self.url, self.sort, self.is_reversed = url, sort, is_reversed
        self.search = ""
        """What is in the names of the models that are shown."""
        self.events = EventLog()
        self.link = Link.answered(now_s, interval_s)
        self._interval_s = interval_s
        self._snapshot = snapshot
        self.events.take(snapshot)

    def answered(self, snapshot: dict[str, Any], now_s: float) -> None:
        """Takes the figures of a look."""
        if not self.link.is_up:
            self.events.say(snapshot["at"], "the host answers again", Role.GOOD)
        self._snapshot, self.link = snapshot, Link.answered(now_s, self._interval_s)
        self.events.take(snapshot)

    def failed(self, error: str, now_s: float) -> None:
        """Takes it that a look came to nothing."""
        if self.link.is_up:
            self.events.say(self._host_time(now_s), error, Role.CRITICAL)
        self.link = self.link.failed(now_s, self._interval_s, error)

    def say(self, text: str, now_s: float, role: Role = Role.PLAIN) -> None:
        """Adds a line to the events, of what was done here."""
        self.events.say(self._host_time(now_s), text, role)

    def sort_by(self, sort: str) -> None:
        """Changes the order; the same one again turns it round."""
        self.is_reversed = sort == self.sort and not self.is_reversed
        self.sort = sort

    def sort_by_next(self) -> None:
        """Goes on to the next order."""
        names = list(SORTS)
        self.sort_by(names[(names.index(self.sort) + 1) % len(names)])

    def overview(self, width: int, now_s: float) -> list[Line]:
        """What is above the table; grey with its age where the host does not answer."""
        lines = overview(self.url, self._snapshot, width)
        if self.link.is_up:
            return lines
        lost = Segment(self.link.text(now_s), Role.CRITICAL)
        return [cut_line((lost,), width), *map(dimmed, lines)]

    def title(self, width: int) -> Line:
        """The line above the table."""
        title = models_title(
            self._snapshot,
            len(self._matching()),
            sort=self.sort,
            is_reversed=self.is_reversed,
            search=self.search,
        )
        return cut_line(title, width)

    def table(self, width: int, now_s: float) -> Table:
        """The models that are shown, in order."""
        models = ordered(self._matching(), self.sort, is_reversed=self.is_reversed)
        shown = table(models, width=width, now=self._host_time(now_s), sort=self.sort)
        if self.link.is_up:
            return shown
        return Table(shown.gap, dimmed(shown.heads), tuple(_grey(row) for row in shown.rows))

    def _matching(self) -> list[dict[str, Any]]:
        return matching(self._snapshot["models"], self.search)

    def _host_time(self, now_s: float) -> float:
        """The host's own clock, which its figures go by: Unix time."""
        at: float = self._snapshot["at"]
        return at + max(0.0, now_s - self.link.answered_s)


def _grey(row: Row) -> Row:
    return Row(row.name, row.version, row.is_pinned, row.is_loaded, dimmed(row.cells))
