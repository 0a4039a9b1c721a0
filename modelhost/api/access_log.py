"""A line of the log for each request, for those who want that; see logs.py for its form."""

from __future__ import annotations

import logging
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelhost.api import request_ids
from modelhost.api.answers import Answer
from modelhost.api.exchange import Exchange
from modelhost.api.heads import path_of

log = logging.getLogger("modelhost.access")

#: Where a request over ASGI has the name of its key.
KEY_NAME: Final = "modelhost.key"


class AccessLog:
    """A line for each request, whichever way it was answered. Event-loop thread."""

    async def watch(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Has the application answer a request, and writes its line."""
        began_ns = time.perf_counter_ns()
        status, size_bytes = 0, 0

        async def note(message: Message) -> None:
            nonlocal status, size_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, note)
        finally:
            self._write(scope["method"], scope["path"], status, size_bytes, began_ns, scope.get(KEY_NAME))

    def note(self, exchange: Exchange, answer: Answer) -> None:
        """Writes the line of a request that was answered on the socket."""
        request_id = next((value.decode() for key, value in answer.extra if key == request_ids.RAW_HEADER), None)
        self._write(
            "POST",
            path_of(exchange.target),
            answer.status,
            len(answer.body),
            exchange.timing.arrived_ns,
            exchange.key_name,
            request_id or exchange.request_id,
        )

    def note_call(self, method: str, status: str, began_ns: int, key: str | None) -> None:
        """Writes the line of a gRPC call, whose messages are not counted."""
        self._write("gRPC", method, status, 0, began_ns, key)

    def _write(
        self,
        method: str,
        path: str,
        status: int | str,
        size_bytes: int,
        began_ns: int,
        key: str | None,
        request_id: str | None = None,
    ) -> None:
        ms = (time.perf_counter_ns() - began_ns) * 1e-6
        fields: dict[str, object] = {
            "method": method,
            "path": path,
            "status": status,
            "bytes": size_bytes,
            "ms": round(ms, 3),
        }
        fields["request_id"] = request_id or request_ids.current()
        if key is not None:
            fields["key"] = key
        who = "" if key is None else f", key {key}"
        log.info("%s %s %s, %d bytes, %.1f ms%s", method, path, status, size_bytes, ms, who, extra=fields)
