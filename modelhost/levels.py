"""Where the memory levels of a limit stand by default: the figures, and the arithmetic on them. Pure."""

from __future__ import annotations

from typing import Final

#: Share of the limit that loads leave to runs.
ACTIVATION_SHARE: Final = 1 / 4
#: What is never given to models.
MIN_FREE_BYTES: Final = 30 << 20
WARNING_GAP_BYTES: Final = 20 << 20
_WARNING_GAP_SHARE: Final = 0.05


def default_critical_bytes(limit_bytes: int, *, min_free_bytes: int = MIN_FREE_BYTES) -> int:
    """Returns the limit less the room for runs; 192 MB of 256 MB."""
    return max(0, limit_bytes - max(int(limit_bytes * ACTIVATION_SHARE), min_free_bytes))


def default_warning_bytes(limit_bytes: int, *, critical_bytes: int, baseline_bytes: int = 0) -> int:
    """Returns where idle models begin to leave, `baseline_bytes` being held without any; 172 MB of 256 MB."""
    gap = max(WARNING_GAP_BYTES, int(limit_bytes * _WARNING_GAP_SHARE))
    # In a limit too small for the gap, the middle between baseline and critical serves as warning.
    return max(critical_bytes - gap, (baseline_bytes + critical_bytes) // 2)
