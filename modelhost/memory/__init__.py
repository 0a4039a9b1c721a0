"""Memory: limits, usage, thresholds, reservations, verified clean-up, the page cache. Usable without the host."""

from modelhost.memory.events import Level, MemoryEvent, Recovery
from modelhost.memory.ledger import Ledger, LedgerTotals, Reservation
from modelhost.memory.manager import (
    CleanupGoal,
    CleanupPlan,
    Measured,
    MemoryInfo,
    MemoryManager,
)
from modelhost.memory.page_cache import PageCache, Weights, WeightsInCache
from modelhost.memory.pressure import KernelPressure, PressureGauge, PressureInfo, PressureReading, PressureSource
from modelhost.memory.probe import MemoryProbe, Probe, Usage
from modelhost.memory.thresholds import Thresholds

__all__ = [
    "CleanupGoal",
    "CleanupPlan",
    "KernelPressure",
    "Ledger",
    "LedgerTotals",
    "Level",
    "Measured",
    "MemoryEvent",
    "MemoryInfo",
    "MemoryManager",
    "MemoryProbe",
    "PageCache",
    "PressureGauge",
    "PressureInfo",
    "PressureReading",
    "PressureSource",
    "Probe",
    "Recovery",
    "Reservation",
    "Thresholds",
    "Usage",
    "Weights",
    "WeightsInCache",
]
