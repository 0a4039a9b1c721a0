"""The least that answers V2 requests: one ASGI callable on uvicorn around one ONNX Runtime session.

    python -m benchmarks.bare FILE PORT

A yardstick of `python -m benchmarks throughput` and `overhead`. It runs the session where the request
arrives, loads at start, checks nothing and refuses nothing; it is no server to use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn

_HEADER = b"inference-header-content-length"
_Message = dict[str, Any]


class App:
    """The callable, for a model of one FP32 input and one FP32 output; the path and the model's name are not read."""

    def __init__(self, file: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._input, self._output = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """Answers one request."""
        message = await receive()
        body = message["body"]
        if message["more_body"]:
            parts = [body]
            while message["more_body"]:
                message = await receive()
                parts.append(message["body"])
            body = b"".join(parts)
        length = next((int(value) for name, value in scope["headers"] if name == _HEADER), None)
        headers, answer = self._answer_json(body) if length is None else self._answer_binary(body, length)
        headers.append((b"content-length", b"%d" % len(answer)))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _answer_json(self, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        tensor = orjson.loads(body)["inputs"][0]
        result = self._run(np.array(tensor["data"], np.float32), tensor["shape"])
        output = {"name": self._output, "datatype": "FP32", "shape": result.shape, "data": result.ravel()}
        return [(b"content-type", b"application/json")], _encode({"model_name": "bare", "outputs": [output]})

    def _answer_binary(self, body: bytes, length: int) -> tuple[list[tuple[bytes, bytes]], bytes]:
        tensor = orjson.loads(body[:length])["inputs"][0]
        result = self._run(np.frombuffer(body[length:], np.float32), tensor["shape"])
        output = {
            "name": self._output,
            "datatype": "FP32",
            "shape": result.shape,
            "parameters": {"binary_data_size": result.nbytes},
        }
        header = _encode({"model_name": "bare", "outputs": [output]})
        headers = [(b"content-type", b"application/octet-stream"), (_HEADER, b"%d" % len(header))]
        return headers, header + result.tobytes()

    def _run(self, flat: Any, shape: list[int]) -> Any:
        return self._session.run([self._output], {self._input: flat.reshape(shape)})[0]


def _encode(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def main() -> None:
    """Serves the file at the port that the command line names."""
    uvicorn.run(
        App(sys.argv[1]), port=int(sys.argv[2]), loop="uvloop", http="httptools", ws="none", lifespan="off",
        access_log=False, log_level="warning", timeout_keep_alive=120,
    )  # fmt: skip


if __name__ == "__main__":
    main()
