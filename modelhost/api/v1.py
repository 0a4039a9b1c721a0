"""V1 on the wire, as clients of KServe and TensorFlow Serving ask: predictions, and which models there are."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from modelhost.api import views
from modelhost.api.body import ByteHold
from modelhost.api.codec import Body, EncodedResponse, InferRequest
from modelhost.api.codec.v1 import PredictRequest, decode_predict, predict_cost_bytes
from modelhost.api.codec.v1_answers import encode_predictions, predictions_cost_bytes
from modelhost.api.errors import JsonResponse
from modelhost.api.infer import Head, InferRoutes
from modelhost.api.inference import DECODE_INLINE_BYTES, Encoding, Face, Outputs
from modelhost.api.request_ids import HEADER, current
from modelhost.host import Host
from modelhost.pool import ModelKey
from modelhost.security.texts import without_paths
from modelhost.tensors import TensorSpec

_PREDICT: Final = ":predict"

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


def predict_target(scope: Scope) -> tuple[str, str | None] | None:
    """Returns name and version where the path is that of a prediction, else None.

    Of whatever method: other methods would find the status of a model that is called `NAME:predict`.
    """
    if scope["type"] != "http" or not scope["path"].endswith(_PREDICT):
        return None
    match scope["path"].removesuffix(_PREDICT).split("/"):
        case ["", "v1", "models", name]:
            return name, None
        case ["", "v1", "models", name, "versions", version]:
            return name, version
    return None


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


class Predictions:
    """Answers `POST /v1/models/{name}[/versions/{version}]:predict`."""

    def __init__(self, infer: InferRoutes) -> None:
        self._infer = infer

    async def respond(self, request: Request, name: str, version: str | None) -> ASGIApp:
        """One request, from its arrival to its answer."""
        if request.method != "POST":
            text = f"{request.method} {request.url.path}: Method Not Allowed"
            headers = {"Allow": "POST", HEADER: current()}
            return JsonResponse({"error": text, "code": "http"}, 405, headers)
        return await self._infer.respond(request, name, version, self._decode)

    async def predict_documented(self, request: Request, name: str, version: str | None = None) -> Response:
        """Runs a model on rows (`instances`), or on whole inputs (`inputs`)."""
        raise AssertionError("requests to this route are answered before they are routed")

    async def _decode(
        self, head: Head, body: Body, hold: ByteHold, face: Face
    ) -> tuple[InferRequest, Encoding[EncodedResponse]]:
        inference, text = self._infer.inference, bytes(body)

        def decode() -> PredictRequest:
            max_bytes = None if len(text) > DECODE_INLINE_BYTES else inference.max_decoded_bytes
            return decode_predict(text, inputs=face.inputs, outputs=face.outputs, max_decoded_bytes=max_bytes)

        decoded = await inference.decode(
            decode,
            hold,
            cost_bytes=lambda: predict_cost_bytes(text),
            body_bytes=len(text),
            text_bytes=len(text),
            slow_bytes=len(text),
        )
        return decoded.infer, _RowEncoding(decoded.rows)


class _RowEncoding:
    """V1's answers: for so many rows, whole where None."""

    def __init__(self, rows: int | None) -> None:
        self._rows = rows

    def cost_bytes(self, outputs: Outputs) -> int:
        return predictions_cost_bytes(outputs, self._rows)

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        return encode_predictions(outputs, self._rows)

    def size_bytes(self, answer: EncodedResponse) -> int:
        return len(answer.body)


def _status(host: Host, name: str, version: str) -> dict[str, Any]:
    state, reason = host.pool.state_of(ModelKey(name, version))
    is_failed = bool(reason) and reason != "unloaded"
    on_disk = "AVAILABLE" if host.pool.is_ready(name, version) else "END"
    return {
        "version": version,
        "state": _STATES.get(state, on_disk),
        "status": {
            "error_code": "UNKNOWN" if is_failed else "OK",
            "error_message": without_paths(reason) if is_failed else "",
        },
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
