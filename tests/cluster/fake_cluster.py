"""Replicas of a cluster in one process, found as the router finds them, and lost when a test says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from served import fake_host

from modelhost.cluster.attempts import ReplicaLost
from modelhost.cluster.ingress import Ingress
from modelhost.cluster.messages import Answered, Asked
from modelhost.cluster.replica import Replica, respond
from modelhost.cluster.routing import Standing, ranks
from modelhost.config import Settings
from modelhost.runtime.fake import FakeScript

_LIMIT_BYTES = 256 << 20


class FakeCluster:
    """Some replicas of fake models; implements attempts.Replicas, and notes who was asked."""

    def __init__(self, directory: Path, scripts: Mapping[str, dict[str, FakeScript]], **sections: Any) -> None:
        self.asked: list[str] = []
        self.lost: set[str] = set()
        """Replicas that are gone, and that nobody has noticed yet."""
        self._stack = AsyncExitStack()
        self.replicas = {
            name: Replica(name, Settings(), make_host=lambda _, mine=mine: fake_host(directory, mine, **sections))
            for name, mine in scripts.items()
        }
        settings = next(iter(self.replicas.values())).host.settings
        self.ingress = Ingress(self, settings, share_bytes=_LIMIT_BYTES)

    async def __aenter__(self) -> FakeCluster:
        for replica in self.replicas.values():
            await replica.open()
            self._stack.push_async_callback(replica.close)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def ask(self, model: str, asked: Asked, body: bytes, refused_by: Collection[str]) -> Answered | None:
        standings = {name: Standing.of(replica.standing()) for name, replica in self.replicas.items()}
        name = ranks(model, standings, {}, avoided=refused_by)[0][0]
        self.asked.append(name)
        if name in self.lost:
            del self.replicas[name]  # as the router does, once it was told
            raise ReplicaLost(name)
        return await self.replicas[name].answer(asked, body, refused_by=refused_by)

    async def ask_all(self, asked: Asked, body: bytes, *, timeout_s: float) -> list[Answered]:
        found = await asyncio.gather(*(replica.answer(asked, body) for replica in self.replicas.values()))
        return [one for one in found if one is not None]

    async def request(
        self, method: str, path: str, body: object = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """Asks the ingress over ASGI."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        asked = asked_for(method, path, data, headers)
        status, found, answer = await respond(self.ingress, asked, data)
        return status, dict(found), answer


def asked_for(method: str, path: str, body: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()) -> Asked:
    """Returns a request's head, with the length of its body."""
    length = (b"content-length", b"%d" % len(body))
    return Asked(method, path, path.encode(), b"", (length, *headers))
