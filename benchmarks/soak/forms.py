"""Questions in the forms that clients send them in, and what an answer in each form says."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.soak.models import Case, Question, Tensors, Values
from benchmarks.soak.wire import Reply

_HEADER: Final = "Inference-Header-Content-Length"
_DATATYPES: Final = {"f": "FP32", "i": "INT64", "O": "BYTES"}
_DTYPES: Final[Mapping[str, Any]] = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}

FORMS: Final = ("json", "binary", "v1", "gzip")


@dataclass(frozen=True, slots=True)
class Request:
    """A question, ready to be sent."""

    case: Case
    question: Question
    form: str
    data: bytes


def request(case: Case, question: Question, form: str) -> Request:
    """Returns a question in a form of HTTP."""
    if form == "v1":
        document = {"inputs": {name: value.tolist() for name, value in question.inputs.items()}}
        return Request(case, question, form, post(f"/v1/models/{case.name}:predict", json.dumps(document).encode()))
    if form == "binary":
        body, length = _binary(question.inputs)
        data = post(f"/v2/models/{case.name}/infer", body, f"{_HEADER}: {length}")
        return Request(case, question, form, data)
    inputs = [_entry(name, value) | {"data": value.ravel().tolist()} for name, value in question.inputs.items()]
    body = json.dumps({"inputs": inputs}).encode()
    headers = []
    if form == "gzip":
        body, headers = gzip.compress(body, 1), ["Content-Encoding: gzip", "Accept-Encoding: gzip"]
    return Request(case, question, form, post(f"/v2/models/{case.name}/infer", body, *headers))


def post(path: str, body: bytes = b"", *headers: str) -> bytes:
    """Returns the bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: soak", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def outputs(reply: Reply, asked: Request) -> Tensors:
    """Returns the outputs in an answer of status 200. Raises ValueError or KeyError where it has another form."""
    body = gzip.decompress(reply.body) if reply.headers.get("content-encoding") == "gzip" else reply.body
    if asked.form == "v1":
        found = json.loads(body)["outputs"]
        names = list(asked.question.answers[0])
        return {names[0]: found} if len(names) == 1 else dict(found)
    length = reply.headers.get(_HEADER.lower())
    document = json.loads(body if length is None else body[: int(length)])
    raw = memoryview(b"" if length is None else body[int(length) :])
    values: Tensors = {}
    for entry in document["outputs"]:
        dtype = _DTYPES[entry["datatype"]]
        if "data" in entry:
            tensor = np.array(entry["data"], dtype)
        else:
            size = entry["parameters"]["binary_data_size"]
            tensor, raw = unpacked(raw[:size], entry["datatype"]), raw[size:]
        values[entry["name"]] = tensor.reshape(entry["shape"])
    if len(raw):
        raise ValueError(f"{len(raw)} bytes behind the last output")
    return values


def code(reply: Reply) -> str:
    """Returns what a refusal is counted as: its status and its code."""
    try:
        return f"{reply.status} {json.loads(reply.body)['code']}"
    except (ValueError, KeyError, TypeError):
        return f"{reply.status} without a code"


def packed(value: Values) -> bytes:
    """Returns a tensor as raw bytes."""
    if value.dtype == object:
        return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, value.ravel()))
    data: bytes = np.ascontiguousarray(value).tobytes()
    return data


def unpacked(raw: memoryview | bytes, datatype: str) -> Values:
    """Returns a tensor from raw bytes, flat."""
    if datatype != "BYTES":
        return np.frombuffer(raw, _DTYPES[datatype])
    texts, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        texts.append(bytes(raw[at + 4 : at + 4 + size]).decode())
        at += 4 + size
    return np.array(texts, object)


def datatype(value: Values) -> str:
    """Returns the protocol's name of a tensor's type."""
    return _DATATYPES[value.dtype.kind]


def _entry(name: str, value: Values) -> dict[str, Any]:
    return {"name": name, "datatype": datatype(value), "shape": list(value.shape)}


def _binary(inputs: Tensors) -> tuple[bytes, int]:
    parts = [packed(value) for value in inputs.values()]
    entries = [
        _entry(name, value) | {"parameters": {"binary_data_size": len(part)}}
        for (name, value), part in zip(inputs.items(), parts, strict=True)
    ]
    text = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    return text + b"".join(parts), len(text)
