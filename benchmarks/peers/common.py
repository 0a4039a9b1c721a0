"""What every program here shares: what it was told, and the session. Runs in the other server's environment."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import onnxruntime as ort

FILE: Final = os.environ.get("BENCHMARK_FILE", "")
"""The model: one FP32 input, one FP32 output."""
PORT: Final = int(os.environ.get("BENCHMARK_PORT", "0"))
"""Where to listen, on 127.0.0.1."""
FORM: Final = os.environ.get("BENCHMARK_FORM", "json")
"""`json`, which is `{"shape": […], "data": […]}` both ways, or `binary`, which is the tensor's bytes."""
WORKERS: Final = os.cpu_count() or 1
"""Processes that run the model: one for each core, as their manuals have it."""


class Model:
    """The session, on one thread, as everybody here runs it."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(FILE, options, providers=["CPUExecutionProvider"])
        self._shape = [-1, *self._session.get_inputs()[0].shape[1:]]

    def run(self, x: Any) -> Any:
        """Runs an array."""
        return self._session.run(None, {"x": x})[0]

    def answer(self, document: dict[str, Any]) -> dict[str, Any]:
        """Answers `{"shape": […], "data": […]}` with such."""
        y = self.run(np.array(document["data"], np.float32).reshape(document["shape"]))
        return {"shape": list(y.shape), "data": y.ravel().tolist()}

    def answer_raw(self, body: bytes) -> bytes:
        """Answers bytes with bytes."""
        answer: bytes = self.run(np.frombuffer(body, np.float32).reshape(self._shape)).tobytes()
        return answer
