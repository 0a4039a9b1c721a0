"""A request as it came, and an answer as it goes: what passes between ingress and replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from starlette.types import Scope

RawHeaders: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's head. The body goes beside it, so that large ones are passed without another copy."""

    method: str
    path: str
    raw_path: bytes
    query: bytes
    headers: RawHeaders
    client: tuple[str, int] | None = None
    scheme: str = "http"

    @classmethod
    def of(cls, scope: Scope) -> Asked:
        """Takes it from a request over ASGI; the path is the one below where the application is mounted."""
        client = scope.get("client")
        root, path = scope.get("root_path", ""), scope["path"]
        raw_path: bytes = scope.get("raw_path") or path.encode()
        if root and path.startswith(root):
            path = path[len(root) :] or "/"
            raw_path = raw_path.removeprefix(root.encode()) or b"/"
        return cls(
            method=scope["method"],
            path=path,
            raw_path=raw_path,
            query=scope["query_string"],
            headers=tuple((bytes(name), bytes(value)) for name, value in scope["headers"]),
            client=None if client is None else (client[0], client[1]),
            scheme=scope.get("scheme", "http"),
        )

    def scope(self) -> dict[str, Any]:
        """Returns the scope of the same request for another application."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": self.scheme,
            "path": self.path,
            "raw_path": self.raw_path,
            "query_string": self.query,
            "root_path": "",
            "headers": list(self.headers),
            "client": self.client,
            "server": None,
            "state": {},
        }

    def header(self, name: bytes) -> bytes | None:
        """Returns the first value of a header, by its lower-case name."""
        return next((value for found, value in self.headers if found == name), None)


@dataclass(frozen=True, slots=True)
class Answered:
    """A replica's answer, byte by byte."""

    replica: str
    status: int
    headers: RawHeaders
    body: bytes
