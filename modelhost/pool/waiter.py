"""One request that waits for a model: a hand-over that answers whether it was taken."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """Waits for one value or error. Event-loop thread only."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    @property
    def is_waiting(self) -> bool:
        """Whether somebody is still there to take what is handed over."""
        return not self._future.done()

    def set(self, value: T) -> bool:
        """Hands `value` over; returns False, and nothing is taken, where the waiter has left."""
        if self._future.done():
            return False
        self._future.set_result(value)
        return True

    def fail(self, error: BaseException) -> bool:
        """Hands an error over; returns False where the waiter has left."""
        if self._future.done():
            return False
        self._future.set_exception(error)
        return True

    async def wait(self) -> T:
        """Waits. When cancelled after a hand-over, `taken` still has the value: give it back."""
        return await self._future

    def leave(self) -> T | None:
        """Ends the waiting; returns what had already been handed over, for the caller to give back."""
        if self._future.cancel() or self._future.cancelled() or self._future.exception() is not None:
            return None
        return self._future.result()
