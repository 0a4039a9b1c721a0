"""Replays a trace against a policy and adds up what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.policy.fleet import Fleet
from benchmarks.policy.rules import Rule
from benchmarks.policy.traces import Trace

#: Requests between two looks at the clock.
_PIECE: Final = 1_000_000


@dataclass(slots=True)
class Outcome:
    """What a replay came to."""

    requests: int = 0
    hits: int = 0
    """Requests for a model that was loaded."""
    cold_starts: int = 0
    """Requests that had to wait for a load."""
    refused: int = 0
    """Requests for a model that is larger than all there is."""
    moved_bytes: int = 0
    """What the loads read, together."""
    load_s: float = 0.0
    """What the loads took, together."""
    evictions: int = 0
    peak_bytes: int = 0
    took_s: float = 0.0
    """What the replay itself took of a core."""

    @property
    def hit_ratio(self) -> float:
        """Hits among all requests."""
        return self.hits / self.requests if self.requests else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All figures by name."""
        return {**asdict(self), "hit_ratio": round(self.hit_ratio, 6)}


def replay(
    fleet: Fleet,
    trace: Trace,
    rule: Rule,
    capacity_bytes: int,
    *,
    warm_up: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Serves the trace's requests one after another with at most `capacity_bytes` of models loaded.

    A model that is wanted and not loaded is loaded, and others leave for it as `rule` says, until it fits. The first
    `warm_up` requests fill the memory and are not counted. Only eviction is simulated: requests do not overlap, and no
    model is in use when it is to leave.
    """
    began = time.process_time()
    sizes: list[int] = fleet.size_bytes.tolist()
    loads: list[float] = fleet.load_s.tolist()
    use, load, leave = rule.use, rule.load, rule.leave
    outcome = Outcome()
    held_bytes = 0
    at = 0
    for begin in range(0, len(trace), _PIECE):
        for model in trace[begin : begin + _PIECE].tolist():
            if at == warm_up:
                outcome = Outcome()
            if use(model, at):
                outcome.hits += 1
            elif (size_bytes := sizes[model]) > capacity_bytes:
                outcome.refused += 1
            else:
                while held_bytes + size_bytes > capacity_bytes:
                    held_bytes -= sizes[leave()]
                    outcome.evictions += 1
                load(model, at)
                held_bytes += size_bytes
                if held_bytes > outcome.peak_bytes:
                    outcome.peak_bytes = held_bytes
                outcome.cold_starts += 1
                outcome.moved_bytes += size_bytes
                outcome.load_s += loads[model]
            at += 1
        progress(at)
    outcome.requests = outcome.hits + outcome.refused + outcome.cold_starts
    outcome.took_s = time.process_time() - began
    return outcome
