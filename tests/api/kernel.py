"""A kernel that has every figure of memory pressure."""

from __future__ import annotations

from dataclasses import replace

from served import MB

from modelhost.memory import PressureReading


class ScriptedKernel:
    """Counters that stand still until told otherwise: by how much more was read again at each reading."""

    def __init__(self) -> None:
        self.reading = PressureReading(
            refaulted_bytes=70 * MB,
            cache_bytes=100 * MB,
            major_faults=40,
            process_major_faults=30,
            psi_some_avg10=2.5,
            psi_full_avg10=1.25,
        )
        self.refaulted_bytes_each = 0

    def read(self) -> PressureReading:
        before = self.reading
        assert before.refaulted_bytes is not None
        self.reading = replace(before, refaulted_bytes=before.refaulted_bytes + self.refaulted_bytes_each)
        return before
