"""Giving back what can be given back, and checking that memory returned to where it was."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, replace

from modelhost.memory import allocator
from modelhost.testing.difference import MemoryDifference, compare
from modelhost.testing.snapshot import MemorySnapshot, take_snapshot
from modelhost.units import format_bytes, parse_size


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """Whether memory came back, and where it sits where it did not; true where it did, prints as a sentence."""

    recovered: bool
    within_bytes: int
    waited_s: float
    difference: MemoryDifference

    def __bool__(self) -> bool:
        return self.recovered

    def __str__(self) -> str:
        over = self.difference.committed_bytes
        verdict = "recovered" if self.recovered else "did not recover"
        allowed = format_bytes(self.within_bytes)
        return f"memory {verdict}: {format_bytes(over)} above the baseline, {allowed} allowed\n{self.difference}"


def cleanup() -> MemoryDifference:
    """Collects garbage and gives the heap's free pages back; returns what that changed. Takes milliseconds."""
    before = take_snapshot(exact=True)
    _clean_up()
    return compare(before, take_snapshot(exact=True))


def _clean_up() -> None:
    gc.collect()
    allocator.trim()


def verify_recovered(baseline: MemorySnapshot, *, within: int | str = "1MB", wait_s: float = 0.0) -> RecoveryReport:
    """Cleans up and says whether committed memory is at most `within` above the baseline's.

    Tries again until `wait_s` have passed, for memory that other threads are about to give back.
    """
    within_bytes, started = parse_size(within), time.monotonic()
    while True:
        _clean_up()
        after = take_snapshot(exact=True)
        if baseline.objects is not None:  # counted then: it leaves free memory in the heap, which is nobody's
            after = replace(after, objects=take_snapshot(objects=True).objects)
        found = compare(baseline, after)
        waited_s = time.monotonic() - started
        recovered = found.committed_bytes <= within_bytes
        if recovered or waited_s >= wait_s:
            return RecoveryReport(recovered, within_bytes, waited_s, found)
        time.sleep(0.01)
