"""Server-sent events over ASGI: an answer that ends when the client leaves, the host drains, or nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from modelhost.api.disconnect import DisconnectWatch
from modelhost.monitor.viewers import Viewer

#: In a scope: that the request was HEAD, and wants no body.
IS_HEAD: Final = "modelhost.is_head"

#: In a scope: what its connection calls a stream, see connection.Streaming. Not there behind other servers.
BEGIN_STREAM: Final = "modelhost.begin_stream"

#: A client that takes nothing for so long is left: it would be shown what is over.
SLOW_S: Final = 10.0

#: Proxies that would collect the answer to its end are told not to.
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

_END: Final[Message] = {"type": "http.response.body", "body": b"", "more_body": False}


class EventStream(Response):
    """Sends what a viewer is shown; `join` makes the viewer when it begins, and may raise a refusal."""

    media_type = "text/event-stream"

    def __init__(self, join: Callable[[], Viewer]) -> None:
        self.status_code, self.background = 200, None
        self.init_headers(_HEADERS)  # none for a length: there is no body yet
        self._join = join

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, to the end."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if scope.get(IS_HEAD):
            await send(start)
            await send(_END)
            return
        viewer = self._join()
        begin_stream = scope.get(BEGIN_STREAM)
        if begin_stream is not None:
            viewer.cut_off = begin_stream()
        try:
            with DisconnectWatch(receive):
                await send(start)
                await self._send_all(viewer, send)
                await send(_END)
        finally:
            viewer.leave()

    async def _send_all(self, viewer: Viewer, send: Send) -> None:
        async with contextlib.aclosing(viewer.chunks()) as chunks:
            async for chunk in chunks:
                try:
                    async with asyncio.timeout(SLOW_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                except TimeoutError:
                    viewer.cut_off()
                    return
