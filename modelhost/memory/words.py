"""What the memory manager tells and is told: a look at memory, clean-ups, what a change was measured to hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from modelhost.memory.events import REUSABLE_SHARE, Level
from modelhost.memory.probe import LimitSource


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """One look at memory. All in bytes on the scale of the limit."""

    limit_bytes: int
    limit_source: LimitSource
    baseline_bytes: int
    usage_bytes: int
    reserved_bytes: int
    warning_bytes: int
    critical_bytes: int
    min_free_bytes: int
    level: Level
    raw: dict[str, int] = field(default_factory=dict)
    heap_free_bytes: int = 0
    """Of usage: what was free in the process's heap, between blocks in use, after the last change."""

    @property
    def reusable_bytes(self) -> int:
        """What of the free heap loads of small blocks may count on: they take it before usage grows."""
        return int(self.heap_free_bytes * REUSABLE_SHARE)

    @property
    def is_warning(self) -> bool:
        """Whether idle models should leave (true at critical too)."""
        return self.level >= Level.WARNING

    @property
    def is_critical(self) -> bool:
        """Whether usage reached critical: all that is idle leaves, and loads are refused."""
        return self.level >= Level.CRITICAL

    @property
    def available_bytes(self) -> int:
        """What a load may still take: critical less usage and what others have reserved."""
        return max(0, self.critical_bytes - self.usage_bytes - self.reserved_bytes)


@dataclass(frozen=True, slots=True)
class CleanupGoal:
    """What a clean-up round is for: `excess_bytes` should come back; `everything` asks for all that can."""

    excess_bytes: int
    everything: bool


@dataclass(frozen=True, slots=True)
class CleanupPlan:
    """Victims that were chosen and are already out of reach for new work.

    `act` frees them, on the memory thread; `expected_bytes` is what they were recorded to hold.
    """

    victims: tuple[str, ...]
    expected_bytes: int
    act: Callable[[], None]
    done: Callable[[], None] = lambda: None
    """Called on the event-loop thread when `act` has returned or failed."""


class Cleaner(Protocol):
    """Whoever holds memory that it can give back. Decides at once, acts through the plan."""

    def __call__(self, goal: CleanupGoal) -> CleanupPlan | None:
        """Returns what will be freed, or None where nothing can be."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a change holds: committed memory, and what it took of the free heap, which was committed before.

    `quiet`: nothing else was running meanwhile.
    """

    delta_bytes: int
    quiet: bool
