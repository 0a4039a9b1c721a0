"""The OpenAPI document: what is served, made from the routes and a table of what they take and give.

Made when it is asked for and not kept; see `openapi_schemas.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi.routing import APIRoute

from modelhost import __version__
from modelhost.api.openapi_schemas import EXAMPLE_INFER, EXAMPLE_PREDICT, SCHEMAS, Schema, ref

_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_HTML: Final = "text/html"
_TEXT: Final = "text/plain"
_EVENTS: Final = "text/event-stream"

_ABOUT: Final = """Serves many ONNX models from little memory.

Tensors are JSON, or binary behind the JSON part of a body whose length `Inference-Header-Content-Length` states.
Bodies may come in gzip or deflate (`Content-Encoding`). Every failure is `{"error": ..., "code": ..., figures}`;
any request may meet 400 or 431 where it is no HTTP, 405, and 503 where there are too many. Where the host asks for API
keys (`Authorization: Bearer KEY`), any but those for health may meet 401 without one, 403 with one for other things."""

_MEANINGS: Final = {
    400: "The request is wrong, or JSON cannot carry an output; the text says what was expected and what came.",
    404: "There is no such model or version.",
    413: "Too large: the body, what decoding it takes, or what the run takes.",
    500: "The model is broken, its run failed, or there is a bug.",
    503: "Not now: no memory, too many requests, too late, or shutting down. Try again after `Retry-After`.",
    507: "The model is larger than all the memory that there is.",
}

#: What anything that asks for a model, reads a body, or has one loaded may be answered with.
_ANY: Final = (500, 503)
_NAMED: Final = (404, *_ANY)
_READ: Final = (400, 413, *_ANY)
_RUN: Final = (400, 404, 413, *_ANY, 507)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What one route takes and gives: contents by media type, further statuses of failures."""

    gives: Mapping[str, Schema]
    failures: tuple[int, ...] = _ANY
    takes: Mapping[str, Schema] | None = None
    needs_body: bool = False
    asks: tuple[str, ...] = ()
    """Names of query parameters."""
    not_ready: Schema | None = None
    """What 503 has, where it says `not ready`."""


def _json(name: str, **more: Any) -> dict[str, Schema]:
    return {_JSON: {"schema": ref(name), **more}}


def _bytes(**more: Any) -> dict[str, Schema]:
    return {_BINARY: {"schema": {"type": "string", "contentEncoding": "binary"}, **more}}


#: By method and path; versions and repositories in the path change nothing here.
_OPERATIONS: Final[Mapping[str, _Operation]] = {
    "GET /": _Operation(_json("Alive") | {_HTML: {"schema": {"type": "string"}}}),
    "GET /v2": _Operation(_json("Server")),
    "GET /v2/health/live": _Operation(_json("Live")),
    "GET /v2/health/ready": _Operation(_json("Ready"), not_ready=ref("Ready")),
    "GET /v2/logging": _Operation(_json("LogSettings")),
    "POST /v2/logging": _Operation(_json("LogSettings"), _READ, _json("LogSettings", example={"log_info": True})),
    "GET /v2/models/stats": _Operation(_json("Statistics")),
    "GET /v2/models/{name}": _Operation(_json("ModelMetadata"), _NAMED),
    "GET /v2/models/{name}/ready": _Operation(_json("Ready"), _NAMED, not_ready=ref("Ready")),
    "GET /v2/models/{name}/config": _Operation(_json("ModelConfig"), _NAMED),
    "GET /v2/models/{name}/stats": _Operation(_json("Statistics"), _NAMED),
    "POST /v2/models/{name}/infer": _Operation(
        _json("InferResponse") | _bytes(),
        _RUN,
        _json("InferRequest", example=EXAMPLE_INFER) | _bytes(),
        needs_body=True,
    ),
    "POST /v2/repository/index": _Operation(_json("Index"), _READ, _json("IndexRequest", example={})),
    "POST /v2/repository/models/{name}/load": _Operation(
        _json("Loaded"), _RUN, _json("LoadRequest", example={"parameters": {}})
    ),
    "POST /v2/repository/models/{name}/unload": _Operation(
        _json("Unloaded"), (400, 404, 413, *_ANY), _json("UnloadRequest", example={"parameters": {}})
    ),
    "GET /v1/models": _Operation(_json("Names")),
    "GET /v1/models/{name}": _Operation(_json("ModelStatus"), _NAMED, not_ready=ref("ModelStatus")),
    "GET /v1/models/{name}/metadata": _Operation(_json("V1Metadata"), _NAMED),
    "POST /v1/models/{name}:predict": _Operation(
        _json("PredictResponse"), _RUN, _json("PredictRequest", example=EXAMPLE_PREDICT), needs_body=True
    ),
    "GET /memory": _Operation(_json("Memory")),
    "POST /memory/cleanup": _Operation(_json("Cleanup")),
    "GET /monitor": _Operation(_json("Monitor")),
    "GET /monitor/stream": _Operation({_EVENTS: {"schema": {"type": "string"}}}, (400, *_ANY), asks=("interval_s",)),
    "GET /monitor/history": _Operation(_json("History")),
    "GET /monitor/models": _Operation(_json("ModelPage"), (400, *_ANY), asks=("search", "offset", "limit")),
    "POST /monitor/models/{name}/pin": _Operation(
        _json("Pinned"), (400, 404, 413, *_ANY), _json("PinRequest", example={"pinned": False}), needs_body=True
    ),
    "GET /metrics": _Operation({_TEXT: {"schema": {"type": "string"}}}),
}

