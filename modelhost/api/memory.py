"""Memory on the wire: what is used, what was done about it, and `do it now`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from modelhost.api.errors import JsonResponse
from modelhost.api.metrics import CONTENT_TYPE, Metrics
from modelhost.host import Host


def routes(host: Host, metrics: Metrics) -> APIRouter:
    """Returns the routes for operators."""
    router = APIRouter(tags=["memory"])

    @router.get("/memory")
    async def memory() -> Response:
        """Limit, usage, thresholds, the models in memory, and the last events."""
        return JsonResponse(_memory(host))

    @router.post("/memory/cleanup")
    async def cleanup() -> Response:
        """Unloads every idle model that is not pinned, trims the heaps, and says what came back."""
        recovery = await host.memory.attempt_cleanup(everything=True, cause="request")
        return JsonResponse({"recovered": None if recovery is None else recovery.as_dict(), "memory": _memory(host)})

    @router.get("/metrics")
    async def prometheus() -> Response:
        """The same figures, and more, in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    return router


def _memory(host: Host) -> dict[str, object]:
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
        "level": info.level.label,
        "raw": info.raw,
        "models": [model.as_dict() for model in snapshot.models],
        "waiting": snapshot.waiting,
        "runs_in_flight": snapshot.in_flight,
        "events": [event.as_dict() for event in host.memory.history.snapshot()],
    }
