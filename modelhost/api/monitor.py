"""What views on the host are made of, on the wire: its state, as a stream too, the last hour, all its models."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from modelhost.api.codec.json_tensors import say
from modelhost.api.errors import JsonResponse
from modelhost.api.event_stream import EventStream
from modelhost.api.inference import Inference
from modelhost.api.reading import read_object
from modelhost.errors import InvalidRequest
from modelhost.monitor import Feed
from modelhost.monitor.listing import MAX_LIMIT, MAX_OFFSET, MAX_SEARCH

_LAST_EVENT_ID: Final = "last-event-id"

#: More digits than any id has; int() refuses thousands.
_ID_DIGITS: Final = 18


def routes(inference: Inference, feed: Feed) -> APIRouter:
    """Returns the routes for views, and what they change."""
    host, router = inference.host, APIRouter(tags=["monitor"])

    @router.get("/monitor")
    async def monitor() -> Response:
        """The state of the host in one object: memory and its parts, totals, models with rates, events."""
        return JsonResponse(await feed.snapshot())

    @router.get("/monitor/stream")
    async def stream(request: Request, interval_s: Annotated[float, Query(ge=0.5, le=60)] = 1.0) -> Response:
        """The same at once and each interval, and memory events as they happen, as server-sent events."""
        seen_id = _event_id(request.headers.get(_LAST_EVENT_ID))
        return EventStream(lambda: feed.viewers.join(interval_s, seen_id))

    @router.get("/monitor/history")
    async def history() -> Response:
        """The last hour in columns, a sample each five seconds."""
        return JsonResponse(feed.recorder.history())

    @router.get("/monitor/models")
    async def models(
        search: Annotated[str, Query(max_length=MAX_SEARCH)] = "",
        offset: Annotated[int, Query(ge=0, le=MAX_OFFSET)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 50,
    ) -> Response:
        """Models of the repository whose names have a text in them, a page at a time; the disk is not looked at."""
        return JsonResponse(feed.models(search=search, offset=offset, limit=limit))

    @router.post("/monitor/models/{name}/pin")
    async def pin(request: Request, name: str) -> Response:
        """Has a model stay loaded, or leave as others do, until the process ends; loads nothing."""
        host.check_accepting()
        pinned = (await read_object(request, inference.arrivals, host.settings.server)).get("pinned")
        if not isinstance(pinned, bool):
            raise InvalidRequest(f"'pinned': expected true or false, got {say(pinned)}")
        await host.pool.pin(name, pinned=pinned)
        return JsonResponse({"name": name, "pinned": pinned})

    return router


def _event_id(sent: str | None) -> int | None:
    """Returns the id of the last event that a client has seen; None where it says none."""
    if sent is None or not (sent.isascii() and sent.isdecimal()) or len(sent) > _ID_DIGITS:
        return None
    return int(sent)
