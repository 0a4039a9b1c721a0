"""Memory on the wire: what is used, what was done about it, and `do it now`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from modelhost.api.errors import JsonResponse
from modelhost.api.metrics import CONTENT_TYPE, Metrics
from modelhost.host import Host
from modelhost.memory import PressureInfo, WeightsInCache
from modelhost.pool import ModelInfo, ModelKey
from modelhost.pool.activations import ActivationGate
from modelhost.security.texts import without_paths_within


def routes(host: Host, metrics: Metrics) -> APIRouter:
    """Returns the routes for operators."""
    router = APIRouter(tags=["memory"])

    @router.get("/memory")
    async def memory() -> Response:
        """Limit, usage, thresholds, the page cache, the models in memory, and the last events."""
        return JsonResponse(await _memory(host))

    @router.post("/memory/cleanup")
    async def cleanup() -> Response:
        """Unloads every idle model that is not pinned, trims the heaps, and says what came back."""
        recovery = await host.memory.attempt_cleanup(everything=True, cause="request")
        recovered = None if recovery is None else recovery.as_dict()
        return JsonResponse({"recovered": recovered, "memory": await _memory(host)})

    @router.get("/metrics")
    async def prometheus() -> Response:
        """The same figures, and more, in Prometheus' text format."""
        weights = await host.memory.page_cache.read(host.pool.mapped_files())
        return Response(metrics.render(weights), media_type=CONTENT_TYPE)

    return router


async def _memory(host: Host) -> dict[str, object]:
    weights = await host.memory.page_cache.read(host.pool.mapped_files())
    info, snapshot = host.memory.memory_info(), host.pool.snapshot()
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
        "raw": info.raw,
        "page_cache": _page_cache(weights, host.memory.pressure()),
        "models": [_model(model, weights) for model in snapshot.models],
        "forecast": None if host.outlook is None else host.outlook.as_dict(),
        "conditions": without_paths_within([condition.as_dict() for condition in host.conditions.snapshot()]),
        "waiting": snapshot.waiting,
        "runs_in_flight": snapshot.in_flight,
        "events": [event.as_dict() for event in host.memory.history.snapshot()],
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
