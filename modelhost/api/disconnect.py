"""A client that has gone away ends its request."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.types import Receive

if TYPE_CHECKING:
    from modelhost.api.exchange import Exchange

#: Requests shorter than this are not watched: two tasks and a cancellation for each would cost more
#: than they could save.
_WATCH_AFTER_S = 0.02


class DisconnectWatch:
    """Cancels the task that enters it when the client disconnects; enter it after the body was read.

    `is_gone` tells that cancellation from others; the scope then ends without an exception.
    """

    __slots__ = ("_receive", "_task", "_timer", "_watcher", "is_gone")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.is_gone = False

    def __enter__(self) -> DisconnectWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            # The traceback of its cancellation has this watch in it: both would wait for a collection.
            self._watcher = None
        if self.is_gone and self._task.cancelling():
            self._task.uncancel()
            return kind is not None and issubclass(kind, asyncio.CancelledError)
        return False

    def _begin(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self._task.cancel()


class GoneWatch:
    """The same for an exchange, which knows by itself; raises ClientDisconnect where its client left before."""

    __slots__ = ("_exchange", "_task", "is_gone")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.is_gone = False

    def __enter__(self) -> GoneWatch:
        if self._exchange.is_gone:
            raise ClientDisconnect
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._exchange.on_gone = self._gone
        return self

    def _gone(self) -> None:
        self.is_gone = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._exchange.on_gone = None
        if self.is_gone and self._task.cancelling():
            self._task.uncancel()
            return kind is not None and issubclass(kind, asyncio.CancelledError)
        return False
