"""Figures for Prometheus: read from snapshots when asked, except what a request itself leaves behind."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from modelhost.api.access import Guard
from modelhost.host import Host
from modelhost.memory import Weights, WeightsInCache
from modelhost.pool import ModelKey
from modelhost.pool.times import not_over

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_NANOSECONDS = tuple(round(bound_s * 1e9) for bound_s in _SECONDS)


class Metrics:
    """One registry for one host; nothing is global, so that several hosts can live in one process."""

    def __init__(self, host: Host, guard: Guard | None) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._times: dict[str, Times] = {}
        self._collector = _HostCollector(host, self._times, guard)
        self._registry.register(self._collector)

    def observe(self, outcome: str, took_s: float) -> None:
        """Counts one inference request that failed; `outcome` is the error's code."""
        times = self._times.get(outcome)
        if times is None:
            times = self._times[outcome] = Times()
        times.add(took_s)

    def render(self, weights: WeightsInCache[ModelKey]) -> bytes:
        """Returns the text format; `weights` were looked up before, since that waits for the disk's index."""
        self._collector.weights = weights
        return generate_latest(self._registry)


class Times:
    """A histogram of seconds: the library's own takes five times as long."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_SECONDS) + 1)
        self.sum_s = 0.0

    def add(self, took_s: float) -> None:
        """Counts one."""
        self.counts[bisect_left(_SECONDS, took_s)] += 1
        self.sum_s += took_s


def _buckets(counts: Iterable[int]) -> list[tuple[str, float]]:
    """Returns upper bounds and how many were not over them, as the text format has it."""
    return list(zip((*map(str, _SECONDS), "+Inf"), map(float, counts), strict=True))


def _refused(guard: Guard) -> Metric:
    refused = CounterMetricFamily(
        "modelhost_access_refused", "Requests and calls without a key that is for them, by code.", labels=["code"]
    )
    for code in ("unauthenticated", "forbidden"):
        refused.add_metric([code], guard.refused[code])
    return refused


class _HostCollector:
    """Reads the host's own figures when they are asked for."""

    def __init__(self, host: Host, times: Mapping[str, Times], guard: Guard | None) -> None:
        self._host, self._times, self._guard = host, times, guard
        self.weights: WeightsInCache[ModelKey] = WeightsInCache({}, Weights(0, 0))

    def describe(self) -> Iterator[Metric]:
        """Nothing ahead of time: the host is not open yet when this is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yields memory, ledger, page cache, activation and pool figures."""
        yield self._requests()
        if self._guard is not None:
            yield _refused(self._guard)
        yield self._conditions()
        yield from self._memory()
        yield from self._page_cache()
        yield from self._activations()
        yield from self._pool()

    def _requests(self) -> Metric:
        """By outcome and not by model: a host of ten thousand models would hold ten thousand of these."""
        requests = HistogramMetricFamily(
            "modelhost_request_seconds", "Inference requests from arrival to answer, by outcome.", labels=["outcome"]
        )
        statistics = self._host.pool.statistics
        counts = [*not_over(statistics.answered, _NANOSECONDS), sum(statistics.answered)]
        if counts[-1]:
            requests.add_metric(["ok"], _buckets(counts), statistics.answered_ns * 1e-9)
        for outcome, times in self._times.items():
            requests.add_metric([outcome], _buckets(accumulate(times.counts)), times.sum_s)
        return requests

    def _conditions(self) -> Metric:
        held = GaugeMetricFamily(
            "modelhost_condition", "1 for what is not as it should be while the host serves on.", labels=["name"]
        )
        for condition in self._host.conditions.snapshot():
            held.add_metric([condition.name], 1)
        return held

    def _memory(self) -> Iterator[Metric]:
        memory = self._host.memory
        info, totals = memory.memory_info(), memory.ledger.totals
        for name, value, text in (
            ("limit_bytes", info.limit_bytes, "Memory limit in force."),
            ("usage_bytes", info.usage_bytes, "Memory that the kernel cannot take back."),
            ("baseline_bytes", info.baseline_bytes, "Usage with no model loaded."),
            ("warning_bytes", info.warning_bytes, "Idle models leave from here on."),
            ("critical_bytes", info.critical_bytes, "Loads are refused from here on."),
            ("loading_bytes", totals.loading_bytes, "Reserved by loads in progress."),
            ("resident_bytes", totals.resident_bytes, "Measured for loaded models."),
            ("leaving_bytes", totals.leaving_bytes, "On the way back."),
            ("level", int(info.level), "0 normal, 1 warning, 2 critical."),
            *self._forecast(),
        ):
            yield GaugeMetricFamily(f"modelhost_memory_{name}", text, value)
        yield CounterMetricFamily(
            "modelhost_memory_shortfall_bytes",
            "Bytes that did not come back after unloads.",
            memory.shortfall_bytes_total,
        )
        events = CounterMetricFamily("modelhost_memory_events", "Memory events by kind.", labels=["kind"])
        for kind, count in memory.history.counts.items():
            events.add_metric([kind], count)
        yield events

    def _forecast(self) -> Iterator[tuple[str, float, str]]:
        """Yields what alerts compare: figures also where nothing grows, 0 and infinity."""
        outlook = self._host.outlook
        if outlook is None:
            return
        growth, to_critical = outlook.forecast.growth, outlook.forecast.to_critical
        rate = 0.0 if growth is None else growth.bytes_per_s
        left_s = math.inf if to_critical is None else to_critical.expected_s
        yield "growth_bytes_per_second", rate, "Growth beyond doubt of what no model holds."
        yield "seconds_to_critical", left_s, "Until that growth reaches critical, with all models gone that can leave."

    def _page_cache(self) -> Iterator[Metric]:
        """Yields what is known; rates are left to who reads the totals."""
        pressure, total = self._host.memory.pressure(), self.weights.total
        reading = pressure.reading
        for name, value, text in (
            ("page_cache_weights_bytes", total.weights_bytes, "File pages that are loaded models' weights."),
            ("page_cache_cached_bytes", total.cached_bytes, "What of them is in the page cache."),
            ("page_cache_thrashing", int(pressure.is_thrashing), "1 while it no longer holds what is used."),
            ("memory_psi_some_avg10", reading.psi_some_avg10, "Percent of 10 s in which something waited for memory."),
            ("memory_psi_full_avg10", reading.psi_full_avg10, "Percent of 10 s in which everything waited for memory."),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"modelhost_{name}", text, value)
        for name, count, text in (
            ("page_cache_refaulted_bytes", reading.refaulted_bytes, "File pages dropped and read again."),
            ("major_faults", reading.major_faults, "Page faults of the group that waited for the disk."),
            ("process_major_faults", reading.process_major_faults, "Page faults of the host's own that did."),
        ):
            if count is not None:
                yield CounterMetricFamily(f"modelhost_{name}", text, count)
        weights = GaugeMetricFamily(
            "modelhost_model_weights_bytes", "File pages of each model's weights.", labels=["model", "version"]
        )
        cached = GaugeMetricFamily(
            "modelhost_model_cached_bytes", "What of them is in the page cache.", labels=["model", "version"]
        )
        for key, found in self.weights.models.items():
            weights.add_metric([key.name, key.version], found.weights_bytes)
            if found.cached_bytes is not None:
                cached.add_metric([key.name, key.version], found.cached_bytes)
        yield weights
        yield cached

    def _activations(self) -> Iterator[Metric]:
        gate = self._host.pool.activations
        for name, value, text in (
            ("claimed_bytes", gate.claimed_bytes, "Memory that runs in progress and their outputs may hold."),
            ("waiting", gate.waiting, "Runs that wait for memory."),
        ):
            yield GaugeMetricFamily(f"modelhost_activation_{name}", text, value)
        for name, count, text in (
            ("refusals", gate.refused_total, "Runs refused because they would not fit alone."),
            ("misses", gate.missed_total, "Runs that were let through and that the arena refused."),
        ):
            yield CounterMetricFamily(f"modelhost_activation_{name}", text, count)

    def _pool(self) -> Iterator[Metric]:
        snapshot = self._host.pool.snapshot()
        counters = snapshot.counters
        models = GaugeMetricFamily("modelhost_models", "Models in the pool by state.", labels=["state"])
        states: dict[str, int] = {}
        for model in snapshot.models:
            states[model.state] = states.get(model.state, 0) + 1
        for state, count in states.items():
            models.add_metric([state], count)
        yield models
        yield GaugeMetricFamily("modelhost_waiting", "Requests that wait for a model.", snapshot.waiting)
        yield GaugeMetricFamily(
            "modelhost_runs_in_flight", "Runs in progress or waiting for a thread.", snapshot.in_flight
        )
        for name, value, text in (
            ("loads", counters.loads, "Models loaded."),
            ("load_seconds", counters.load_seconds, "Time spent loading."),
            ("load_failures", counters.load_failures, "Loads that failed."),
            (
                "worker_crashes",
                counters.worker_crashes,
                "Worker processes of models that ended by themselves.",
            ),
            ("evictions", counters.evictions, "Models that left to make room."),
            ("unloads", counters.unloads, "Models unloaded on request."),
            ("load_overshoot_bytes", counters.overshoot_bytes, "Bytes that loads held beyond their prediction."),
            (
                "load_undershoot_bytes",
                counters.undershoot_bytes,
                "Bytes that loads were predicted to hold and did not.",
            ),
            ("expiries", counters.expiries, "Models that left because nobody had used them for pool.idle_ttl."),
            ("swaps", counters.swaps, "Changed files and new versions that have taken over."),
            ("swap_failures", counters.swap_failures, "Those that could not be opened or run, and are not served."),
            ("preparations", counters.preparations, "Models that a child process opened first."),
            ("preparation_failures", counters.preparation_failures, "Models that no child process could open."),
            ("preparation_seconds", counters.preparation_seconds, "Time that child processes took."),
        ):
            yield CounterMetricFamily(f"modelhost_{name}", text, value)
        refusals = CounterMetricFamily("modelhost_refusals", "Requests refused before a run, by code.", labels=["code"])
        for code, count in counters.refusals.items():
            refusals.add_metric([code], count)
        yield refusals
        committed = GaugeMetricFamily(
            "modelhost_model_committed_bytes", "Memory held by each loaded model.", labels=["model", "version"]
        )
        held: Counter[tuple[str, str]] = Counter()
        for model in snapshot.models:  # one that is being replaced is there twice
            held[model.name, model.version] += model.committed_bytes
        for labels, size_bytes in held.items():
            if size_bytes:
                committed.add_metric([*labels], size_bytes)
        yield committed
