"""Requests that are for all processes of a host, whichever of them gets them: asked of all, answered as one.

What a process says of itself is merged (memory, metrics, statistics, the index); what it is told to do, all do (load,
unload, cleanup, log levels, pins). Everything else is answered by the one that was asked, as in a host of one process.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelhost.api.merging import (
    merge_history,
    merge_index,
    merge_memory,
    merge_metrics,
    merge_monitor,
    merge_statistics,
    page_limit,
)
from modelhost.api.peers import ALONE, QUICK_S, Peers, Reply
from modelhost.config import Settings
from modelhost.errors import HeldElsewhere

log = logging.getLogger("modelhost")

#: Answers, this process's own first, and the body of the request: what makes one answer of them.
Merge: TypeAlias = Callable[[Sequence[tuple[int, bytes]], bytes], bytes]

_PASSED_ON: Final = (b"authorization", b"content-type", b"x-request-id")

#: No request that is everybody's has a larger body.
_MAX_BODY_BYTES: Final = 64 << 10


def _json(merge: Callable[[Sequence[tuple[int, Any]]], Any]) -> Merge:
    return lambda said, _: json.dumps(merge(_read(said))).encode()


def _read(said: Sequence[tuple[int, bytes]]) -> list[tuple[int, Any]]:
    return [(seat, json.loads(body)) for seat, body in said]


def _index(said: Sequence[tuple[int, bytes]], asked: bytes) -> bytes:
    return json.dumps(merge_index(_read(said), page_limit(asked))).encode()


def _metrics(said: Sequence[tuple[int, bytes]], _: bytes) -> bytes:
    return merge_metrics([(seat, body.decode()) for seat, body in said]).encode()


def _own(said: Sequence[tuple[int, bytes]], _: bytes) -> bytes:
    return said[0][1]


#: What is done with the answers, by the request.
_READ: Final[Mapping[str, Merge]] = {
    "/memory": _json(merge_memory),
    "/metrics": _metrics,
    "/monitor": _json(merge_monitor),
    "/monitor/history": _json(merge_history),
}


class Together:
    """Answers for all processes. Event-loop thread; `own` is the application of this one."""

    def __init__(self, peers: Peers, own: ASGIApp, settings: Settings) -> None:
        self._peers, self._own = peers, own
        self.secret = peers.seat.board.secret
        self._slow_s = settings.pool.wait_timeout_s + QUICK_S

    def merge_for(self, scope: Scope) -> Merge | None:
        """Returns what makes one answer of all of them; None for a request that is one process's alone."""
        if any(name == ALONE for name, _ in scope["headers"]):
            return None
        method, path = scope["method"], scope["path"]
        parts = path.split("/")[1:]
        if method in ("GET", "HEAD"):
            if parts[-1] == "stats" and parts[:2] == ["v2", "models"]:
                return _json(merge_statistics)
            return _READ.get(path)
        if parts[:2] == ["v2", "repository"] and parts[-1] == "index" and len(parts) in (3, 4):
            return _index
        is_told = parts[:2] in (["v2", "repository"], ["v2", "logging"], ["memory", "cleanup"]) or parts[-1] == "pin"
        return _own if is_told else None

    async def monitor(self, own: dict[str, Any]) -> dict[str, Any]:
        """Returns the state of all processes, for those who look at this one's stream."""
        replies = await self._peers.ask("GET", b"/monitor", is_trusted=True)
        others = [(reply.seat, json.loads(reply.body)) for reply in replies if reply.status == 200]
        whole: dict[str, Any] = merge_monitor([(self._peers.seat.number, own), *others])
        return whole

    # --- for other protocols -------------------------------------------------------------------------

    async def statistics(self, own: dict[str, Any], name: str | None, version: str | None) -> dict[str, Any]:
        """Returns what requests took in all processes; `own` is what they took in this one."""
        path = "/v2/models" + "".join(f"{word}/{quote(part, safe='')}" for word, part in _named(name, version))
        others = await self._others("GET", f"{path}/stats")
        whole: dict[str, Any] = merge_statistics([(self._peers.seat.number, own), *others])
        return whole

    async def index(self, own: list[dict[str, str]], *, only_ready: bool) -> list[dict[str, str]]:
        """Returns every version in the state that says most of it."""
        others = await self._others("POST", "/v2/repository/index", {"ready": only_ready})
        whole: list[dict[str, str]] = merge_index([(self._peers.seat.number, own), *others])
        return whole

    async def load(self, name: str, load: Callable[[], Awaitable[object]]) -> None:
        """Has all processes load a model, this one first by `load`; done where one of them has what fits only once."""
        held: HeldElsewhere | None = None
        try:
            await load()
        except HeldElsewhere as error:
            held = error.with_traceback(None)
        others = await self._others("POST", f"/v2/repository/models/{quote(name, safe='')}/load", {})
        if held is not None and not others:
            raise held

    async def unload(self, name: str) -> None:
        """Has the others unload a model, which this process has done."""
        await self._others("POST", f"/v2/repository/models/{quote(name, safe='')}/unload", {})

    async def _others(self, method: str, path: str, document: Any = None) -> list[tuple[int, Any]]:
        """Returns what the others answer, those that do; who asked this process was let in."""
        body = b"" if document is None else json.dumps(document).encode()
        timeout_s = QUICK_S if method == "GET" else self._slow_s
        replies = await self._peers.ask(method, path.encode(), (), body, timeout_s=timeout_s, is_trusted=True)
        for reply in replies:
            if reply.status >= 400:
                _warn(reply)
        return [(reply.seat, json.loads(reply.body) if reply.body else None) for reply in replies if reply.status < 400]

    # --- over HTTP -----------------------------------------------------------------------------------

    async def respond(self, merge: Merge, scope: Scope, receive: Receive, send: Send) -> None:
        """Asks everybody, this process too, and answers."""
        body = await _body(receive)
        is_load = scope["path"].endswith("/load")
        if is_load:  # prepared here, once, and found by the others
            own = await self._ask_own(scope, body)
            is_theirs = own.status == 503 and _is_for_memory(own.body)
            replies = await self._ask_others(scope, body) if own.status < 400 or is_theirs else []
            if is_theirs and (done := next((reply for reply in replies if reply.status < 400), None)):
                own.status, own.body = done.status, done.body
        else:
            own, replies = await asyncio.gather(self._ask_own(scope, body), self._ask_others(scope, body))
        for reply in replies:
            if merge is _own and reply.status >= 400 > own.status:
                _warn(reply)
        good = [(reply.seat, reply.body) for reply in replies if reply.status == own.status]
        answer = own.body if own.status >= 400 else merge([(self._peers.seat.number, own.body), *good], body)
        await own.send(send, answer)

    async def _ask_own(self, scope: Scope, body: bytes) -> _Captured:
        captured = _Captured()
        await self._own(scope, _once(body), captured.take)
        return captured

    async def _ask_others(self, scope: Scope, body: bytes) -> list[Reply]:
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        headers = [(name, value) for name, value in scope["headers"] if name in _PASSED_ON]
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        timeout_s = QUICK_S if method == "GET" else self._slow_s
        return await self._peers.ask(method, target, headers, body, timeout_s=timeout_s)


def _warn(reply: Reply) -> None:
    log.warning("process %d of the host answers %d: %s", reply.seat, reply.status, reply.body[:500])


def _named(name: str | None, version: str | None) -> list[tuple[str, str]]:
    found = [("", name), ("/versions", version)]
    return [(word, part) for word, part in found if part is not None]


def _is_for_memory(answer: bytes) -> bool:
    """Whether a load was refused for memory: another process may have the model, which is enough then."""
    return bool(json.loads(answer).get("code") == HeldElsewhere.code)


class _Captured:
    """An answer of this process's own."""

    def __init__(self) -> None:
        self.status = 500
        self.body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    async def take(self, message: Message) -> None:
        """The `send` of an application."""
        if message["type"] == "http.response.start":
            self.status, self._headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    async def send(self, send: Send, body: bytes) -> None:
        """Sends it with another body."""
        headers = [(name, value) for name, value in self._headers if name.lower() != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _once(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _body(receive: Callable[[], Awaitable[Message]]) -> bytes:
    """Reads a body, as far as any such request may have one: what is over is for the routes to refuse."""
    body = b""
    while len(body) <= _MAX_BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    return body
