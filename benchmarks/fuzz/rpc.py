"""Messages of gRPC whose bytes are changed; needs the extra `modelhost[grpc]`."""

from __future__ import annotations

import struct
from typing import Any, Final

import grpc

from benchmarks.fuzz.mutate import Mutator
from benchmarks.fuzz.wire import TIMEOUT_S, Finding
from modelhost.api.rpc.messages import METHODS, SERVICE

#: Of methods that take messages of their own form each has its turn; infer has most.
_METHODS: Final = (
    *("ModelInfer",) * 6,
    *("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady", "ServerLive", "ServerReady", "ServerMetadata"),
    *("RepositoryIndex", "RepositoryModelLoad"),
)
_REFUSALS: Final = frozenset(
    {
        *(grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED),
        *(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED),
    }
)


class Calls:
    """One connection. One thread's."""

    def __init__(self, address: str, mutator: Mutator) -> None:
        self._mutator = mutator
        self._channel = grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._turn = 0
        self._seeds = {method: [kind().SerializeToString(), *_named(kind)] for method, (kind, _) in METHODS.items()}
        self._seeds["ModelInfer"] = _inferences()

    def call(self) -> tuple[str, Finding | None]:
        """Makes a call; returns its status, and what is wrong with it."""
        method = _METHODS[self._turn % len(_METHODS)]
        self._turn += 1
        data = self._mutator.message_bytes(self._seeds[method])
        try:
            self._channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            found: Any = error
            status = found.code()
            text = f"gRPC {method}: {status.name}: {found.details()}"
            return f"grpc {status.name}", None if status in _REFUSALS else Finding(text, data)
        return "grpc OK", None


def _named(kind: Any) -> list[bytes]:
    """Returns messages with a model's name, where they have a field for it."""
    fields = {field.name for field in kind.DESCRIPTOR.fields}
    return [
        kind(**{field: name}).SerializeToString()
        for field in ("name", "model_name")
        if field in fields
        for name in ("digits", "wine", "nothing")
    ]


def _inferences() -> list[bytes]:
    kind = METHODS["ModelInfer"][0]
    raw = kind(model_name="digits", id="7")
    raw.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    raw.raw_input_contents.append(struct.pack("<64f", *range(64)))
    typed = kind(model_name="wine", model_version="1")
    typed.inputs.add(name="measurements", datatype="FP32", shape=[1, 13]).contents.fp32_contents.extend(range(13))
    typed.outputs.add(name="label")
    typed.parameters["timeout"].int64_param = 2_000_000
    texts = kind(model_name="iris_petals")
    texts.inputs.add(name="species", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"setosa")
    texts.inputs.add(name="sepal", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([5.0, 3.0])
    return [message.SerializeToString() for message in (raw, typed, texts)]
