"""Models on the wire: metadata, readiness, configuration, statistics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from modelhost.api import views
from modelhost.api.errors import JsonResponse
from modelhost.host import Host


def routes(host: Host) -> APIRouter:
    """Returns the routes that say what a model is and does; none of them loads it."""
    router = APIRouter(tags=["models"])

    # Before the model that might be called so.
    @router.get("/v2/models/stats")
    async def all_statistics() -> Response:
        """What the requests of every model took that is loaded or was asked for."""
        return JsonResponse(await views.model_statistics(host))

    @router.get("/v2/models/{name}")
    @router.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """Versions, inputs and outputs of a model, which need not be loaded."""
        return JsonResponse(await views.model_metadata(host, name, version))

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready")
    async def ready(name: str, version: str | None = None) -> Response:
        """Whether an inference request would be served; loading the model for it counts as served."""
        is_ready = await views.model_is_ready(host, name, version)
        return JsonResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    @router.get("/v2/models/{name}/config")
    @router.get("/v2/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> Response:
        """The model's configuration in the form that load generators ask for."""
        return JsonResponse(await views.model_config(host, name, version))

    @router.get("/v2/models/{name}/stats")
    @router.get("/v2/models/{name}/versions/{version}/stats")
    async def statistics(name: str, version: str | None = None) -> Response:
        """What the requests of a model took since the start, of each version where none is named."""
        return JsonResponse(await views.model_statistics(host, name, version))

    return router
