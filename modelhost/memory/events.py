"""What happened to memory, as values: levels, recoveries, and the bounded history of both."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

#: A recovery is complete when this share of what the victims were recorded to hold came back …
RECOVERED_SHARE: Final = 0.9
#: … give or take this much: other threads allocate too, and the first load of a process leaves some
#: 2 MB of kernels' tables behind that no later load needs again.
NOISE_BYTES: Final = 2 << 20

#: What counts of memory that is free inside the heap. Measured with sessions of 2 to 10 layers: after some
#: had left, loads of the same and of other shapes took three quarters of it before usage grew by half a
#: megabyte; of the rest, not all holes fit what comes.
REUSABLE_SHARE: Final = 3 / 4


class Level(IntEnum):
    """How near usage is to the limit."""

    NORMAL = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def label(self) -> str:
        """The name on the wire and in logs."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Recovery:
    """One verified clean-up round. Bytes are committed memory of the process."""

    cause: str
    victims: tuple[str, ...]
    before_bytes: int
    after_bytes: int
    expected_bytes: int
    duration_s: float
    trimmed: bool
    """Whether the first reading fell short and the heaps were trimmed before the second."""
    tolerance_bytes: int = NOISE_BYTES
    """What may be missing without being a shortfall: noise, and what runs beside it may have taken."""
    kept_free_bytes: int = 0
    """What the victims gave back to the heap and the heap kept, between blocks in use, for the next loads."""

    @property
    def freed_bytes(self) -> int:
        """What came back; negative where other work took more in the meantime."""
        return self.before_bytes - self.after_bytes

    @property
    def unreturned_bytes(self) -> int:
        """What was expected and did not come back to the kernel, 0 within the tolerance."""
        return self._missing_bytes(self.freed_bytes)

    @property
    def shortfall_bytes(self) -> int:
        """What was expected and is free nowhere, neither come back nor in the heap; 0 within the tolerance."""
        return self._missing_bytes(self.freed_bytes + self.kept_free_bytes)

    def _missing_bytes(self, found_bytes: int) -> int:
        if found_bytes >= min(self.expected_bytes * RECOVERED_SHARE, self.expected_bytes - self.tolerance_bytes):
            return 0
        return self.expected_bytes - found_bytes

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON and logs."""
        return {
            "victims": list(self.victims),
            "before_bytes": self.before_bytes,
            "after_bytes": self.after_bytes,
            "freed_bytes": self.freed_bytes,
            "expected_bytes": self.expected_bytes,
            "kept_free_bytes": self.kept_free_bytes,
            "shortfall_bytes": self.shortfall_bytes,
            "trimmed": self.trimmed,
            "duration_s": round(self.duration_s, 6),
        }


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """One entry of the history. `at` is Unix time in seconds."""

    at: float
    kind: str
    level: Level
    usage_bytes: int
    cause: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    """Counted from 1 in one history: who has seen one has seen all up to it."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the event for JSON."""
        return {
            "id": self.id,
            "at": round(self.at, 3),
            "kind": self.kind,
            "level": self.level.label,
            "usage_bytes": self.usage_bytes,
            "cause": self.cause,
            **self.details,
        }


class History:
    """The last events, oldest first, and how many there were of each kind. Any thread adds: figures that cannot be
    read are found out on the memory thread too."""

    def __init__(
        self, size: int, *, wall_clock: Callable[[], float] = time.time, first_id: int = 1, id_step: int = 1
    ) -> None:
        """Ids begin with `first_id` and go up by `id_step`: those of a host's several processes are all different."""
        self._events: deque[MemoryEvent] = deque(maxlen=size)
        self._wall_clock, self._next_id, self._id_step = wall_clock, first_id, id_step
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {}
        self.last_id = 0
        """That of the newest event; 0 before the first."""

    def add(
        self, kind: str, *, level: Level, usage_bytes: int, cause: str, details: Mapping[str, Any] | None = None
    ) -> MemoryEvent:
        """Appends an event and returns it; the oldest is forgotten when the history is full."""
        with self._lock:
            self.last_id, self._next_id = self._next_id, self._next_id + self._id_step
            event = MemoryEvent(self._wall_clock(), kind, level, usage_bytes, cause, details or {}, self.last_id)
            self._events.append(event)
            self.counts[kind] = self.counts.get(kind, 0) + 1
        return event

    def snapshot(self) -> tuple[MemoryEvent, ...]:
        """Returns the events that are kept."""
        return tuple(self._events)

    def after(self, seen_id: int) -> tuple[MemoryEvent, ...]:
        """Returns the events that are kept and came after the one with that id."""
        return tuple(event for event in self.snapshot() if event.id > seen_id)


def next_level(current: Level, usage_bytes: int, *, warning: int, critical: int, hysteresis: int) -> Level:
    """Returns the level that `usage_bytes` means: entered at its threshold, left `hysteresis` below it."""
    if usage_bytes >= critical or (current == Level.CRITICAL and usage_bytes >= critical - hysteresis):
        return Level.CRITICAL
    if usage_bytes >= warning or (current >= Level.WARNING and usage_bytes >= warning - hysteresis):
        return Level.WARNING
    return Level.NORMAL


def excess_bytes(usage_bytes: int, *, reusable_bytes: int, warning: int, hysteresis: int) -> int:
    """Returns how much has to come back for the level to end, in bytes; 0 where no model has to leave for it.

    Usage that is above warning only for what is free inside the heap is no reason to evict: what a victim
    holds would be kept there too, and the next load takes from it. As loads fill up to warning then, the
    way to where the level ends is no excess either.
    """
    needed_bytes = usage_bytes - reusable_bytes
    if reusable_bytes and needed_bytes < warning - max(0, hysteresis - reusable_bytes):
        return 0
    return max(0, needed_bytes - (warning - hysteresis) + 1)
