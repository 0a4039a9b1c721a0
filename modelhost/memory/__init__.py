"""Memory: limits, usage, thresholds, reservations, verified clean-up, the page cache. Usable without the host.

What is named here is imported when it is first asked for: the allocator and the control groups serve
processes that know nothing of the manager and its settings (`modelhost.testing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelhost.lazy import importer

if TYPE_CHECKING:
    from modelhost.memory.events import Level, MemoryEvent, Recovery
    from modelhost.memory.ledger import Ledger, LedgerTotals, Reservation
    from modelhost.memory.manager import MemoryManager
    from modelhost.memory.page_cache import PageCache, Weights, WeightsInCache
    from modelhost.memory.pressure import KernelPressure, PressureGauge, PressureInfo, PressureReading, PressureSource
    from modelhost.memory.probe import MemoryProbe, Probe, Usage
    from modelhost.memory.thresholds import Thresholds
    from modelhost.memory.words import CleanupGoal, CleanupPlan, Measured, MemoryInfo

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

#: Name to the module that has it.
_HOMES: Final = {
    **dict.fromkeys(("Level", "MemoryEvent", "Recovery"), "events"),
    **dict.fromkeys(("Ledger", "LedgerTotals", "Reservation"), "ledger"),
    "MemoryManager": "manager",
    **dict.fromkeys(("CleanupGoal", "CleanupPlan", "Measured", "MemoryInfo"), "words"),
    **dict.fromkeys(("PageCache", "Weights", "WeightsInCache"), "page_cache"),
    **dict.fromkeys(
        ("KernelPressure", "PressureGauge", "PressureInfo", "PressureReading", "PressureSource"), "pressure"
    ),
    **dict.fromkeys(("MemoryProbe", "Probe", "Usage"), "probe"),
    "Thresholds": "thresholds",
}

__getattr__ = importer(__name__, _HOMES)
