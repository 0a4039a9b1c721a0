"""Plain Ray Serve: an ingress that reads the model's name, and replicas with `@serve.multiplexed` sessions.

As its manual has it, with the V2 protocol around: as many models in each replica as its user has counted out.
"""

# mypy: ignore-errors
# Ray is only in the environment that this runs in.
from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_LENGTH = "inference-header-content-length"


class PlainReplica:
    """Sessions by model, the least recently used of them leaving; V2's binary tensors in and out."""

    def __init__(self, models):
        import onnxruntime as ort

        self._models, self._ort = Path(models), ort

    @serve.multiplexed(max_num_models_per_replica=int(os.environ.get("BENCHMARK_PLAIN_MODELS", "3")))
    async def session(self, model):
        """Opens a session, as it is."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = 1
        file = self._models / model / "1" / "model.onnx"
        return self._ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    async def infer(self, body, length):
        """Answers one request: the tensors behind the JSON."""
        model = serve.get_multiplexed_model_id()
        session = await self.session(model)
        head = json.loads(body[:length])["inputs"][0]
        x = np.frombuffer(body[length:], np.float32).reshape(head["shape"])
        y = session.run(None, {"x": x})[0]
        output = {
            "name": "y",
            "datatype": "FP32",
            "shape": list(y.shape),
            "parameters": {"binary_data_size": y.nbytes},
        }
        text = json.dumps({"model_name": model, "model_version": "1", "outputs": [output]}).encode()
        return text + y.tobytes(), len(text)

    async def held(self):
        """Which process this is, and what its cache holds."""
        cache = next((value for name, value in vars(self).items() if name.startswith("__serve_multiplex")), None)
        return {"pid": os.getpid(), "models": [] if cache is None else list(cache.models)}


class PlainIngress:
    """Reads the model's name from the path."""

    def __init__(self, replicas):
        self._replicas = replicas

    async def __call__(self, request: Request):
        """Answers one request."""
        if request.url.path == "/held":
            answers = await self._replicas.broadcast("held").results_async(timeout_s=5, return_exceptions=True)
            return JSONResponse([one for one in answers if isinstance(one, dict)])
        model = request.url.path.split("/")[3]
        body = await request.body()
        call = self._replicas.options(multiplexed_model_id=model).infer
        answer, length = await call.remote(body, int(request.headers[_LENGTH]))
        return Response(answer, media_type="application/octet-stream", headers={_LENGTH: str(length)})


def build(models, *, replicas, memory_bytes, models_each):
    """Returns the application."""
    environment = {"env_vars": {"BENCHMARK_PLAIN_MODELS": str(models_each), "ORT_DISABLE_TELEMETRY": "1"}}
    hosts = serve.deployment(
        PlainReplica,
        name="Plain",
        num_replicas=replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1, "memory": memory_bytes, "runtime_env": environment},
    )
    ingress = serve.deployment(
        PlainIngress,
        name="Ingress",
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
    )
    return ingress.bind(hosts.bind(str(models)))
