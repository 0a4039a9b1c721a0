"""`python -m benchmarks prediction`: cold starts with and without loading ahead, by the host's own predictor.

Requests have moments, and idle models leave after a while (`pool.idle_ttl`) or when room is needed. Once a second the
predictor is asked as a host asks it: for one model, only where there is room, and not where it was wrong a moment ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.policy import traces
from benchmarks.report import Report
from modelhost.pool.key import ModelKey
from modelhost.pool.prediction import Predictor, Trust
from modelhost.pool.predictive import GUESSES, QUIET_RUNS, WASTED_AFTER_S

Timed = list[tuple[float, int]]
"""Moments in seconds, and models."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is replayed."""

    models: int
    requests: int
    a_second: float
    room: int
    """Models that fit at once."""
    idle_ttl_s: float
    seed: int


@dataclass(slots=True)
class Outcome:
    """What a replay came to."""

    requests: int = 0
    cold_starts: int = 0
    evictions: int = 0
    """Of models that were not loaded ahead."""
    expiries: int = 0
    predicted: int = 0
    hits: int = 0
    wasted: int = 0


def replay(trace: Timed, plan: Plan, *, predictive: bool) -> Outcome:
    """Serves the trace; a request in which somebody has to leave for a guess does not exist."""
    outcome, predictor, trust = Outcome(), Predictor(), Trust()
    loaded: OrderedDict[int, float] = OrderedDict()  # who was not used for longest first
    guesses: dict[int, float] = {}
    keys = [ModelKey(str(model), "1") for model in range(1 + max(model for _, model in trace))]
    second, runs, used = trace[0][0], 0, set[int]()

    def judge(model: int, now: float, *, is_hit: bool) -> None:
        del guesses[model]
        if is_hit:
            outcome.hits += 1
            trust.hit()
        else:
            outcome.wasted += 1
            trust.wasted(now)

    def leave(model: int, now: float) -> None:
        del loaded[model]
        if model in guesses:
            judge(model, now, is_hit=False)

    def tick(now: float) -> None:
        for model in used:
            predictor.note(keys[model], now)
        while loaded and now - next(iter(loaded.values())) >= plan.idle_ttl_s:
            outcome.expiries += 1
            leave(next(iter(loaded)), now)
        for model in [model for model, since in guesses.items() if now - since >= WASTED_AFTER_S]:
            judge(model, now, is_hit=False)
        if len(guesses) < GUESSES and runs <= QUIET_RUNS and len(loaded) < plan.room and trust.is_given(now):
            found = predictor.next(now, lambda key: int(key.name) not in loaded)
            if found is not None:
                model = int(found.key.name)
                outcome.predicted += 1
                guesses[model] = loaded[model] = now

    for at_s, model in trace:
        while predictive and at_s - second >= 1:
            second += 1
            tick(second)
            runs, used = 0, set()
        if not predictive:
            while loaded and at_s - next(iter(loaded.values())) >= plan.idle_ttl_s:
                outcome.expiries += 1
                leave(next(iter(loaded)), at_s)
        outcome.requests += 1
        if model not in loaded:
            outcome.cold_starts += 1
            if len(loaded) >= plan.room:
                outcome.evictions += not guesses
                leave(next(iter(guesses or loaded)), at_s)  # guesses leave first
        elif model in guesses:
            judge(model, at_s, is_hit=True)
        loaded[model] = at_s
        loaded.move_to_end(model)
        runs += 1
        used.add(model)
    return outcome


# --- traces with moments ------------------------------------------------------------------------------


def _spread(made: Callable[..., traces.Trace]) -> Callable[[Plan], Timed]:
    """Gives a trace's requests moments: at random, at the plan's rate."""

    def timed(plan: Plan) -> Timed:
        trace = made(plan.models, plan.requests, seed=plan.seed)
        gaps = np.random.default_rng(plan.seed).exponential(1 / plan.a_second, len(trace))
        return list(zip(np.cumsum(gaps).tolist(), trace.tolist(), strict=True))

    return timed


def _periodic(plan: Plan) -> Timed:
    """Jobs: each model every 2 to 30 minutes, a few seconds early or late, with three requests at a time."""
    rng = np.random.default_rng(plan.seed)
    span_s = plan.requests / plan.a_second
    periods = rng.uniform(120, 1800, plan.models)
    found: Timed = []
    for model, period_s in enumerate(periods.tolist()):
        moments = np.arange(rng.uniform(0, period_s), span_s, period_s)
        for at_s in (moments + rng.normal(0, 1.5, len(moments))).tolist():
            found += [(at_s + after_s, model) for after_s in (0.0, 0.3, 0.6)]
    return sorted(found)[: plan.requests]


#: By the name that the command line has for them.
TRACES: Final[Mapping[str, Callable[[Plan], Timed]]] = {
    "zipf": _spread(traces.zipf),
    "diurnal": _spread(traces.diurnal),
    "bursts": _spread(traces.bursts),
    "periodic": _periodic,
}


def run(report: Report, plan: Plan, names: tuple[str, ...]) -> None:
    """Replays each trace with and without, and reports both."""
    for name in names:
        trace = TRACES[name](plan)
        report.progress(f"{name}: {len(trace):,} requests in {trace[-1][0] / 3600:.1f} h")
        without, ahead = (replay(trace, plan, predictive=predictive) for predictive in (False, True))
        report.add("prediction", trace=name, **_row(without, ahead))
        report.require(
            ahead.cold_starts <= without.cold_starts * 1.01,
            f"{name}: {ahead.cold_starts} cold starts with prediction, {without.cold_starts} without",
        )
    report.table(
        "prediction",
        {
            "trace": "trace",
            "requests": "requests",
            "cold_without": "cold starts",
            "cold_starts": "with prediction",
            "cold_ratio": "ratio",
            "predicted": "loaded ahead",
            "hits": "hits",
            "wasted": "wasted",
            "evictions_without": "evictions",
            "evictions": "with prediction",
        },
    )


def _row(without: Outcome, ahead: Outcome) -> dict[str, Any]:
    return {
        **asdict(ahead),
        "cold_without": without.cold_starts,
        "evictions_without": without.evictions,
        "cold_ratio": round(ahead.cold_starts / max(1, without.cold_starts), 3),
    }
