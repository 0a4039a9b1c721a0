"""A client of one connection: V2 inference with binary tensors, and the host's own figures, over httpx."""

from __future__ import annotations

import json
import re
import time
from types import TracebackType
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.models import Array

_HEADER: Final = "Inference-Header-Content-Length"
_METRIC: Final = re.compile(r"^(\w+)(?:_total)? ([\d.e+-]+)$", re.MULTILINE)


class RequestFailed(Exception):
    """The host answered with an error, or not at all."""


class Client:
    """One keep-alive connection; one thread's."""

    def __init__(self, url: str, *, timeout_s: float = 120.0) -> None:
        # Without certificates and proxies: loading them would take longer than what is measured.
        self._http = httpx.Client(base_url=url, timeout=timeout_s, verify=False, trust_env=False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def infer(self, model: str, question: Array, *, as_json: bool = False) -> Array:
        """Asks `x`, returns `y`. Raises RequestFailed."""
        body, headers = (json_request if as_json else binary_request)(question)
        response = self._post(f"/v2/models/{model}/infer", body, headers)
        if as_json:
            output = response.json()["outputs"][0]
            return np.array(output["data"], np.float32).reshape(output["shape"])
        length = int(response.headers[_HEADER])
        shape = json.loads(response.content[:length])["outputs"][0]["shape"]
        return np.frombuffer(response.content[length:], np.float32).reshape(shape)

    def load(self, model: str) -> dict[str, Any]:
        """Loads a model; returns what the host says of it."""
        loaded: dict[str, Any] = self._post(f"/v2/repository/models/{model}/load").json()
        return loaded

    def index(self) -> list[dict[str, str]]:
        """Has the host look at its models; returns what it says of each version."""
        entries: list[dict[str, str]] = self._post("/v2/repository/index").json()
        return entries

    def unload(self, model: str) -> None:
        """Unloads a model; returns when the host says that its memory is back."""
        self._post(f"/v2/repository/models/{model}/unload")

    def cleanup(self) -> dict[str, Any]:
        """Unloads everything idle; returns the recovery and the memory figures after it."""
        answer: dict[str, Any] = self._post("/memory/cleanup").json()
        return answer

    def memory(self) -> dict[str, Any]:
        """The host's memory figures."""
        figures: dict[str, Any] = self._get("/memory").json()
        return figures

    def loaded(self) -> list[str]:
        """The names of the models that are loaded."""
        return loaded_in(self.memory())

    def stats(self) -> dict[str, Any]:
        """V2's statistics of all models."""
        figures: dict[str, Any] = self._get("/v2/models/stats").json()
        return figures

    def metrics(self) -> dict[str, float]:
        """The metrics without labels, by name without prefix and `_total`."""
        found = _METRIC.findall(self._get("/metrics").text)
        return {name.removeprefix("modelhost_").removesuffix("_total"): float(value) for name, value in found}

    def wait_for(self, path: str, *, timeout_s: float) -> float:
        """Asks until the answer is 200; returns how long that took. Raises RequestFailed."""
        started = time.monotonic()
        while True:
            try:
                if self._http.get(path).status_code == 200:
                    return time.monotonic() - started
            except httpx.HTTPError:
                pass
            if time.monotonic() - started > timeout_s:
                raise RequestFailed(f"{path} was not answered with 200 within {timeout_s} s")
            time.sleep(0.005)

    def _get(self, path: str) -> httpx.Response:
        return self._checked(lambda: self._http.get(path))

    def _post(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> httpx.Response:
        return self._checked(lambda: self._http.post(path, content=body, headers=headers))

    def _checked(self, send: Any) -> httpx.Response:
        try:
            response: httpx.Response = send()
        except httpx.HTTPError as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            raise RequestFailed(f"{response.status_code}: {response.text[:500]}")
        return response


def loaded_in(memory: dict[str, Any]) -> list[str]:
    """Returns the names of the models that are loaded by a host's memory figures."""
    return [model["name"] for model in memory["models"] if model["state"] == "ready"]


def binary_request(question: Array, *, tensor: str = "x") -> tuple[bytes, dict[str, str]]:
    """Returns body and headers of a request that carries `question` as bytes and wants bytes back."""
    data = np.ascontiguousarray(question).tobytes()
    entry = {
        "name": tensor,
        "datatype": "FP32",
        "shape": question.shape,
        "parameters": {"binary_data_size": len(data)},
    }
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    return header + data, {_HEADER: str(len(header)), "Content-Type": "application/octet-stream"}


def json_request(question: Array, *, tensor: str = "x") -> tuple[bytes, dict[str, str]]:
    """Returns body and headers of the same request in JSON."""
    entry = {"name": tensor, "datatype": "FP32", "shape": question.shape, "data": question.ravel().tolist()}
    return json.dumps({"inputs": [entry]}).encode(), {"Content-Type": "application/json"}
