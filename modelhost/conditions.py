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
        self._checks: dict[str, Callable[[], bool]] = {}

    def note(self, name: str, text: str, *, is_over: Callable[[], bool] | None = None) -> None:
        """Says that something holds; the text may change. `is_over` is asked by `look_again`, and may block."""
        with self._lock:
            if is_over is not None:
                self._checks[name] = is_over
            held = self._held.get(name)
            self._held[name] = Condition(name, text, self._wall_clock()) if held is None else replace(held, text=text)
        if held is None:
            log.warning("%s: %s", name, text)

    def clear(self, name: str) -> None:
        """Says that something does not hold, or no longer."""
        with self._lock:
            held = self._held.pop(name, None)
            self._checks.pop(name, None)
        if held is not None:
            log.info("%s is over, after %.0f s", name, max(0.0, self._wall_clock() - held.since))

    @property
    def has_checks(self) -> bool:
        """Whether `look_again` would ask anything."""
        return bool(self._checks)

    def look_again(self) -> None:
        """Asks whether what holds is over, where somebody can tell; blocks."""
        with self._lock:
            checks = list(self._checks.items())
        for name, is_over in checks:
            if is_over():
                self.clear(name)

    def holds(self, name: str) -> bool:
        """Says whether something holds."""
        return name in self._held

    def snapshot(self) -> tuple[Condition, ...]:
        """Returns all that hold, in the order in which they began."""
        with self._lock:
            return tuple(self._held.values())
