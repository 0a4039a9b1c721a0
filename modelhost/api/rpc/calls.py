"""The service: one handler for each of its methods, and words for what other servers of it have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import grpc

from modelhost.api.body import ByteBudget
from modelhost.api.rpc import views
from modelhost.api.rpc.errors import abort, known
from modelhost.api.rpc.infer import InferCalls
from modelhost.api.rpc.messages import METHODS, parse
from modelhost.api.rpc.receiving import Call, Receiving
from modelhost.errors import InvalidRequest
from modelhost.host import Host

Answer = Callable[[Any], Awaitable[Any]]
Handler = Callable[[object, Call], Awaitable[None]]

#: All requests but those for inference are a few words.
_MAX_MESSAGE_BYTES: Final = 1 << 20

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
    "TraceSetting": "this server writes no traces",
    "LogSettings": "this server's log is set when it starts (--log-level)",
}


def handlers(host: Host, infer: InferCalls, receiving: Receiving) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Returns the handler of each method.

    All of them read and write raw messages as if they were streams, which is the same on the wire: so that
    each decides when its message may come (see Receiving).
    """
    served = {name: _answering(name, answer, host, receiving) for name, answer in _answers(host).items()}
    served |= {"ModelInfer": infer.model_infer, "ModelStreamInfer": infer.model_stream_infer}
    served |= {name: _refusing(f"{name}: {reason}") for name, reason in UNSERVED.items()}
    return {name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in served.items()}


def _answers(host: Host) -> dict[str, Answer]:
    """Returns what answers each method that is one small request and one answer."""

    async def server_live(request: Any) -> Any:
        return METHODS["ServerLive"][1](live=True)

    async def server_ready(request: Any) -> Any:
        return METHODS["ServerReady"][1](ready=host.is_ready)

    async def server_metadata(request: Any) -> Any:
        return views.server_metadata()

    async def model_ready(request: Any) -> Any:
        return await views.model_ready(host, request.name, request.version or None)

    async def model_metadata(request: Any) -> Any:
        return await views.model_metadata(host, request.name, request.version or None)

    async def model_config(request: Any) -> Any:
        return await views.model_config(host, request.name, request.version or None)

    async def model_statistics(request: Any) -> Any:
        return await views.model_statistics(host, request.name, request.version or None)

    async def repository_index(request: Any) -> Any:
        return await views.repository_index(host, only_ready=request.ready)

    async def load(request: Any) -> Any:
        _refuse_parameters(request.parameters)
        await host.pool.load(request.model_name)
        return METHODS["RepositoryModelLoad"][1]()

    async def unload(request: Any) -> Any:
        await host.pool.unload(request.model_name)
        return METHODS["RepositoryModelUnload"][1]()

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


def _refuse_parameters(parameters: Iterable[str]) -> None:
    """Refuses a load of what is not in the repository; other parameters mean nothing here."""
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            raise InvalidRequest(
                f"load parameter '{key}' is not supported: models come from the repository's directory, options "
                f"from model.toml or the settings"
            )


def _answering(name: str, answer: Answer, host: Host, receiving: Receiving) -> Handler:
    kind = METHODS[name][0]
    receive_s = host.settings.server.receive_timeout_s

    async def handler(_: object, call: Call) -> None:
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
