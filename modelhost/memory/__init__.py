"""Memory: limits, usage, thresholds, reservations, verified clean-up. Usable without the host."""

from modelhost.memory.events import Level, MemoryEvent, Recovery
from modelhost.memory.ledger import Ledger, LedgerTotals, Reservation
from modelhost.memory.manager import (
    CleanupGoal,
    CleanupPlan,
    Measured,
    MemoryInfo,
    MemoryManager,
)
from modelhost.memory.probe import MemoryProbe, Probe, Usage
from modelhost.memory.thresholds import Thresholds

__all__ = [
    "CleanupGoal",
    "CleanupPlan",
    "Ledger",
    "LedgerTotals",
    "Level",
    "Measured",
    "MemoryEvent",
    "MemoryInfo",
    "MemoryManager",
    "MemoryProbe",
    "Probe",
    "Recovery",
    "Reservation",
    "Thresholds",
    "Usage",
]
