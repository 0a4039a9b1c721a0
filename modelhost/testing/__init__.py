"""Tools that test, measure and prove how a process uses memory; they work without the host.

Imports nothing but the standard library, and each name only when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modelhost.lazy import importer

if TYPE_CHECKING:
    from modelhost.testing.allocation import Allocation, allocate
    from modelhost.testing.difference import MemoryDifference, Place, compare
    from modelhost.testing.leaks import Leak, LeakDetector, LeakReport
    from modelhost.testing.limit_report import LimitEvents, LimitReport
    from modelhost.testing.limiting import Limited, MemoryLimit, memory_limit
    from modelhost.testing.pressing import Pressure, pressure
    from modelhost.testing.recovery import RecoveryReport, cleanup, verify_recovered
    from modelhost.testing.snapshot import MemorySnapshot, take_snapshot

__all__ = [
    "Allocation",
    "Leak",
    "LeakDetector",
    "LeakReport",
    "LimitEvents",
    "LimitReport",
    "Limited",
    "MemoryDifference",
    "MemoryLimit",
    "MemorySnapshot",
    "Place",
    "Pressure",
    "RecoveryReport",
    "allocate",
    "cleanup",
    "compare",
    "memory_limit",
    "pressure",
    "take_snapshot",
    "verify_recovered",
]

#: Name to the module that has it.
_HOMES: Final = {
    **dict.fromkeys(("Allocation", "allocate"), "allocation"),
    **dict.fromkeys(("Pressure", "pressure"), "pressing"),
    **dict.fromkeys(("RecoveryReport", "cleanup", "verify_recovered"), "recovery"),
    **dict.fromkeys(("MemoryDifference", "Place", "compare"), "difference"),
    **dict.fromkeys(("Leak", "LeakDetector", "LeakReport"), "leaks"),
    **dict.fromkeys(("LimitEvents", "LimitReport"), "limit_report"),
    **dict.fromkeys(("Limited", "MemoryLimit", "memory_limit"), "limiting"),
    **dict.fromkeys(("MemorySnapshot", "take_snapshot"), "snapshot"),
}

__getattr__ = importer(__name__, _HOMES)
