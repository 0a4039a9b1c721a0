"""`python -m benchmarks hosts`: placements of many models on several hosts, beside one host with the memory of all."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.policy import traces
from benchmarks.policy.cluster import Cluster, Sums, Terms
from benchmarks.policy.fleet import Fleet, mixed_sizes
from benchmarks.policy.placement import PLACEMENTS, One
from benchmarks.policy.rules import RULES
from benchmarks.report import Report
from modelhost.units import format_bytes

#: A trace is served in so many stretches; how even a placement is, is looked at after each.
_STRETCHES: Final = 100
#: The first fill the memory, and show what is popular, before anything is counted.
_WARM_UP: Final = 20
#: After this one a host leaves, or joins, in a copy of the hosts that serves the next ones too.
_EVENT: Final = 60
_AFTER: Final = 10

YARDSTICK: Final = "one host"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is served, by what."""

    trace: str
    models: int
    requests: int
    hosts: int
    budget_bytes: int | None
    """Room for models on each host; None: all hosts together have a tenth of what all models hold."""
    placements: tuple[str, ...]
    policy: str
    bound: float
    window: int
    seed: int


def run(report: Report, plan: Plan) -> None:
    """Serves the trace by each placement, and reports what it came to beside one host with the memory of all."""
    trace = traces.MADE[plan.trace](plan.models, plan.requests, seed=plan.seed)
    fleet = mixed_sizes(plan.models, seed=plan.seed + 1)
    budget_bytes = plan.budget_bytes or max(1, fleet.total_bytes // 10 // plan.hosts)
    report.progress(
        f"{plan.trace}: {len(trace):,} requests for {len(fleet):,} models of {format_bytes(fleet.total_bytes)}; "
        f"{plan.hosts} hosts of {format_bytes(budget_bytes)}"
    )
    one_bytes = 0
    for name in (YARDSTICK, *plan.placements):
        began = time.process_time()
        cluster = _cluster(plan, fleet, budget_bytes, name)
        steady = _Served(cluster, trace, report, name)
        steady.to(_WARM_UP)
        steady.evenness.clear()
        counted_from = steady.sums
        at_event = steady.to(_EVENT)
        before = copy.deepcopy(cluster)
        after = steady.to(_EVENT + _AFTER).since(at_event)
        found = steady.to(_STRETCHES).since(counted_from)
        one_bytes = one_bytes or int(found.moved_bytes.sum())
        report.require(min(cluster.free_bytes) >= 0, f"{name}: more is held than there is room for")
        report.add(
            "hosts",
            trace=plan.trace,
            placement=name,
            budget_bytes=budget_bytes,
            **_figures(found, cluster),
            moved_to_one=round(int(found.moved_bytes.sum()) / one_bytes, 4) if one_bytes else None,
            **_evenness(steady.evenness),
            took_s=round(time.process_time() - began, 3),
        )
        _events(report, plan, trace, before, name, after)


def tables(report: Report) -> None:
    """Prints what it came to."""
    report.table(
        "hosts",
        {
            "trace": "trace",
            "placement": "placement",
            "hit_ratio": "hit ratio",
            "cold_starts": "cold starts",
            "moved_bytes": "loaded",
            "moved_to_one": "x one host's",
            "load_uneven": "load max/mean",
            "load_uneven_worst": "worst",
            "held_uneven": "held max/mean",
            "moved_uneven": "loaded max/mean",
            "copies": "copies",
            "took_s": "served in",
        },
    )
    report.table(
        "event",
        {
            "trace": "trace",
            "placement": "placement",
            "event": "a host",
            "rehomed": "other home",
            "rehomed_share": "share",
            "lost_bytes": "held by it",
            "more_cold_starts": "more cold starts",
            "more_bytes": "more loaded",
            "beyond_one_bytes": "beyond one host's",
            "load_uneven_worst": "load max/mean",
            "moved_uneven": "loaded max/mean",
        },
    )


def uneven(values: Any) -> float:
    """Returns the most of any by the mean of all; 1 where there is nothing."""
    mean = float(np.mean(values))
    return float(np.max(values)) / mean if mean else 1.0


# --- inside --------------------------------------------------------------------------------------


class _Served:
    """How far a cluster is with a trace, and how evenly its hosts were used on the way."""

    def __init__(self, cluster: Cluster, trace: traces.Trace, report: Report, name: str, begin: int = 0) -> None:
        self._cluster, self._trace, self._report, self._name = cluster, trace, report, name
        self._stretch = begin
        self.sums = cluster.sums()
        self.evenness: list[tuple[float, float]] = []
        """After each stretch: of the last window's requests, and of the bytes held."""

    def to(self, end: int) -> Sums:
        """Serves up to the end of a stretch; returns all that has happened."""
        for stretch in range(self._stretch, end):
            first, last = (len(self._trace) * number // _STRETCHES for number in (stretch, stretch + 1))
            self._cluster.serve(self._trace[first:last].tolist())
            loads = [self._cluster.loads[host] for host in self._cluster.living]
            self.evenness.append((uneven(loads), uneven(self._cluster.held_bytes)))
            if not (stretch + 1) % 10:
                self._report.progress(f"{self._name}: {last:,} of {len(self._trace):,}")
        self._stretch = end
        self.sums = self._cluster.sums()
        return self.sums


def _cluster(plan: Plan, fleet: Fleet, budget_bytes: int, name: str) -> Cluster:
    terms = Terms(plan.hosts, budget_bytes, plan.bound, plan.window)
    if name == YARDSTICK:
        terms = Terms(1, budget_bytes * plan.hosts, 0, plan.window * plan.hosts)
    rule = RULES[plan.policy]
    nothing = np.empty(0, np.int32)  # the rules for hosts do not know what comes
    return Cluster(fleet, terms, lambda: rule(fleet, nothing), One if name == YARDSTICK else PLACEMENTS[name])


def _events(report: Report, plan: Plan, trace: traces.Trace, before: Cluster, name: str, steady: Sums) -> None:
    """Has a host leave, and has one join, in copies; reports what was loaded beyond what `steady` has."""
    for event in ("leaves", "joins"):
        cluster = copy.deepcopy(before)
        budget_bytes = before.terms.budget_bytes
        lost_bytes, rehomed = 0, None
        if name == YARDSTICK:
            share_bytes = budget_bytes // plan.hosts
            cluster.resize(share_bytes if event == "joins" else -share_bytes)
        elif event == "joins":
            rehomed = cluster.join()
        else:
            host = plan.hosts // 2
            lost_bytes = int(cluster.held_bytes[host])
            rehomed = cluster.leave(host)
        served = _Served(cluster, trace, report, f"{name}, a host {event}", _EVENT)
        at_event = served.sums
        found = served.to(_EVENT + _AFTER).since(at_event)
        more_bytes = int(found.moved_bytes.sum() - steady.moved_bytes.sum())
        ones = [row for row in report.rows if row["kind"] == "event" and row["placement"] == YARDSTICK]
        one_bytes = next((row["more_bytes"] for row in reversed(ones) if row["event"] == event), None)
        report.add(
            "event",
            trace=plan.trace,
            placement=name,
            event=event,
            requests=int(found.requests.sum()),
            rehomed=rehomed,
            rehomed_share=None if rehomed is None else round(rehomed / plan.models, 5),
            lost_bytes=lost_bytes,
            more_cold_starts=int(found.cold_starts.sum() - steady.cold_starts.sum()),
            more_bytes=more_bytes,
            beyond_one_bytes=None if one_bytes is None else more_bytes - one_bytes,
            moved_uneven=round(uneven(found.moved_bytes[cluster.living]), 4),
            **_evenness(served.evenness),
        )


def _figures(found: Sums, cluster: Cluster) -> dict[str, Any]:
    requests, cold_starts = int(found.requests.sum()), int(found.cold_starts.sum())
    hits = requests - cold_starts - found.refused
    return {
        "requests": requests,
        "hits": hits,
        "hit_ratio": round(hits / requests, 6),
        "cold_starts": cold_starts,
        "refused": found.refused,
        "evictions": found.evictions,
        "moved_bytes": int(found.moved_bytes.sum()),
        "moved_uneven": round(uneven(found.moved_bytes), 4),
        "copies": round(int(cluster.held_bytes.sum()) / max(1, cluster.distinct_bytes), 4),
    }


def _evenness(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    loads, held = zip(*found, strict=True)
    return {
        "load_uneven": round(float(np.mean(loads)), 4),
        "load_uneven_worst": round(max(loads), 4),
        "held_uneven": round(float(np.mean(held)), 4),
    }
