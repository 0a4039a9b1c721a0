"""What is not as it should be while the host serves on: shown by health, `GET /memory` and the metrics."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

log = logging.getLogger("modelhost")


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing, by a name that stays the same, and in words. `since` is Unix time in seconds."""

    name: str
    text: str
    since: float

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return asdict(self) | {"since": round(self.since, 3)}


class Conditions:
    """Those that hold now. Any thread.

    Each is logged when it begins and when it ends, however often it is noted meanwhile.
    """

    def __init__(self, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._held: dict[str, Condition] = {}

    def note(self, name: str, text: str) -> None:
        """Says that something holds; the text may change."""
        with self._lock:
            held = self._held.get(name)
            self._held[name] = Condition(name, text, self._wall_clock()) if held is None else replace(held, text=text)
        if held is None:
            log.warning("%s: %s", name, text)

    def clear(self, name: str) -> None:
        """Says that something does not hold, or no longer."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            log.info("%s is over, after %.0f s", name, max(0.0, self._wall_clock() - held.since))

    def holds(self, name: str) -> bool:
        """Says whether something holds."""
        return name in self._held

    def snapshot(self) -> tuple[Condition, ...]:
        """Returns all that hold, in the order in which they began."""
        with self._lock:
            return tuple(self._held.values())
