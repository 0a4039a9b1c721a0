"""The server on the wire: what it is, whether it lives, what it logs."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from modelhost.api import log_levels, page, views
from modelhost.api.errors import JsonResponse
from modelhost.api.inference import Inference
from modelhost.api.reading import read_object


def routes(inference: Inference) -> APIRouter:
    """Returns the routes that ask for no model."""
    host, router = inference.host, APIRouter(tags=["server"])

    @router.get("/")
    async def alive(request: Request) -> Response:
        """Whether the process answers, as V1 clients ask it; browsers, which ask for HTML, get the page for people."""
        if page.prefers_page(request.headers.get("accept")):
            return page.index(request)
        return JsonResponse({"status": "alive"}, headers={"Vary": "Accept"})

    @router.get("/v2")
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return JsonResponse(views.server_metadata())

    @router.get("/v2/health/live")
    async def live() -> Response:
        """Whether the process answers."""
        return JsonResponse({"live": True})

    @router.get("/v2/health/ready")
    async def ready() -> Response:
        """Whether requests are served: 200 or 503, with the names of `conditions` where any hold."""
        return JsonResponse(views.readiness(host), 200 if host.is_ready else 503)

    @router.get("/v2/logging")
    async def logging() -> Response:
        """Which messages are logged."""
        return JsonResponse(log_levels.current())

    @router.post("/v2/logging")
    async def change_logging(request: Request) -> Response:
        """Changes which messages are logged, until the process ends; answers what is logged from here on."""
        return JsonResponse(log_levels.change(await read_object(request, inference.arrivals, host.settings.server)))

    return router
