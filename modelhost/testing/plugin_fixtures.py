"""What the fixtures of the pytest plugin give."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from modelhost.memory.probe import Probe
from modelhost.testing.difference import MemoryDifference, compare
from modelhost.testing.pressing import Pressure, pressure
from modelhost.testing.recovery import RecoveryReport, cleanup, verify_recovered
from modelhost.testing.snapshot import MemorySnapshot, take_snapshot


class MemoryOfTest:
    """The fixture `memory_snapshot`: memory from the test's beginning, or the last `take`, until now. One thread."""

    def __init__(self, *, objects: bool = True) -> None:
        self._objects = objects
        self.before = self.take()

    def take(self) -> MemorySnapshot:
        """Cleans up and returns the figures of now, with which what comes is compared from then on."""
        cleanup()
        self.before = self._now()
        return self.before

    def _now(self) -> MemorySnapshot:
        return take_snapshot(exact=True, objects=self._objects)

    def compare(self) -> MemoryDifference:
        """Returns where growth sits since the beginning."""
        return compare(self._beginning(), self._now())

    def verify_recovered(self, *, within: int | str = "1MB", wait_s: float = 0.0) -> RecoveryReport:
        """Cleans up, and returns whether memory is back where it was at the beginning, `within` that much."""
        return verify_recovered(self._beginning(), within=within, wait_s=wait_s)

    def _beginning(self) -> MemorySnapshot:
        """A test with a memory limit runs in a fork, which began with the memory of this fixture's process."""
        if self.before.pid == os.getpid():
            return self.before
        return replace(self.before, pid=os.getpid(), group=None)  # it has a group of its own


class MemoryPressure:
    """The fixture `memory_pressure`. One thread."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._pid, self._committed_bytes = os.getpid(), Probe().committed_bytes()

    def __call__(self, level: int | str, **options: Any) -> Pressure:
        """Presses at once, as `with pressure(level, **options)` does."""
        if os.getpid() != self._pid:  # a fork with a limit, whose group is not charged for what it began with
            options = {"inherited_bytes": self._committed_bytes, **options}
        return self._stack.enter_context(pressure(level, **options))
