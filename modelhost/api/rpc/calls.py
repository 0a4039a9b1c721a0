"""The service: one handler for each of its methods, and words for what other servers of it have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import grpc

from modelhost.api import views
from modelhost.api.body import ByteBudget
from modelhost.api.repository import check_load_parameters, check_unload_parameters
from modelhost.api.rpc.errors import abort, begin, known
from modelhost.api.rpc.infer import InferCalls
from modelhost.api.rpc.messages import METHODS, parse, plain_values
from modelhost.api.rpc.receiving import Call, Receiving
from modelhost.api.together import Together
from modelhost.host import Host

Answer = Callable[[Any], Awaitable[Any]]
Handler = Callable[[object, Call], Awaitable[None]]

#: All requests but those for inference are a few words.
_MAX_MESSAGE_BYTES: Final = 1 << 20

#: Announced over HTTP only: raw contents are part of every message here, and the log's levels are not served.
_HTTP_EXTENSIONS: Final = frozenset({"binary_tensor_data", "logging"})

#: Methods of Triton's that are not served, and why.
UNSERVED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
        ),
        "this server has no shared memory regions; send tensors in the request",
    ),
    "TraceSetting": "this server's traces are set when it starts (tracing.enabled)",
    "LogSettings": "this server's log is set when it starts (--log-level)",
}


def handlers(
    host: Host, infer: InferCalls, receiving: Receiving, together: Together | None = None
) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Returns the handler of each method; `together` has the other processes of a host that is several.

    All of them read and write raw messages as if they were streams, which is the same on the wire: so that
    each decides when its message may come (see Receiving).
    """
    served = {name: _answering(name, answer, host, receiving) for name, answer in _answers(host, together).items()}
    served |= {"ModelInfer": infer.model_infer, "ModelStreamInfer": infer.model_stream_infer}
    served |= {name: _refusing(f"{name}: {reason}") for name, reason in UNSERVED.items()}
    return {name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in served.items()}


def _answers(host: Host, together: Together | None) -> dict[str, Answer]:
    """Returns what answers each method that is one small request and one answer."""

    async def server_live(request: Any) -> Any:
        return _message("ServerLive", live=True)

    async def server_ready(request: Any) -> Any:
        return _message("ServerReady", ready=host.is_ready)

    async def server_metadata(request: Any) -> Any:
        values = views.server_metadata()
        extensions = [name for name in values["extensions"] if name not in _HTTP_EXTENSIONS]
        return _message("ServerMetadata", **values | {"extensions": extensions})

    async def model_ready(request: Any) -> Any:
        return _message("ModelReady", ready=await views.model_is_ready(host, request.name, request.version or None))

    async def model_metadata(request: Any) -> Any:
        return _message("ModelMetadata", **await views.model_metadata(host, request.name, request.version or None))

    async def model_config(request: Any) -> Any:
        return _message("ModelConfig", config=await views.model_config(host, request.name, request.version or None))

    async def model_statistics(request: Any) -> Any:
        name, version = request.name or None, request.version or None
        values = await views.model_statistics(host, name, version)
        if together is not None:
            values = await together.statistics(values, name, version)
        for model in values["model_stats"]:
            del model["response_stats"]  # of streams with several answers to a request; the message is without
        return _message("ModelStatistics", **values)

    async def repository_index(request: Any) -> Any:
        parts = views.repository_index(host, views.Wanted(only_ready=request.ready))
        models = [entry async for part in parts for entry in part]
        if together is not None:
            models = await together.index(models, only_ready=request.ready)
        return _message("RepositoryIndex", models=models)

    async def load(request: Any) -> Any:
        host.check_accepting()
        check_load_parameters(plain_values(request.parameters))
        load = partial(host.pool.load, request.model_name)
        await (load() if together is None else together.load(request.model_name, load))
        return _message("RepositoryModelLoad")

    async def unload(request: Any) -> Any:
        host.check_accepting()
        check_unload_parameters(plain_values(request.parameters))
        await host.pool.unload(request.model_name)
        if together is not None:
            await together.unload(request.model_name)
        return _message("RepositoryModelUnload")

    return {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ServerMetadata": server_metadata,
        "ModelReady": model_ready,
        "ModelMetadata": model_metadata,
        "ModelConfig": model_config,
        "ModelStatistics": model_statistics,
        "RepositoryIndex": repository_index,
        "RepositoryModelLoad": load,
        "RepositoryModelUnload": unload,
    }


def _message(method: str, **values: Any) -> Any:
    """Returns the answer of `method` made from plain values, messages within it from dicts of them."""
    return METHODS[method][1](**values)


def _answering(name: str, answer: Answer, host: Host, receiving: Receiving) -> Handler:
    kind = METHODS[name][0]
    receive_s = host.settings.server.read_timeout

    async def handler(_: object, call: Call) -> None:
        begin(call)
        try:
            with ByteBudget(_MAX_MESSAGE_BYTES, max_waiting=1).hold() as hold:
                message = await receiving.receive(
                    call,
                    hold,
                    deadline=asyncio.get_running_loop().time() + receive_s,
                    max_bytes=_MAX_MESSAGE_BYTES,
                )
            answered: bytes = (await answer(parse(kind, message))).SerializeToString()
        except Exception as caught:
            failed = known(caught, name)
        else:
            await call.write(answered)
            return
        await abort(call, failed)

    return handler


def _refusing(text: str) -> Handler:
    async def handler(_: object, call: Call) -> None:
        await call.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return handler
