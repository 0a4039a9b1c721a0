"""The guard in front of all gRPC calls: who may make which is decided before a message is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from modelhost.api.access import Guard, needs_of_call
from modelhost.api.rpc.errors import abort
from modelhost.api.rpc.receiving import Call
from modelhost.errors import Forbidden, Unauthenticated


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
            self._guard.admit(sent, needs_of_call(details.method.rpartition("/")[2]))
        except (Unauthenticated, Forbidden) as error:
            return grpc.stream_stream_rpc_method_handler(_refusing(error.with_traceback(None)))
        return await continuation(details)


def _refusing(error: Unauthenticated | Forbidden) -> Callable[[object, Call], Awaitable[None]]:
    async def handler(_: object, call: Call) -> None:
        await abort(call, error)

    return handler
