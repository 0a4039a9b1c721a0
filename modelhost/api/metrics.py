"""Figures for Prometheus: read from the host when asked, except what a request itself leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from modelhost import __version__
from modelhost.alerts import Alerts
from modelhost.alerts.alert import DROP_REASONS
from modelhost.api import families as f
from modelhost.api.access import Guard
from modelhost.api.exposition import Cumulated, Family, Page
from modelhost.api.model_metrics import add_models, look, used_last
from modelhost.config import ALERT_KINDS
from modelhost.errors import DeadlineExceeded, InsufficientMemory, NeverFits, Overloaded
from modelhost.histogram import Histogram
from modelhost.host import Host
from modelhost.memory import Weights
from modelhost.pool import ModelKey, PoolSnapshot
from modelhost.pool.snapshot import PoolCounters
from modelhost.pool.statistics import Statistics
from modelhost.pool.times import not_over

_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BOUNDS_NS: Final = tuple(round(bound_s * 1e9) for bound_s in _BOUNDS_S)

#: There from the start, at 0: who looks for an increase does not see one from nothing.
_REFUSAL_CODES: Final = tuple(error.code for error in (InsufficientMemory, NeverFits, Overloaded, DeadlineExceeded))
_EVENT_KINDS: Final = (
    "level",
    "recovery",
    "shortfall",
    "misprediction",
    "thrashing",
    "thrashing_over",
    "growth",
    "limit",
    "policy",
    "predicted",
    "memory_unreadable",
    "memory_readable",
    "worker_crash",
    "swap_failed",
    "policy",
    "predicted",
)

#: What the pool counts of all models together.
_POOL_COUNTS: Final[tuple[tuple[Family, Callable[[PoolCounters], float]], ...]] = (
    (f.COLD_STARTS, lambda counters: counters.cold_starts),
    (f.LOADS, lambda counters: counters.loads),
    (f.LOAD_SECONDS, lambda counters: counters.load_seconds),
    (f.LOAD_FAILURES, lambda counters: counters.load_failures),
    (f.OVERSHOOT, lambda counters: counters.overshoot_bytes),
    (f.UNDERSHOOT, lambda counters: counters.undershoot_bytes),
    (f.PREDICTED_LOADS, lambda counters: counters.predicted_loads),
    (f.PREDICTED_HITS, lambda counters: counters.predicted_hits),
    (f.PREDICTED_WASTED, lambda counters: counters.predicted_wasted),
    (f.EVICTIONS, lambda counters: counters.evictions),
    (f.UNLOADS, lambda counters: counters.unloads),
    (f.EXPIRIES, lambda counters: counters.expiries),
    (f.SWAPS, lambda counters: counters.swaps),
    (f.SWAP_FAILURES, lambda counters: counters.swap_failures),
    (f.PREPARATIONS, lambda counters: counters.preparations),
    (f.PREPARATION_FAILURES, lambda counters: counters.preparation_failures),
    (f.PREPARATION_SECONDS, lambda counters: counters.preparation_seconds),
    (f.WORKER_CRASHES, lambda counters: counters.worker_crashes),
    (f.LOADMODEL_FAILURE, lambda counters: counters.load_failures),
)


class Metrics:
    """Counts what requests come to, and writes the page. Event-loop thread."""

    def __init__(self, host: Host, guard: Guard | None, *, alerts_secret: bytes | None = None) -> None:
        self._host, self._guard = host, guard
        self.outcomes: dict[str, Histogram] = {}
        """Seconds of requests that failed, by outcome."""
        self.alerts = Alerts(host, self.failures, secret=alerts_secret)
        """What the page has of them; they look at what is counted here."""
        self.traces: Callable[[], tuple[int, int]] | None = None
        """Returns how many requests were traced and how many were left out; None where none are."""
        self.handed_over: Callable[[], int] | None = None
        """Returns how many requests another process of the host ran; None for a host that is one."""

    def observe(self, outcome: str, took_s: float) -> None:
        """Counts one inference request that failed; `outcome` is the error's code."""
        times = self.outcomes.get(outcome)
        if times is None:
            times = self.outcomes[outcome] = Histogram(_BOUNDS_S)
        times.add(took_s)

    def failures(self) -> dict[str, int]:
        """Returns how many requests failed, or were refused for want of a key, by outcome."""
        counts = {outcome: times.count for outcome, times in self.outcomes.items()}
        return counts if self._guard is None else counts | self._guard.refused

    async def render(self) -> bytes:
        """Returns the text format. Looks for the page cache's figures first, on a thread."""
        host = self._host
        at_most = host.settings.metrics.max_models
        weights = await host.memory.page_cache.read(host.pool.mapped_files())
        asked = host.pool.statistics.asked()
        used = await used_last(asked, host.pool.statistics.answered_at, at_most)
        page, snapshot = Page(), host.pool.snapshot()
        self._add_host(page, snapshot)
        _add_memory(page, host)
        _add_page_cache(page, host, weights.total)
        _add_pool(page, host, snapshot)
        _add_process(page)
        await asyncio.sleep(0)
        # What is said of models is of one moment; only the writing takes turns.
        shown = look(host.pool, snapshot.models, used, weights, at_most)
        loaded = {ModelKey(model.name, model.version) for model in snapshot.models}
        wanted = len(asked) + sum(not host.pool.statistics.was_asked(key) for key in loaded)
        page.one(f.MODELS_NOT_SHOWN, max(0, wanted - len(shown)))
        await add_models(page, shown)
        return page.render()

    def _add_host(self, page: Page, snapshot: PoolSnapshot) -> None:
        host = self._host
        page.by_label(f.INFO, {__version__: 1})
        page.one(f.READY, int(host.is_ready))
        page.by_label(f.CONDITION, {condition.name: 1 for condition in host.conditions.snapshot()})
        # By outcome and not by model: a host of ten thousand models would hold ten thousand of these.
        outcomes = {f'outcome="{outcome}"': Cumulated.of(times) for outcome, times in self.outcomes.items()}
        page.histograms(f.REQUEST_SECONDS, {'outcome="ok"': _answered(host.pool.statistics)} | outcomes)
        if self._guard is not None:
            refused = self._guard.refused
            page.by_label(f.ACCESS_REFUSED, {code: refused[code] for code in ("unauthenticated", "forbidden")})
        page.one(f.WAITING, snapshot.waiting)
        page.one(f.RUNS_IN_FLIGHT, snapshot.in_flight)
        _add_alerts(page, self.alerts)
        if self.traces is not None:
            for family, count in zip((f.TRACED, f.TRACES_DROPPED), self.traces(), strict=True):
                page.one(family, count)
        if self.handed_over is not None:
            page.one(f.HANDED_OVER, self.handed_over())
        page.by_label(f.REFUSALS, dict.fromkeys(_REFUSAL_CODES, 0) | snapshot.counters.refusals)


