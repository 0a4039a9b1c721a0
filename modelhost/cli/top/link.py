"""Whether the host answers, since when not, and when it is asked again. Pure; the clock's readings are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelhost.units import format_span

#: A host that has gone away is asked this often at last.
_LONGEST_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Link:
    """How it stands with the host, as of `at_s`; `error` is why the last look came to nothing, or None."""

    at_s: float
    answered_s: float
    next_s: float
    """When it is to be looked at next."""
    failures: int = 0
    """Looks in a row that came to nothing."""
    error: str | None = None

    @classmethod
    def answered(cls, now_s: float, interval_s: float) -> Link:
        """The host has answered."""
        return cls(now_s, now_s, now_s + interval_s)

    def failed(self, now_s: float, interval_s: float, error: str) -> Link:
        """It has not: the next look is twice as far off with each that fails."""
        wait_s = min(interval_s * 2 ** min(self.failures + 1, 16), max(_LONGEST_WAIT_S, interval_s))
        return Link(now_s, self.answered_s, now_s + wait_s, self.failures + 1, error)

    @property
    def is_up(self) -> bool:
        """Whether the last look was answered."""
        return self.error is None

    def text(self, now_s: float) -> str:
        """Returns what to say of a host that does not answer; why is among the events."""
        left_s = self.next_s - now_s
        again = f"asked again in {left_s:.0f} s" if left_s >= 0.5 else "asking again"
        return f"NO FIGURES for {format_span(max(0, now_s - self.answered_s))}, these are the last; {again}"
