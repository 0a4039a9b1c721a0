"""Every error that modelhost raises, as an HTTP answer: one table, one shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson
from cachetools import LRUCache
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route

from modelhost import errors
from modelhost.api import request_ids
from modelhost.security.texts import without_paths_within

log = logging.getLogger("modelhost")

#: Status by class; a subclass without a line of its own has its nearest base's.
STATUSES: Final[Mapping[type[errors.ModelHostError], int]] = {
    errors.InvalidRequest: 400,
    errors.UnrepresentableOutput: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.ModelNotFound: 404,
    errors.RequestTooLarge: 413,
    errors.RunTooLarge: 413,
    errors.ModelBroken: 500,
    errors.RunFailed: 500,
    errors.ConfigError: 500,
    errors.WorkerCrashed: 502,
    errors.WorkerRestarting: 503,
    errors.InsufficientMemory: 503,
    errors.Overloaded: 503,
    errors.DeadlineExceeded: 503,
    errors.HostClosed: 503,
    errors.HostStarting: 503,
    errors.NeverFits: 507,
    errors.MemoryRefusal: 503,
    errors.ModelHostError: 500,
}

#: What a client should wait before it tries again: a queue drains in about a second, and so do runs;
#: memory of models comes back when their users are done.
_RETRY_AFTER_S: Final[Mapping[type[errors.ModelHostError], int]] = {
    errors.InsufficientMemory: 2,
    errors.HeldElsewhere: 2,
    errors.ActivationsFull: 1,
    errors.Overloaded: 1,
    errors.DeadlineExceeded: 1,
    errors.HostClosed: 5,
    errors.HostStarting: 2,
}

#: What clients are told of a bug; what it was stands in the log.
INTERNAL: Final = "internal error; the log has it under request id {}"

#: Broken models that the log has already been told of.
_told: Final[LRUCache[str, None]] = LRUCache(256)

#: nginx's status for a client that did not wait; nobody is there to read it.
CLIENT_GONE: Final = Response(status_code=499)


class JsonResponse(Response):
    """JSON by orjson. The content type is exactly `application/json`: some clients compare it so."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encodes the content."""
        return orjson.dumps(content)


def status_of(error: errors.ModelHostError) -> int:
    """Returns the status of an error, by the nearest class in the table."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


def answer_of(error: errors.ModelHostError) -> dict[str, Any]:
    """Returns what clients are told of an error: text, code, figures, and when to come back."""
    answer: dict[str, Any] = without_paths_within({"error": str(error), "code": error.code, **error.details()})
    retry_after_s = _RETRY_AFTER_S.get(type(error))
    if retry_after_s is not None:
        answer["retry_after_s"] = retry_after_s
    return answer


def respond(error: errors.ModelHostError, request_id: str | None = None) -> Response:
    """Returns the answer for an error: `{"error": text, "code": ..., figures}`.

    `request_id` is what the client sent, where that is not the task's to say.
    """
    request_id = request_id or request_ids.current()
    tell(error, request_id)
    body = answer_of(error)
    headers = {request_ids.HEADER: request_id}
    headers |= {"Retry-After": str(body["retry_after_s"])} if "retry_after_s" in body else {}
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return JsonResponse(body, status_of(error), headers)


def tell(error: errors.ModelHostError, request_id: str) -> None:
    """Logs what is worth a look at the host, once for all who ask for the same broken model. ONNX Runtime's words on
    a run may repeat what was sent: those are for the client."""
    if isinstance(error, errors.RunFailed):
        log.warning("a run failed", extra={"request_id": request_id, "code": error.code})
    elif isinstance(error, errors.ModelBroken | errors.ConfigError) and str(error) not in _told:
        _told[str(error)] = None
        log.warning("%s", error, extra={"request_id": request_id, "code": error.code})


def respond_unexpected(method: str, path: str, error: Exception, request_id: str | None = None) -> Response:
    """Returns the answer for an error that is not one of ours, and logs what is a bug."""
    request_id = request_id or request_ids.current()
    if isinstance(error, MemoryError):
        # The C library refused an allocation: an address-space limit, most likely.
        text = f"{method} {path}: memory could not be allocated: {error}"
        return respond(errors.InsufficientMemory(text, needed_bytes=0, available_bytes=0), request_id)
    log.error("%s %s failed", method, path, exc_info=error, extra={"request_id": request_id})
    body = {"error": INTERNAL.format(request_id), "code": "internal"}
    return JsonResponse(body, 500, {request_ids.HEADER: request_id})


def install(app: FastAPI) -> None:
    """Makes every failure of `app` answer in our shape, those of the framework included."""

    async def on_host_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.ModelHostError)
        return respond(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {}) | _id_header()
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_at(app, request))
        return JsonResponse({"error": text, "code": "http"}, error.status_code, headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        text = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return JsonResponse({"error": text, "code": "invalid_request"}, 400, _id_header())

    async def on_unexpected(request: Request, error: Exception) -> Response:
        return respond_unexpected(request.method, request.url.path, error)

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return CLIENT_GONE

    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(MemoryError, on_unexpected)
    app.add_exception_handler(errors.ModelHostError, on_host_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_unexpected)


def _id_header() -> dict[str, str]:
    return {request_ids.HEADER: request_ids.current()}


def _methods_at(app: FastAPI, request: Request) -> list[str]:
    """Returns the methods of all routes with the request's path: the framework names those of one."""
    methods: set[str] = set()
    for route in app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