def _add_alerts(page: Page, alerts: Alerts) -> None:
    page.by_label(f.ALERTS, {kind: alerts.happened[kind] for kind in ALERT_KINDS})
    sender = alerts.sender
    if sender is not None:
        page.one(f.ALERTS_SENT, sender.sent)
        page.one(f.ALERTS_RETRIED, sender.retried)
        page.by_label(f.ALERTS_DROPPED, {reason: sender.dropped[reason] for reason in DROP_REASONS})
        page.one(f.ALERTS_WAITING, sender.waiting)


def _answered(statistics: Statistics) -> Cumulated:
    """Returns the times of requests that were answered, whose outcome is `ok`: they are counted in finer steps."""
    counts = (*not_over(statistics.answered, _BOUNDS_NS), sum(statistics.answered))
    return Cumulated(tuple(zip((*_BOUNDS_S, math.inf), counts, strict=True)), statistics.answered_ns * 1e-9)


def _add_memory(page: Page, host: Host) -> None:
    memory, gate = host.memory, host.pool.activations
    info, totals = memory.memory_info(), memory.ledger.totals
    for family, value in (
        (f.MEMORY_LIMIT, info.limit_bytes),
        (f.MEMORY_USAGE, info.usage_bytes),
        (f.MEMORY_BASELINE, info.baseline_bytes),
        (f.MEMORY_WARNING, info.warning_bytes),
        (f.MEMORY_CRITICAL, info.critical_bytes),
        (f.MEMORY_LOADING, totals.loading_bytes),
        (f.MEMORY_RESIDENT, totals.resident_bytes),
        (f.MEMORY_LEAVING, totals.leaving_bytes),
        (f.MEMORY_LEVEL, int(info.level)),
        (f.FIXED_WARNING, memory.fixed_thresholds.warning_bytes),
        (f.FIXED_CRITICAL, memory.fixed_thresholds.critical_bytes),
        *_forecast(host),
        (f.SHORTFALL, memory.shortfall_bytes_total),
        (f.ACTIVATION_CLAIMED, gate.claimed_bytes),
        (f.ACTIVATION_WAITING, gate.waiting),
        (f.ACTIVATION_REFUSALS, gate.refused_total),
        (f.ACTIVATION_MISSES, gate.missed_total),
        (f.CPU_MEMORY_TOTAL, info.limit_bytes),
        (f.CPU_MEMORY_USED, info.usage_bytes),
    ):
        page.one(family, value)
    page.by_label(f.MEMORY_EVENTS, dict.fromkeys(_EVENT_KINDS, 0) | memory.history.counts)


