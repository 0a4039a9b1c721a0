"""The repository extension on the wire: what there is, and loading and unloading it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from modelhost.api import views
from modelhost.api.codec.json_tensors import say
from modelhost.api.errors import JsonResponse
from modelhost.api.inference import Inference
from modelhost.api.reading import read_object
from modelhost.errors import InvalidRequest


def routes(inference: Inference) -> APIRouter:
    """Returns the routes that list, load and unload."""
    host, router = inference.host, APIRouter(tags=["repository"])

    @router.post("/v2/repository/index")
    @router.post("/v2/repository/{repository}/index")
    async def index(request: Request, repository: str | None = None) -> Response:
        """Every model that was found, with its state; the loaded ones with `ready`, a page with `limit` and `after`."""
        document = await read_object(request, inference.arrivals, host.settings.server)
        # Part by part: of twenty thousand models the text has 2 MB, and the values that it is made of five.
        parts = [orjson.dumps(entries)[1:-1] async for entries in views.repository_index(host, wanted_of(document))]
        return Response(b"[" + b",".join(filter(None, parts)) + b"]", media_type=JsonResponse.media_type)

    @router.post("/v2/repository/models/{name}/load")
    @router.post("/v2/repository/{repository}/models/{name}/load")
    async def load(request: Request, name: str, repository: str | None = None) -> Response:
        """Loads a model, or loads it again where its files have changed; answers when it is ready."""
        host.check_accepting()
        check_load_parameters(_parameters(await read_object(request, inference.arrivals, host.settings.server)))
        loaded = await host.pool.load(name)
        return JsonResponse({"name": name, "load": True, **loaded.as_dict()})

    @router.post("/v2/repository/models/{name}/unload")
    @router.post("/v2/repository/{repository}/models/{name}/unload")
    async def unload(request: Request, name: str, repository: str | None = None) -> Response:
        """Unloads all versions of a model; answers when its memory is back."""
        host.check_accepting()
        check_unload_parameters(_parameters(await read_object(request, inference.arrivals, host.settings.server)))
        recoveries = await host.pool.unload(name)
        return JsonResponse(
            {"name": name, "unload": True, "recovered": [recovery.as_dict() for recovery in recoveries]}
        )

    return router


def wanted_of(document: Mapping[str, Any]) -> views.Wanted:
    """Returns what of the index a request asks for. Raises InvalidRequest."""
    wanted = views.Wanted()
    only_ready = document.get("ready", wanted.only_ready)
    if not isinstance(only_ready, bool):
        raise InvalidRequest(f"'ready': expected true or false, got {say(only_ready)}")
    limit, after = document.get("limit"), document.get("after")
    if limit is None:
        limit = wanted.limit
    elif type(limit) not in (int, float) or not 1 <= limit <= wanted.limit or limit != int(limit):
        raise InvalidRequest(f"'limit': expected a whole number from 1, got {say(limit)}")  # 1.0 is one, in JSON
    if after is not None and not isinstance(after, str):
        raise InvalidRequest(f"'after': expected the name of a model, got {say(after)}")
    return views.Wanted(only_ready=only_ready, limit=int(limit), after=after or wanted.after)


def check_load_parameters(parameters: Mapping[str, object]) -> None:
    """Refuses what would load something else than the repository's files. Raises InvalidRequest."""
    if unsupported := [key for key in parameters if key == "config" or key.startswith("file:")]:
        raise InvalidRequest(
            f"load parameter '{unsupported[0][:100]}' is not supported: models come from the repository's "
            f"directory, options from model.toml or the settings"
        )


def check_unload_parameters(parameters: Mapping[str, object]) -> None:
    """No model here has dependents, so that `unload_dependents` may be either. Raises InvalidRequest."""
    value = parameters.get("unload_dependents")
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"unload parameter 'unload_dependents': expected true or false, got {say(value)}")


def _parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the document's parameters; null and nothing are none."""
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(f"'parameters': expected an object, got {say(parameters)}")
    return parameters
