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

_KEYS: Final = frozenset({"at", "host", "memory", "bar", "totals", "models", "events"})


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
        if not isinstance(answer, dict) or not answer.keys() >= _KEYS:
            raise RequestFailed(
                f"/monitor of {self.url} is not as expected: the host's version is another than this command's",
                status=200,
            )
        return answer

    def search(self, text: str) -> dict[str, Any]:
        """Returns the models that the repository has whose names match. Raises RequestFailed."""
        query = urlencode({"search": text, "offset": 0, "limit": _FOUND_AT_MOST})
        answer: dict[str, Any] = self._ask(f"/monitor/models?{query}")
        return answer

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
        recovered: dict[str, Any] | None = self._act("/memory/cleanup", {})["recovered"]
        return recovered

    def _ask(self, path: str) -> Any:
        return request(self.url, path, key=self._key, timeout_s=_LOOK_TIMEOUT_S)

    def _act(self, path: str, body: dict[str, Any]) -> Any:
        return request(self.url, path, body, key=self._key, timeout_s=_ACT_TIMEOUT_S)