_PARAMETERS: Final[Mapping[str, Schema]] = {
    "name": {"schema": {"type": "string", "minLength": 1}, "example": "wine", "description": "Name of the model."},
    "version": {
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "1",
        "description": "The highest one where the path names none.",
    },
    "repository": {
        "schema": {"type": "string", "minLength": 1},
        "example": "models",
        "description": "Any: there is one repository.",
    },
}


_QUERY: Final[Mapping[str, Schema]] = {
    "interval_s": {
        "schema": {"type": "number", "minimum": 0.5, "maximum": 60, "default": 1},
        "description": "Seconds from one snapshot to the next, in steps of half a second.",
    },
    "search": {
        "schema": {"type": "string", "maxLength": 256, "default": ""},
        "description": "What names have in them, in whatever case.",
    },
    "offset": {
        "schema": {"type": "integer", "minimum": 0, "maximum": 1 << 31, "default": 0},
        "description": "Models before the first one.",
    },
    "limit": {
        "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
        "description": "Most models.",
    },
}


def document(routes: Iterable[object]) -> dict[str, Any]:
    """Returns the document for those of `routes` that are the API's."""
    paths: dict[str, Any] = {}
    for route in routes:
        if isinstance(route, APIRoute):
            for method in sorted((route.methods or set()) - {"HEAD"}):
                paths.setdefault(route.path, {})[method.lower()] = _described(route, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "modelhost", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def _described(route: APIRoute, method: str) -> dict[str, Any]:
    operation = _OPERATIONS[f"{method} {_family(route.path)}"]
    names = re.findall(r"{(\w+)}", route.path)
    about = (route.endpoint.__doc__ or "").strip()
    described: dict[str, Any] = {
        "tags": route.tags,
        "summary": about.split("\n")[0],
        "operationId": "_".join([route.endpoint.__name__, *names]),
        "responses": dict(_responses(operation)),
    }
    parameters = [{"name": n, "in": "path", "required": True, **_PARAMETERS[n]} for n in names]
    parameters += [{"name": n, "in": "query", "required": False, **_QUERY[n]} for n in operation.asks]
    if parameters:
        described["parameters"] = parameters
    if operation.takes is not None:
        described["requestBody"] = {"required": operation.needs_body, "content": operation.takes}
    return described


def _family(path: str) -> str:
    return path.replace("/versions/{version}", "").replace("/{repository}", "")


def _responses(operation: _Operation) -> Iterator[tuple[str, Schema]]:
    yield "200", {"description": "The answer.", "content": operation.gives}
    for status in operation.failures:
        schema = ref("Error")
        if status == 503 and operation.not_ready is not None:
            schema = {"anyOf": [operation.not_ready, schema]}
        yield str(status), {"description": _MEANINGS[status], "content": {_JSON: {"schema": schema}}}
