"""Memory on the wire: what is used, what was done about it, and `do it now`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from modelhost.api.errors import JsonResponse
from modelhost.api.exposition import CONTENT_TYPE
from modelhost.api.metrics import Metrics
from modelhost.host import Host
from modelhost.monitor import state


def routes(host: Host, metrics: Metrics) -> APIRouter:
    """Returns the routes for operators."""
    router = APIRouter(tags=["memory"])

    @router.get("/memory")
    async def memory() -> Response:
        """Limit, usage, thresholds, the page cache, the models in memory, and the last events."""
        return JsonResponse(await state.memory(host))

    @router.post("/memory/cleanup")
    async def cleanup() -> Response:
        """Unloads every idle model that is not pinned, trims the heaps, and says what came back."""
        recovery = await host.memory.attempt_cleanup(everything=True, cause="request")
        recovered = None if recovery is None else recovery.as_dict()
        return JsonResponse({"recovered": recovered, "memory": await state.memory(host)})

    @router.get("/metrics")
    async def prometheus() -> Response:
        """The same figures, and more, in Prometheus' text format."""
        return Response(await metrics.render(), media_type=CONTENT_TYPE)

    return router
