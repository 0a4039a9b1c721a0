"""A host's state as plain values for JSON: memory as `GET /memory` has it, and all of it as `GET /monitor` does.

Reads what the host says of itself and decides nothing. Event-loop thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelhost import __version__
from modelhost.errors import ModelHostError
from modelhost.host import Host
from modelhost.memory import PressureInfo, WeightsInCache
from modelhost.monitor.recorder import Rates, Recorder
from modelhost.pool import ModelInfo, ModelKey, PoolSnapshot
from modelhost.pool.activations import ActivationGate
from modelhost.pool.statistics import ModelStatistics
from modelhost.security.texts import without_paths_within

#: Models in one object, those that are loaded first, then those that were asked for last.
MODELS_SHOWN: Final = 200

EVENTS_SHOWN: Final = 50

#: Models that are looked at in one turn of the event loop: some 10 us each.
_MODELS_A_TURN: Final = 50

#: What a model is called that is on disk only.
UNLOADED: Final = "UNAVAILABLE"

_NEVER_ASKED: Final = ModelStatistics()


async def memory(host: Host) -> dict[str, Any]:
    """Returns limit, usage, thresholds, the page cache, the models in memory, and the last events."""
    weights = await host.memory.page_cache.read(host.pool.mapped_files())
    snapshot = host.pool.snapshot()
    return _memory(host, snapshot, weights) | {
        "models": [_model(model, weights) for model in snapshot.models],
        "events": _events(host),
    }


async def monitor(
    host: Host, recorder: Recorder, *, opened_s: float, now_s: float, at: float | None = None
) -> dict[str, Any]:
    """Returns everything that views show. `opened_s` and `now_s` are on one monotonic clock, `at` is Unix time."""
    weights = await host.memory.page_cache.read(host.pool.mapped_files())
    recorder.note_cached(weights.total.cached_bytes)
    snapshot = host.pool.snapshot()
    figures = _memory(host, snapshot, weights)
    return {
        "at": round(time.time() if at is None else at, 3),
        "host": {
            "version": __version__,
            "ready": host.is_ready,
            "draining": host.is_draining,
            "uptime_s": round(now_s - opened_s, 1),
            "pid": os.getpid(),
        },
        "memory": figures,
        "bar": bar(
            usage_bytes=figures["usage_bytes"],
            baseline_bytes=figures["baseline_bytes"],
            models_bytes=host.memory.ledger.totals.resident_bytes + host.memory.ledger.totals.leaving_bytes,
            loading_bytes=figures["reserved_bytes"],
            claimed_bytes=host.pool.activations.claimed_bytes,
        )
        | {"weights_cached_bytes": weights.total.cached_bytes},
        "totals": _totals(host, snapshot, recorder.rates()),
        "models": await _models(host, snapshot, weights, recorder),
        "models_known": len(host.pool.catalog.names),
        "events": _events(host)[-EVENTS_SHOWN:],
        "policy": host.policy,
    }


def bar(
    *, usage_bytes: int, baseline_bytes: int, models_bytes: int, loading_bytes: int, claimed_bytes: int
) -> dict[str, int]:
    """Returns parts of usage that add up to it and have nothing in common.

    Usage is read. Models are what loads were measured to hold, those on their way out included. The host is the
    baseline, which was measured when it opened. What usage is beyond the two, loads in progress and runs may hold: what
    they have reserved and claimed is the most that each is shown with, in proportion where it is less than both. What
    is left, growth of the host, and memory that runs have left in the arena, is the host's too.
    """
    models = min(models_bytes, usage_bytes)
    own = min(baseline_bytes, usage_bytes - models)
    beyond, claims = usage_bytes - models - own, loading_bytes + claimed_bytes
    loading, activations = loading_bytes, claimed_bytes
    if beyond < claims:
        loading = beyond * loading_bytes // claims
        activations = beyond - loading
    return {
        "host_bytes": own + beyond - loading - activations,
        "models_bytes": models,
        "loading_bytes": loading,
        "activations_bytes": activations,
    }


# --- memory ----------------------------------------------------------------------------------------------


def _memory(host: Host, snapshot: PoolSnapshot, weights: WeightsInCache[ModelKey]) -> dict[str, Any]:
    """Returns the object of `GET /memory`, but for models and events."""
    info = host.memory.memory_info()
    return {
        "limit_bytes": info.limit_bytes,
        "limit_source": info.limit_source,
        "baseline_bytes": info.baseline_bytes,
        "usage_bytes": info.usage_bytes,
        "available_bytes": info.available_bytes,
        "reserved_bytes": info.reserved_bytes,
        "warning_bytes": info.warning_bytes,
        "critical_bytes": info.critical_bytes,
        "min_free_bytes": info.min_free_bytes,
        "activation_ceiling_bytes": host.budgets.activation_ceiling_bytes,
        "activations": _activations(host.pool.activations),
        "level": info.level.label,
        "policy": host.policy,
        "raw": info.raw,
        "page_cache": _page_cache(weights, host.memory.pressure()),
        "forecast": None if host.outlook is None else host.outlook.as_dict(),
        "conditions": without_paths_within([condition.as_dict() for condition in host.conditions.snapshot()]),
        "waiting": snapshot.waiting,
        "runs_in_flight": snapshot.in_flight,
    }


def _activations(gate: ActivationGate) -> dict[str, Any]:
    return {"ceiling_bytes": gate.ceiling_bytes, "claimed_bytes": gate.claimed_bytes, "waiting": gate.waiting}


def _page_cache(weights: WeightsInCache[ModelKey], pressure: PressureInfo) -> dict[str, Any]:
    share = weights.total.cached_share
    return {
        "weights_bytes": weights.total.weights_bytes,
        "cached_bytes": weights.total.cached_bytes,
        "cached_share": None if share is None else round(share, 4),
        **pressure.as_dict(),
    }


def _model(model: ModelInfo, weights: WeightsInCache[ModelKey]) -> dict[str, Any]:
    """Adds the file pages of its weights: null for a model on the heap, and where they are unknown."""
    found = weights.models.get(ModelKey(model.name, model.version))
    return model.as_dict() | {
        "weights_bytes": None if found is None else found.weights_bytes,
        "cached_bytes": None if found is None else found.cached_bytes,
    }


def _events(host: Host) -> list[dict[str, Any]]:
    return [event.as_dict() for event in host.memory.history.snapshot()]


# --- requests and models ---------------------------------------------------------------------------------


def _totals(host: Host, snapshot: PoolSnapshot, rates: Rates) -> dict[str, Any]:
    statistics, counters = host.pool.statistics, snapshot.counters
    return {
        "requests": sum(statistics.answered) + statistics.failed,
        "failures": statistics.failed,
        "requests_per_s": rates.requests_per_s,
        "failures_per_s": rates.failures_per_s,
        "p50_ms": rates.p50_ms,
        "p99_ms": rates.p99_ms,
        "loads": counters.loads,
        "evictions": counters.evictions,
        "refusals": sum(counters.refusals.values()),
        "cold_starts": counters.cold_starts,
        "in_flight": snapshot.in_flight,
        "waiting": snapshot.waiting,
    }


async def _models(
    host: Host, snapshot: PoolSnapshot, weights: WeightsInCache[ModelKey], recorder: Recorder
) -> list[dict[str, Any]]:
    """Returns the models that are shown, by name and version; others have a turn of the event loop meanwhile."""
    rows = _held(snapshot.models, weights)
    if len(rows) > MODELS_SHOWN:
        rows = {key: rows[key] for key in sorted(rows, key=lambda key: -(rows[key]["last_used"] or 0))[:MODELS_SHOWN]}
    elif len(rows) < MODELS_SHOWN:
        rows |= {key: _unloaded(host, key) for key in _asked_for(host, rows, MODELS_SHOWN - len(rows))}
    counted = []
    for number, key in enumerate(sorted(rows)):
        if number % _MODELS_A_TURN == _MODELS_A_TURN - 1:
            await asyncio.sleep(0)
        counted.append(rows[key] | _counted(host, key, recorder))
    return counted


def _held(models: Iterable[ModelInfo], weights: WeightsInCache[ModelKey]) -> dict[ModelKey, dict[str, Any]]:
    """Returns one row for each version that has slots: where one is replaced, that which serves is first."""
    rows: dict[ModelKey, dict[str, Any]] = {}
    for model in models:
        row = rows.setdefault(ModelKey(model.name, model.version), found := _model(model, weights))
        if row is not found:
            for name in ("committed_bytes", "leases", "waiting"):
                row[name] += found[name]
    return rows


def _asked_for(host: Host, held: Mapping[ModelKey, object], most: int) -> list[ModelKey]:
    """Returns the models that are not loaded and were asked for since the start, the last ones first."""
    statistics = host.pool.statistics
    asked = [(statistics.answered_at(key), key) for key in statistics.asked() if key not in held]
    if len(asked) > most:  # without putting ten thousand in order
        times_ms = sorted((time_ms for time_ms, _ in asked), reverse=True)
        asked = [one for one in asked if one[0] >= times_ms[most - 1]]
    return [key for _, key in sorted(asked, reverse=True)[:most]]


def _unloaded(host: Host, key: ModelKey) -> dict[str, Any]:
    found = host.pool.statistics.get(key)
    row = ModelInfo(*key, UNLOADED, 0, 0, is_pinned(host, *key), None if found is None else found.last_s).as_dict()
    return row | {"weights_bytes": None, "cached_bytes": None}


def is_pinned(host: Host, name: str, version: str | None = None) -> bool:
    """Says whether a model is not to leave for others when it is loaded; False for one that is not there any more."""
    try:
        return host.pool.catalog.options(host.pool.catalog.find(name, version)).pinned
    except ModelHostError:
        return False


def _counted(host: Host, key: ModelKey, recorder: Recorder) -> dict[str, Any]:
    found, account = host.pool.statistics.get(key) or _NEVER_ASKED, host.pool.accounts.get(key)
    rates = recorder.rates_of(found)
    return {
        "requests": found.success.count + found.fail.count,
        "failures": found.fail.count,
        "requests_per_s": rates.requests_per_s,
        "p50_ms": rates.p50_ms,
        "p99_ms": rates.p99_ms,
        "loads": account.loads,
        "evictions": account.evictions,
        "cold_starts": account.cold_starts,
        "load_seconds": round(account.load_seconds, 6),
        "run_seconds": round(sum(batch.infer_ns for batch in found.batches.values()) * 1e-9, 6),
    }
