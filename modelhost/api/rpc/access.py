"""The guard in front of all gRPC calls: who may make which is decided before a message is asked for."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import grpc

from modelhost.api.access import Guard, needs_of_call
from modelhost.api.access_log import AccessLog
from modelhost.api.rpc.errors import abort, begin
from modelhost.api.rpc.receiving import Call
from modelhost.errors import Forbidden, Unauthenticated

_STATUSES: Final = {status.value[0]: status.name for status in grpc.StatusCode}

#: Whose key the call of this task came with.
_key_name: ContextVar[str | None] = ContextVar("key_name", default=None)


class KeyCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without a key for them, those to methods that there are not, too."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Returns the handler of a call, or one that refuses it."""
        sent = [
            value.encode("latin-1", errors="replace") if isinstance(value, str) else value
            for name, value in details.invocation_metadata or ()
            if name == "authorization"
        ]
        try:
            key = self._guard.admit(sent, needs_of_call(details.method.rpartition("/")[2]))
        except (Unauthenticated, Forbidden) as error:
            _key_name.set(error.key_name if isinstance(error, Forbidden) else None)
            return grpc.stream_stream_rpc_method_handler(_refusing(error.with_traceback(None)))
        _key_name.set(None if key is None else key.name)
        return await continuation(details)


class CallLog(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Writes a line for each call; in front of the check, so that those it refuses have one, too."""

    def __init__(self, access_log: AccessLog) -> None:
        self._access_log = access_log

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Returns the handler of a call, which writes its line at the end."""
        _key_name.set(None)
        handler = await continuation(details)
        if handler is None:  # there is no such method
            return None
        method, answer = details.method, handler.stream_stream

        async def logged(request: object, call: Call) -> None:
            began_ns, status = time.perf_counter_ns(), "OK"
            try:
                await answer(request, call)
            except BaseException:  # that an error was told, too
                code = call.code()
                status = _STATUSES.get(code, getattr(code, "name", "CANCELLED"))
                raise
            finally:
                self._access_log.note_call(method, status, began_ns, _key_name.get())

        return grpc.stream_stream_rpc_method_handler(logged)


def _refusing(error: Unauthenticated | Forbidden) -> Callable[[object, Call], Awaitable[None]]:
    async def handler(_: object, call: Call) -> None:
        begin(call)
        await abort(call, error)

    return handler
