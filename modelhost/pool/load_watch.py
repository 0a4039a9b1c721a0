"""The time that one load may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from modelhost.errors import Overloaded
from modelhost.pool.key import ModelKey
from modelhost.runtime.base import CancelToken
from modelhost.units import format_duration

#: What is told to stop has so long to do so; ONNX Runtime looks between the steps of a load.
_GRACE_S: Final = 2.0


class LoadWatch:
    """Stops a load after `timeout_s`, and tells `overdue` where it goes on all the same. Event-loop thread."""

    def __init__(
        self, key: ModelKey, timeout_s: float, cancel: CancelToken, overdue: Callable[[LoadWatch], None]
    ) -> None:
        self._key, self._timeout_s, self._cancel, self._overdue = key, timeout_s, cancel, overdue
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer = self._loop.call_later(timeout_s, self._stop)

    def _stop(self) -> None:
        self._cancel.cancel()
        self._timer = self._loop.call_later(_GRACE_S, self._overdue, self)

    def end(self) -> None:
        """Says that the load has ended."""
        self._timer.cancel()

    def text(self) -> str:
        """Says what goes on."""
        took = format_duration(self._loop.time() - self._began)
        limit = format_duration(self._timeout_s)
        return f"the load of {self._key} has taken {took}, pool.load_timeout_s is {limit}, and it cannot be stopped"

    def refusal(self, key: ModelKey) -> Overloaded:
        """Returns what somebody is told who wants a model that is not loaded."""
        text = f"{key} cannot be loaded now: {self.text()}"
        return Overloaded("the queue for models", waiting=1, limit=1, text=text, model=str(key))
