"""The cluster's front: an ASGI application that passes requests to replicas and their answers back, byte by byte.

It reads heads only: who asks, for which model, how long the body is. What is in a body, replicas decode. Event-loop
thread.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from modelhost.api import errors, request_ids
from modelhost.api.access import Guard, check_origin
from modelhost.api.body import ByteBudget, ByteHold
from modelhost.cluster.attempts import Replicas, answer
from modelhost.cluster.messages import Answered, Asked
from modelhost.cluster.whole import Merge, merge_for, model_of, one_of
from modelhost.config import Settings
from modelhost.errors import (
    DeadlineExceeded,
    Forbidden,
    HostStarting,
    InvalidRequest,
    ModelHostError,
    RequestTooLarge,
    Unauthenticated,
)
from modelhost.host import Budgets

#: A replica that does not answer for so long is left out of what all are asked; one that unloads has more time.
_QUICK_S: Final = 5.0

#: Bodies that are here at one moment: so many of the largest, and at least so many bytes.
_BODIES = 8
_LEAST_BODIES_BYTES: Final = 64 << 20

_MAX_WAITING: Final = 512

#: Has no end, and what is passed here has.
_STREAM: Final = "/monitor/stream"


class Ingress:
    """The application. `share_bytes` is one replica's memory: it says how large a body may be."""

    def __init__(self, replicas: Replicas, settings: Settings, *, share_bytes: int, guard: Guard | None = None) -> None:
        self._replicas, self._guard, self._server = replicas, guard, settings.server
        self._request_bytes = Budgets.resolve(settings, limit_bytes=share_bytes, usage_bytes=0).request_bytes
        self._bodies = ByteBudget(max(_BODIES * self._request_bytes, _LEAST_BODIES_BYTES), max_waiting=_MAX_WAITING)
        self._slow_s = settings.pool.wait_timeout_s + _QUICK_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        asked = Asked.of(scope)
        sent_id = asked.header(request_ids.RAW_HEADER)
        request_ids.begin(None if sent_id is None else sent_id.decode("latin-1"))
        try:
            found = await self._answer(asked, scope, receive)
        except ModelHostError as error:
            await errors.respond(error)(scope, receive, send)
        except Exception as error:
            await errors.respond_unexpected(asked.method, asked.path, error)(scope, receive, send)
        else:
            await _send(found, send)

    async def _answer(self, asked: Asked, scope: Scope, receive: Receive) -> Answered | Response:
        at_root = {**scope, "path": asked.path, "raw_path": asked.raw_path}
        if self._guard is not None:
            self._guard.check(at_root)
        if asked.method == "GET" and asked.path == _STREAM:
            return _no_stream()
        merge = merge_for(asked.method, asked.path)
        if merge is not None:
            check_origin(at_root)
        with self._bodies.hold() as hold:
            body = await self._body(asked, receive, hold)
            if merge is not None:
                return await self._ask_all(merge, asked, body)
            timeout_s = self._server.request_timeout_s
            return await answer(self._replicas, model_of(asked.path), asked, body, timeout_s=timeout_s)

    async def _ask_all(self, merge: Merge, asked: Asked, body: bytes) -> Answered:
        timeout_s = _QUICK_S if asked.method in ("GET", "HEAD") else self._slow_s
        answers = await self._replicas.ask_all(asked, body, timeout_s=timeout_s)
        if not answers:
            raise HostStarting("no replica answers: they are being started, or started again")
        return one_of(merge, answers, body)

    async def _body(self, asked: Asked, receive: Receive, hold: ByteHold) -> bytes:
        """Reads the body, its memory claimed before it comes. Raises what a host would refuse it with."""
        stated = asked.header(b"content-length")
        if stated is None:
            length = self._request_bytes if asked.header(b"transfer-encoding") is not None else 0
        elif stated.isdigit():
            length = int(stated)
        else:
            raise InvalidRequest(f"Content-Length: expected a number of bytes, got {stated.decode('latin-1')!r}")
        self._check(length)
        if length:
            await hold.grow(length, what="this body has", advice="")
        loop = asyncio.get_running_loop()
        began, pieces, received = loop.time(), list[bytes](), 0
        try:
            async with asyncio.timeout(self._server.request_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise asyncio.CancelledError  # nobody is there to answer
                    piece: bytes = message.get("body", b"")
                    received += len(piece)
                    self._check(received)
                    pieces.append(piece)
                    if not message.get("more_body"):
                        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except TimeoutError:
            raise DeadlineExceeded("receiving the body", waited_s=loop.time() - began) from None

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._request_bytes:
            raise RequestTooLarge("the body has at least", size_bytes=size_bytes, limit_bytes=self._request_bytes)


async def _send(found: Answered | Response, send: Send) -> None:
    if isinstance(found, Response):
        headers, status, body = found.raw_headers, found.status_code, bytes(found.body)
    else:
        headers, status, body = list(found.headers), found.status, found.body
    # The length is that of the body as it is now, merged or not; the id is added by what is in front of us.
    kept = [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"x-request-id")]
    kept.append((b"content-length", b"%d" % len(body)))
    start: Message = {"type": "http.response.start", "status": status, "headers": kept}
    await send(start)
    await send({"type": "http.response.body", "body": body})


def _no_stream() -> Response:
    text = f"{_STREAM} is one host's: ask for /monitor again and again, which is the whole cluster's"
    return errors.JsonResponse({"error": text, "code": "http"}, 501)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


__all__ = ["Forbidden", "Ingress", "Unauthenticated"]
