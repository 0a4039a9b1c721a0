"""A client of the gRPC service, over a real connection, with messages from the committed descriptors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from served import Served

from modelhost.api.rpc.errors import ERROR_KEY
from modelhost.api.rpc.messages import METHODS, SERVICE, ModelInferRequest, ModelStreamInferResponse

_PATIENCE_S = 20.0


#: What is sent beside messages.
Metadata = tuple[tuple[str, str], ...]


class RpcClient:
    """One connection to a served host."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{served.app.grpc_port}",
            options=(("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)),
        )

    def close(self) -> None:
        self.channel.close()

    def call(self, method: str, timeout_s: float = _PATIENCE_S, **fields: Any) -> Any:
        """Makes a call with a request of these fields; returns its answer."""
        return self.later(method, METHODS[method][0](**fields), timeout_s).result()

    def later(self, method: str, request: Any, timeout_s: float = _PATIENCE_S, metadata: Metadata = ()) -> grpc.Future:
        """Begins a call."""
        return self.raw(method).future(request.SerializeToString(), timeout=timeout_s, metadata=metadata)

    def raw(self, method: str) -> grpc.UnaryUnaryMultiCallable:
        """Returns what sends bytes as they are."""
        kind = METHODS[method][1] if method in METHODS else None
        return self.channel.unary_unary(f"/{SERVICE}/{method}", response_deserializer=kind and kind.FromString)

    def infer(self, request: Any, timeout_s: float = _PATIENCE_S, metadata: Metadata = ()) -> Any:
        return self.later("ModelInfer", request, timeout_s, metadata).result()

    def stream(self, requests: Iterator[Any], metadata: Metadata = ()) -> Any:
        """Begins a stream; its answers come as they are iterated over."""
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelStreamInferResponse.FromString,
        )(requests, timeout=_PATIENCE_S, metadata=metadata)


@contextmanager
def client_of(served: Served) -> Iterator[RpcClient]:
    client = RpcClient(served)
    try:
        yield client
    finally:
        client.close()


def typed(name: str, field: str, values: Sequence[Any], *, datatype: str, shape: Sequence[int] | None = None) -> Any:
    """A request with one input, its elements in a field of its contents."""
    request = ModelInferRequest(model_name=name)
    tensor = request.inputs.add(name="x", datatype=datatype, shape=[len(values)] if shape is None else shape)
    getattr(tensor.contents, field).extend(values)
    return request


def raw(name: str, datatype: str, *arrays: Any, names: Sequence[str] = ("x",)) -> Any:
    """A request with inputs as raw bytes."""
    request = ModelInferRequest(model_name=name)
    for input_name, array in zip(names, arrays, strict=True):
        request.inputs.add(name=input_name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def fake_raw(name: str = "a", **parameters: int) -> Any:
    """What every fake model takes: it answers [2, 4]."""
    request = raw(name, "FP32", np.array([1, 2], np.float32))
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


def floats(answer: Any) -> list[float]:
    """The elements of the only output, raw."""
    (data,) = answer.raw_output_contents
    return np.frombuffer(data, "<f4").tolist()


def refused(call: Any) -> tuple[grpc.StatusCode, str, Mapping[str, Any]]:
    """Returns status, text and figures of what a call fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    figures = dict(error.trailing_metadata()).get(ERROR_KEY, "{}")
    return error.code(), error.details(), json.loads(figures)
