"""What became of requests, and what memory did meanwhile."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from benchmarks.soak.forms import Request, code, outputs
from benchmarks.soak.models import agrees
from benchmarks.soak.wire import Reply

_KEPT: Final = 20

#: How a request that is right may be refused, with something for the client to do; all else that is no answer is
#: a loss.
REFUSALS: Final = frozenset({"503 insufficient_memory", "503 overloaded", "503 timeout", "507 never_fits"})

OK: Final = "ok"
WRONG: Final = "wrong"
LOST: Final = "lost"
LEFT: Final = "left"
"""The client did not wait for the answer."""


class Asked(NamedTuple):
    """One request to a resident model. Seconds."""

    at: float
    """When it was sent, on the monotonic clock."""
    model: str
    latency_s: float
    late_s: float
    """How much later than it was due it was sent, though its connection was free: what the client itself lost."""
    outcome: str


class Span(NamedTuple):
    """One fault. Seconds on the monotonic clock."""

    fault: str
    began: float
    ended: float


@dataclass(slots=True)
class Book:
    """Counts outcomes. Any thread."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    """What must not be, in words; the first ones."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, outcome: str, text: str = "") -> None:
        """Counts one; `text` says more of a problem."""
        with self._lock:
            self.outcomes[outcome] += 1
            if text and len(self.problems) < _KEPT:
                self.problems.append(text)

    def snapshot(self) -> Counter[str]:
        """Returns the counts as they are."""
        with self._lock:
            return Counter(self.outcomes)


def judged(asked: Request, reply: Reply, variants: Sequence[int] = (0,)) -> tuple[str, str]:
    """Returns the outcome of a request that was answered, and what is wrong with it; `variants` may have answered."""
    if reply.status != 200:
        found = code(reply)
        if found in REFUSALS:
            return found, ""
        return f"{LOST}: {found}", f"{asked.case.name} ({asked.form}): {found}: {reply.body[:300]!r}"
    try:
        got = outputs(reply, asked)
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        return WRONG, f"{asked.case.name} ({asked.form}): {error}: {reply.body[:300]!r}"
    if any(agrees(asked.question.answers[variant], got) for variant in variants):
        return OK, ""
    return WRONG, f"{asked.case.name} ({asked.form}): got {str(got)[:300]}"
