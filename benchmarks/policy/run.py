"""`python -m benchmarks policy`: eviction policies side by side on one trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.policy import traces
from benchmarks.policy.fleet import Fleet, mixed_sizes
from benchmarks.policy.replay import replay
from benchmarks.policy.rules import RULES
from benchmarks.report import Report
from modelhost.units import format_bytes

#: A fifth of the trace fills the memory, and shows what is popular, before anything is counted.
_WARM_UP_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed, and against which policies."""

    trace: str | Path
    """One of `traces.MADE`, or a file: see `traces.read`."""
    models: int
    requests: int
    memory_bytes: int | None
    """Room for models; None: a fiftieth of what all of them hold."""
    policies: tuple[str, ...]
    seed: int


def run(report: Report, plan: Plan) -> None:
    """Replays the trace against each policy, and reports what it came to beside LRU and beside Belády."""
    fleet, trace = _made(plan)
    capacity_bytes = plan.memory_bytes or max(1, fleet.total_bytes // 50)
    report.progress(
        f"{len(trace):,} requests for {len(fleet):,} models of {format_bytes(fleet.total_bytes)}, "
        f"room for {format_bytes(capacity_bytes)}"
    )
    lru_bytes = 0
    for name in plan.policies:
        outcome = replay(
            fleet,
            trace,
            RULES[name](fleet, trace),
            capacity_bytes,
            warm_up=int(len(trace) * _WARM_UP_SHARE),
            progress=lambda done, name=name: report.progress(f"{name}: {done:,} of {len(trace):,}"),  # type: ignore[misc]
        )
        report.require(outcome.peak_bytes <= capacity_bytes, f"{name} held {outcome.peak_bytes} of {capacity_bytes}")
        if name == "lru":
            lru_bytes = outcome.moved_bytes
        report.add(
            "policy",
            trace=plan.trace.name if isinstance(plan.trace, Path) else plan.trace,
            policy=name,
            **outcome.as_dict(),
            moved_to_lru=round(outcome.moved_bytes / lru_bytes, 4) if lru_bytes else None,
        )


def table(report: Report) -> None:
    """Prints what the replays came to."""
    report.table(
        "policy",
        {
            "trace": "trace",
            "policy": "policy",
            "hit_ratio": "hit ratio",
            "cold_starts": "cold starts",
            "moved_bytes": "moved",
            "moved_to_lru": "x lru's",
            "load_s": "loading",
            "evictions": "evictions",
            "refused": "refused",
            "took_s": "replayed in",
        },
    )


def _made(plan: Plan) -> tuple[Fleet, traces.Trace]:
    if isinstance(plan.trace, Path):
        return traces.read(plan.trace)
    made = traces.MADE[plan.trace](plan.models, plan.requests, seed=plan.seed)
    return mixed_sizes(plan.models, seed=plan.seed + 1), made
