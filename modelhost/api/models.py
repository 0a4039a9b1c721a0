"""Models on the wire: metadata, readiness, configuration, the repository extension."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from modelhost import __version__
from modelhost.api.body import ByteBudget, read_body
from modelhost.api.errors import JsonResponse
from modelhost.errors import InvalidRequest, ModelNotFound
from modelhost.host import Host
from modelhost.pool import ModelKey
from modelhost.tensors import TensorSpec

#: What is announced is what works.
EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "parameters")

#: Bodies of the repository extension are a few words.
_MAX_BODY_BYTES = 1 << 20


def routes(host: Host) -> APIRouter:
    """Returns the routes that say what there is, and load and unload it."""
    router = APIRouter(tags=["models"])

    @router.get("/v2")
    async def server() -> Response:
        """Name, version and extensions of the server."""
        return JsonResponse({"name": "modelhost", "version": __version__, "extensions": EXTENSIONS})

    @router.get("/v2/health/live")
    async def live() -> Response:
        """Whether the process answers."""
        return JsonResponse({"live": True})

    @router.get("/v2/health/ready")
    async def ready() -> Response:
        """Whether requests are served: 200 or 503."""
        return JsonResponse({"ready": host.is_ready}, 200 if host.is_ready else 503)

    @router.get("/v2/models/{name}")
    @router.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str | None = None) -> Response:
        """Versions, inputs and outputs of a model, which need not be loaded."""
        file, face = await host.pool.describe(name, version)
        return JsonResponse(
            {
                "name": file.name,
                "versions": list(host.pool.catalog.versions(file.name)),
                "platform": "onnxruntime_onnx",
                "inputs": [_tensor(spec) for spec in face.inputs.values()],
                "outputs": [_tensor(spec) for spec in face.outputs.values()],
            }
        )

    @router.get("/v2/models/{name}/ready")
    @router.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(name: str, version: str | None = None) -> Response:
        """Whether an inference request would be served; loading the model for it counts as served."""
        await host.pool.catalog.find_fresh(name, version)
        is_ready = host.is_ready and host.pool.is_ready(name, version)
        return JsonResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)

    @router.get("/v2/models/{name}/config")
    @router.get("/v2/models/{name}/versions/{version}/config")
    async def config(name: str, version: str | None = None) -> Response:
        """The model's configuration in the form that load generators ask for."""
        file, face = await host.pool.describe(name, version)
        batch = host.pool.catalog.options(file).max_batch_size
        return JsonResponse(
            {
                "name": file.name,
                "platform": "onnxruntime_onnx",
                "backend": "onnxruntime",
                "max_batch_size": batch,
                "input": [_configured(spec, batch) for spec in face.inputs.values()],
                "output": [_configured(spec, batch) for spec in face.outputs.values()],
                "version_policy": {"all": {}},
            }
        )

    @router.post("/v2/repository/index")
    @router.post("/v2/repository/{repository}/index")
    async def index(request: Request, repository: str | None = None) -> Response:
        """Every model that was found, with its state; only the loaded ones with `{"ready": true}`."""
        only_ready = (await _parameters(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InvalidRequest(f"'ready': expected true or false, got {only_ready!r}")
        await host.pool.catalog.scan()
        return JsonResponse([entry for entry in _index(host) if not only_ready or entry["state"] == "READY"])

    @router.post("/v2/repository/models/{name}/load")
    @router.post("/v2/repository/{repository}/models/{name}/load")
    async def load(request: Request, name: str, repository: str | None = None) -> Response:
        """Loads a model, or loads it again where its files have changed; answers when it is ready."""
        parameters = (await _parameters(request)).get("parameters") or {}
        if unsupported := [key for key in parameters if key == "config" or key.startswith("file:")]:
            raise InvalidRequest(
                f"load parameter '{unsupported[0]}' is not supported: models come from the repository's "
                f"directory, options from model.toml or the settings"
            )
        loaded = await host.pool.load(name)
        return JsonResponse({"name": name, "load": True, **loaded.as_dict()})

    @router.post("/v2/repository/models/{name}/unload")
    @router.post("/v2/repository/{repository}/models/{name}/unload")
    async def unload(request: Request, name: str, repository: str | None = None) -> Response:
        """Unloads all versions of a model; answers when its memory is back."""
        await _parameters(request)
        recoveries = await host.pool.unload(name)
        return JsonResponse(
            {"name": name, "unload": True, "recovered": [recovery.as_dict() for recovery in recoveries]}
        )

    return router


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}


def _configured(spec: TensorSpec, max_batch_size: int) -> dict[str, Any]:
    """`dims` leave the batch dimension out where there is one, as the configuration's form has it."""
    shape = spec.wire_shape
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": shape[1:] if max_batch_size else shape}


def _index(host: Host) -> list[dict[str, str]]:
    catalog = host.pool.catalog
    entries = []
    for name in catalog.names:
        try:
            versions = catalog.versions(name)
        except ModelNotFound:  # a scan in between has not found it again
            continue
        for version in versions:
            state, reason = host.pool.state_of(ModelKey(name, version))
            entries.append({"name": name, "version": version, "state": state, "reason": reason})
    served = set(catalog.names)
    entries += [
        {"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason}
        for name, reason in catalog.problems.items()
        if name not in served
    ]
    return entries


async def _parameters(request: Request) -> dict[str, Any]:
    """Returns the body's object; nothing at all means an empty one."""
    with ByteBudget(_MAX_BODY_BYTES, max_waiting=1).hold() as hold:
        body = await read_body(request, hold, max_bytes=_MAX_BODY_BYTES)
    try:
        document = orjson.loads(body) if body.strip() else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body: expected a JSON object, got {type(document).__name__}")
    if not isinstance(document.get("parameters") or {}, dict):
        raise InvalidRequest(f"'parameters': expected an object, got {document['parameters']!r}")
    return document
