"""What adaptive thresholds go by and what they come to, as values: guards, readings, decisions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from modelhost.memory.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class Guards:
    """What holds whatever is learnt, in bytes."""

    fixed: Thresholds
    """As the settings make them; where nothing is learnt they are in force."""
    bodies_bytes: int
    """What bodies may take while they are decoded: kept free at all times."""
    runs_bytes: int
    """What the arena was set up with: runs never take more."""
    highest_warning_bytes: int | None = None
    """Set by the user: warning is never above it."""
    highest_critical_bytes: int | None = None
    """Set by the user: critical is never above it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One sample. Totals only ever grow; peaks are of the time since the last reading."""

    at_s: float
    usage_bytes: int
    resident_bytes: int = 0
    """What models hold."""
    kept_bytes: int = 0
    """What of it never leaves to make room."""
    largest_model_bytes: int = 0
    """The highest that any load went."""
    claimed_bytes: int = 0
    """Peak of what runs claimed together."""
    run_bytes: int = 0
    """Peak of a single run."""
    extra_bytes: int = 0
    """Peak of what a load took beyond what the model holds."""
    over_bytes: int = 0
    """What loads held beyond what was predicted."""
    runs: int = 0
    """Total."""
    load_s: float = 0.0
    """Total time of loads."""
    departures: int = 0
    """Total of models that left for want of room, and of requests refused for it."""
    refaulted_bytes: int | None = None
    """Total; None where the kernel does not say."""
    cache_bytes: int | None = None
    psi_full: float | None = None
    """Percent of 10 s in which all of this group waited for memory; None where only the machine's is known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """New thresholds, and why. `details` are the figures behind the reason."""

    thresholds: Thresholds
    rule: str
    """`room`, `cache`, `more`, or `undone`."""
    reason: str
    at_s: float
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON, without its moment, which is of no clock of others."""
        shown = {name: value for name, value in asdict(self).items() if name in ("rule", "reason", "details")}
        found = self.thresholds
        return {**shown, "warning_bytes": found.warning_bytes, "critical_bytes": found.critical_bytes}