def _forecast(host: Host) -> tuple[tuple[Family, float], ...]:
    """Returns what alerts compare: figures also where nothing grows, 0 and infinity."""
    outlook = host.outlook
    if outlook is None:
        return ()
    growth, to_critical = outlook.forecast.growth, outlook.forecast.to_critical
    return (
        (f.MEMORY_GROWTH, 0.0 if growth is None else growth.bytes_per_s),
        (f.SECONDS_TO_CRITICAL, math.inf if to_critical is None else to_critical.expected_s),
    )


def _add_page_cache(page: Page, host: Host, total: Weights) -> None:
    """Adds what is known; rates are left to who reads the totals."""
    pressure = host.memory.pressure()
    reading = pressure.reading
    for family, value in (
        (f.CACHE_WEIGHTS, total.weights_bytes),
        (f.CACHE_CACHED, total.cached_bytes),
        (f.CACHE_THRASHING, int(pressure.is_thrashing)),
        (f.CACHE_REFAULTED, reading.refaulted_bytes),
        (f.PSI_SOME, reading.psi_some_avg10),
        (f.PSI_FULL, reading.psi_full_avg10),
        (f.MAJOR_FAULTS, reading.major_faults),
        (f.PROCESS_MAJOR_FAULTS, reading.process_major_faults),
    ):
        if value is not None:
            page.one(family, value)


def _add_pool(page: Page, host: Host, snapshot: PoolSnapshot) -> None:
    pool, counters = host.pool, snapshot.counters
    states = Counter(model.state for model in snapshot.models)
    known = len(pool.catalog.names)
    page.by_label(f.MODELS, states)
    page.one(f.MODELS_KNOWN, known)
    for family, count in _POOL_COUNTS:
        page.one(family, count(counters))
    page.one(f.WORKERS, pool.workers)
    page.one(f.WORKERS_BYTES, host.runtime.booked_bytes())
    accounts = pool.accounts
    for family, histogram in (
        (f.AGE_AT_EVICTION, accounts.eviction_ages),
        (f.CACHE_MISS, accounts.cold_waits),
        (f.LOADMODEL, accounts.load_times),
    ):
        page.histograms(family, {"": Cumulated.of(histogram)}, scale=1e3)
    thresholds, held_bytes = host.memory.thresholds, host.memory.ledger.totals.resident_bytes
    capacity_bytes = thresholds.critical_bytes - thresholds.baseline_bytes
    page.one(f.MESH_LOADED, len({model.name for model in snapshot.models if model.state == "ready"}))
    page.one(f.MESH_FAILING, pool.failing)
    page.one(f.MESH_MANAGED, known)
    page.one(f.MESH_INSTANCE_MODELS, states["ready"])
    page.one(f.MESH_LRU_AGE, pool.oldest_idle_s or 0.0)
    page.one(f.MESH_CAPACITY, capacity_bytes)
    page.one(f.MESH_USED, held_bytes)
    page.one(f.MESH_USED_BPS, round(10_000 * held_bytes / capacity_bytes) if capacity_bytes > 0 else 0)


def _add_process(page: Page) -> None:
    page.one(f.PROCESS_CPU, time.process_time())
    if sys.platform == "linux":
        page.one(f.PROCESS_START, _started_at())
        page.one(f.PROCESS_OPEN_FDS, len(os.listdir("/proc/self/fd")))
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        page.one(f.PROCESS_MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@functools.cache
def _started_at() -> float:
    """Returns when this process began, in Unix seconds. Linux."""
    with open("/proc/self/stat", "rb") as stat:
        ticks = int(stat.read().rpartition(b")")[2].split()[19])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return round(time.time() - age_s, 2)
