"""Where `modelhost top` has its figures from: `GET /monitor` of a host, and what can be asked of it."""

from __future__ import annotations

from typing import Any, Final, Protocol
from urllib.parse import quote, urlencode

from modelhost.cli.client import RequestFailed, request

#: A host that is this late has more to do than to be looked at.
_LOOK_TIMEOUT_S: Final = 10.0
#: A load may wait for memory, and prepare the model first.
_ACT_TIMEOUT_S: Final = 300.0
_FOUND_AT_MOST: Final = 50

#: What the view needs of the feed, by part. A host of another version may have more, and should have no less.
_PARTS: Final = {
    "host": {"version", "ready", "draining", "uptime_s"},
    "memory": {
        *("limit_bytes", "limit_source", "baseline_bytes", "usage_bytes", "available_bytes", "reserved_bytes"),
        *("warning_bytes", "critical_bytes", "level", "page_cache"),
    },
    "bar": {"host_bytes", "models_bytes", "loading_bytes", "activations_bytes", "weights_cached_bytes"},
    "totals": {
        *("requests_per_s", "failures_per_s", "p50_ms", "p99_ms", "loads", "evictions", "refusals", "cold_starts"),
        *("in_flight", "waiting"),
    },
}
_LISTS: Final = {
    "models": {
        *("name", "version", "state", "committed_bytes", "leases", "pinned", "last_used", "weights_bytes"),
        *("cached_bytes", "failures", "requests_per_s", "p50_ms", "p99_ms", "loads", "evictions"),
    },
    "events": {"id", "at", "kind", "level", "usage_bytes", "cause"},
}


class Source(Protocol):
    """What the view asks; each call waits, and raises RequestFailed."""

    url: str

    def look(self) -> dict[str, Any]:
        """Returns the feed's object of now."""

    def search(self, text: str) -> dict[str, Any]:
        """Returns the models that the repository has whose names match, at most 50, and how many there are."""

    def load(self, name: str) -> None:
        """Has a model loaded; returns when it is ready."""

    def unload(self, name: str) -> None:
        """Has all versions of a model unloaded; returns when their memory is back."""

    def pin(self, name: str, *, pinned: bool) -> None:
        """Has a model kept, or no longer, until the host ends."""

    def clean_up(self) -> dict[str, Any] | None:
        """Has all idle models unloaded; returns what came back, None where nothing could."""


class HostSource:
    """A host behind its URL. Any thread; each call is a request of its own."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self._key = key

    def look(self) -> dict[str, Any]:
        """Returns the feed's object of now. Raises RequestFailed."""
        try:
            answer = self._ask("/monitor")
        except RequestFailed as error:
            if error.status in (404, 405):
                raise RequestFailed(
                    f"what answers at {self.url} has no /monitor: a host older than this command (`modelhost memory` "
                    f"shows what that has), or another server",
                    status=error.status,
                ) from None
            raise
        return self._expected(answer, _is_feed(answer))

    def search(self, text: str) -> dict[str, Any]:
        """Returns the models that the repository has whose names match. Raises RequestFailed."""
        query = urlencode({"search": text, "offset": 0, "limit": _FOUND_AT_MOST})
        answer = self._ask(f"/monitor/models?{query}")
        is_page = "total" in answer and _have(answer.get("models"), {"name", "versions", "state", "pinned"})
        return self._expected(answer, is_page)

    def load(self, name: str) -> None:
        """Has a model loaded; returns when it is ready. Raises RequestFailed."""
        self._act(f"/v2/repository/models/{quote(name, safe='')}/load", {})

    def unload(self, name: str) -> None:
        """Has all versions of a model unloaded. Raises RequestFailed."""
        self._act(f"/v2/repository/models/{quote(name, safe='')}/unload", {})

    def pin(self, name: str, *, pinned: bool) -> None:
        """Has a model kept, or no longer. Raises RequestFailed."""
        self._act(f"/monitor/models/{quote(name, safe='')}/pin", {"pinned": pinned})

    def clean_up(self) -> dict[str, Any] | None:
        """Has all idle models unloaded; returns what came back. Raises RequestFailed."""
        answer = self._act("/memory/cleanup", {})
        recovered: dict[str, Any] | None = answer.get("recovered")
        self._expected(answer, recovered is None or _has(recovered, {"freed_bytes"}))
        return recovered

    def _ask(self, path: str) -> dict[str, Any]:
        return self._object(request(self.url, path, key=self._key, timeout_s=_LOOK_TIMEOUT_S))

    def _act(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._object(request(self.url, path, body, key=self._key, timeout_s=_ACT_TIMEOUT_S))

    def _object(self, answer: Any) -> dict[str, Any]:
        return self._expected(answer, isinstance(answer, dict))

    def _expected(self, answer: Any, is_expected: bool) -> dict[str, Any]:
        if not is_expected:
            raise RequestFailed(
                f"{self.url} answers otherwise than expected: a host of another version than this command, "
                f"or another server",
                status=200,
            )
        found: dict[str, Any] = answer
        return found


def _has(part: Any, keys: set[str]) -> bool:
    """Whether it is an object with all of these keys."""
    return isinstance(part, dict) and part.keys() >= keys


def _have(parts: Any, keys: set[str]) -> bool:
    """Whether it is a list of such objects."""
    return isinstance(parts, list) and all(_has(part, keys) for part in parts)


def _is_feed(answer: dict[str, Any]) -> bool:
    return (
        "at" in answer
        and all(_has(answer.get(name), keys) for name, keys in _PARTS.items())
        and all(_have(answer.get(name), keys) for name, keys in _LISTS.items())
    )
