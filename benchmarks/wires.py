"""How a server is asked, and how its answer is read: the V2 protocol, or a body that is one tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import orjson

from benchmarks.client import binary_request
from benchmarks.models import Array
from benchmarks.workloads import Workload

_HEADER: Final = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Request:
    """What is posted."""

    path: str
    body: bytes
    headers: Mapping[str, str]


class Wire(Protocol):
    """One way to ask for `y` of a workload's question; `form` is `json` or `binary`."""

    def request(self, workload: Workload, form: str) -> Request:
        """Returns what to post."""

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Array:
        """Reads an answer; header names are in lower case. Raises ValueError or KeyError where it is none."""


@dataclass(frozen=True, slots=True)
class V2:
    """The Open Inference Protocol: tensors as JSON, or as bytes after the JSON."""

    def request(self, workload: Workload, form: str) -> Request:
        """Returns what to post."""
        if form == "binary":
            body, headers = binary_request(workload.question)
        else:
            entry = {"name": "x", "datatype": "FP32", "shape": workload.question.shape, "data": _flat(workload)}
            body, headers = _encode({"inputs": [entry]}), {"Content-Type": "application/json"}
        return Request(f"/v2/models/{workload.name}/infer", body, headers)

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Array:
        """Reads the first output."""
        if (stated := headers.get(_HEADER)) is None:
            output = json.loads(body)["outputs"][0]
            return np.array(output["data"], np.float32).reshape(output["shape"])
        length = int(stated)
        output = json.loads(body[:length])["outputs"][0]
        return np.frombuffer(body[length:], np.float32).reshape(output["shape"])


@dataclass(frozen=True, slots=True)
class OneTensor:
    """What people write by hand: `{"shape": […], "data": […]}` both ways, or nothing but the tensor's bytes."""

    shape: tuple[int, ...]
    """Of the answer, which bytes do not say."""
    path: str = "/predict"

    def request(self, workload: Workload, form: str) -> Request:
        """Returns what to post."""
        if form == "binary":
            return Request(self.path, workload.question.tobytes(), {"Content-Type": "application/octet-stream"})
        body = _encode({"shape": workload.question.shape, "data": _flat(workload)})
        return Request(self.path, body, {"Content-Type": "application/json"})

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Array:
        """Reads the tensor."""
        if headers.get("content-type", "").startswith("application/json"):
            document = json.loads(body)
            return np.array(document["data"], np.float32).reshape(document["shape"])
        return np.frombuffer(body, np.float32).reshape(self.shape)


def _flat(workload: Workload) -> Array:
    return workload.question.ravel()


def _encode(document: object) -> bytes:
    """Writes each number with the digits that a float32 needs: about 8 MB for 3x512x512."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
