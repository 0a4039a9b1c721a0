"""V1 on the wire, as clients of KServe and TensorFlow Serving ask: which models, ready or not, what they take.

Predictions are answered like other inference requests, see `inference.py`.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from modelhost.api import views
from modelhost.api.errors import JsonResponse
from modelhost.host import Host
from modelhost.pool import ModelKey
from modelhost.tensors import TensorSpec

#: The repository extension's states in V1's words; a model on disk only is AVAILABLE where it would be served.
_STATES: Final = {"READY": "AVAILABLE", "LOADING": "LOADING", "UNLOADING": "UNLOADING"}

#: V2 datatypes in V1's words.
_DTYPES: Final = {
    "BOOL": "DT_BOOL",
    "BYTES": "DT_STRING",
    "FP16": "DT_HALF",
    "BF16": "DT_BFLOAT16",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
}


def routes(host: Host) -> APIRouter:
    """Returns the routes that answer without a run."""
    router = APIRouter(tags=["v1"])

    @router.get("/v1/models")
    async def v1_names() -> Response:
        """The names of all models that can be served."""
        await host.pool.catalog.scan()
        return JsonResponse({"models": list(host.pool.catalog.names)})

    @router.get("/v1/models/{name}")
    @router.get("/v1/models/{name}/versions/{version}")
    async def v1_status(name: str, version: str | None = None) -> Response:
        """Whether a prediction would be served, 200 or 503, and the state of each version."""
        is_ready = await views.model_is_ready(host, name, version)
        versions = host.pool.catalog.versions(name) if version is None else (version,)
        body = {"name": name, "ready": is_ready, "model_version_status": [_status(host, name, v) for v in versions]}
        return JsonResponse(body, 200 if is_ready else 503)

    @router.get("/v1/models/{name}/metadata")
    @router.get("/v1/models/{name}/versions/{version}/metadata")
    async def v1_metadata(name: str, version: str | None = None) -> Response:
        """Inputs and outputs of a model, which need not be loaded, as TensorFlow Serving's clients read them."""
        return JsonResponse(await _metadata(host, name, version))

    return router


def _status(host: Host, name: str, version: str) -> dict[str, Any]:
    state, reason = host.pool.state_of(ModelKey(name, version))
    is_failed = bool(reason) and reason != "unloaded"
    on_disk = "AVAILABLE" if host.pool.is_ready(name, version) else "END"
    return {
        "version": version,
        "state": _STATES.get(state, on_disk),
        "status": {"error_code": "UNKNOWN" if is_failed else "OK", "error_message": reason if is_failed else ""},
    }


async def _metadata(host: Host, name: str, version: str | None) -> dict[str, Any]:
    file, face = await host.pool.describe(name, version)
    signature = {
        "inputs": {spec.name: _tensor(spec) for spec in face.inputs.values()},
        "outputs": {spec.name: _tensor(spec) for spec in face.outputs.values()},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {"name": file.name, "signature_name": "", "version": file.version},
        "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """64-bit numbers are strings in this form."""
    return {
        "name": spec.name,
        "dtype": _DTYPES.get(spec.datatype, f"DT_{spec.datatype}"),
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape or ()],
            "unknown_rank": spec.shape is None,
        },
    }
