"""The least that answers the same requests: Starlette and uvicorn around one ONNX Runtime session.

The other side of `python -m benchmarks overhead`. It runs the session where the request arrives,
loads at start, checks nothing and refuses nothing; it is no server to use.
"""

from __future__ import annotations

import json
import os
import socket
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_HEADER = "Inference-Header-Content-Length"


def create_app(file: str) -> Starlette:
    """Returns the application for one model of one FP32 input and one FP32 output."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed, answer = session.get_inputs()[0].name, session.get_outputs()[0].name

    async def infer(request: Request) -> Response:
        body = await request.body()
        length = request.headers.get(_HEADER)
        if length is None:
            tensor = orjson.loads(body)["inputs"][0]
            question = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        else:
            tensor = orjson.loads(body[: int(length)])["inputs"][0]
            question = np.frombuffer(body[int(length) :], np.float32).reshape(tensor["shape"])
        result = session.run([answer], {feed: question})[0]
        output = {"name": answer, "datatype": "FP32", "shape": result.shape}
        if length is None:
            output["data"] = result.ravel()
            return Response(_encode({"model_name": "digits", "outputs": [output]}), media_type="application/json")
        data = result.tobytes()
        output["parameters"] = {"binary_data_size": len(data)}
        header = _encode({"model_name": "digits", "outputs": [output]})
        return Response(header + data, media_type="application/octet-stream", headers={_HEADER: str(len(header))})

    return Starlette(routes=[Route("/v2/models/digits/infer", infer, methods=["POST"])])


def _encode(document: object) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def main() -> None:
    """Serves the file that is named on the command line; says where, as the host does."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(sys.argv[1]), loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False,
        log_config=None, server_header=False,
    )  # fmt: skip
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
