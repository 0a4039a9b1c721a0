"""What people write by hand: thirty lines of FastAPI around one ONNX Runtime session.

    python -m benchmarks.handwritten FILE PORT

A yardstick of `python -m benchmarks throughput`: a pydantic body of V2's shape for
JSON, the tensor's bytes for binary.
"""

import sys

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
input_shape = [-1, *session.get_inputs()[0].shape[1:]]
app = FastAPI()


class Tensor(BaseModel):
    """One input."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Body(BaseModel):
    """A request."""

    inputs: list[Tensor]


@app.post("/v2/models/{model}/infer")
async def infer(model: str, body: Body) -> dict[str, object]:
    x = body.inputs[0]
    y = session.run(None, {x.name: np.array(x.data, np.float32).reshape(x.shape)})[0]
    output = {"name": "y", "shape": list(y.shape), "datatype": "FP32", "data": y.ravel().tolist()}
    return {"model_name": model, "outputs": [output]}


@app.post("/predict")
async def predict(request: Request) -> Response:
    x = np.frombuffer(await request.body(), np.float32).reshape(input_shape)
    y = session.run(None, {"x": x})[0]
    return Response(y.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    # A loop that is busy for seconds would take connections for idle, and close them.
    uvicorn.run(app, port=int(sys.argv[2]), timeout_keep_alive=120, access_log=False, log_level="warning")
