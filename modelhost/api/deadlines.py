"""The time that a request, or one stage of it, may take."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from modelhost.errors import DeadlineExceeded

log = logging.getLogger("modelhost")


@asynccontextmanager
async def within(what: str, *, started: float, deadline: float) -> AsyncIterator[None]:
    """Ends what is in the scope at `deadline`, on the event loop's clock; `started` is when the request came.

    Raises DeadlineExceeded, which says that `what` took too long.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(deadline) as limit:
            yield
    except TimeoutError:
        if not limit.expired():  # a file system's, say
            raise
        raise DeadlineExceeded(what, waited_s=max(0.0, loop.time() - started)) from None


class Expiring(Protocol):
    """What has its time."""

    def expire(self) -> None:
        """Is called when that is over."""


E = TypeVar("E", bound=Expiring)


class Expiries(Generic[E]):
    """Who is still at work, and until when: one timer for all, as most end long before. Event-loop thread."""

    def __init__(self) -> None:
        self._until: dict[E, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf

    def __len__(self) -> int:
        return len(self._until)

    def __iter__(self) -> Iterator[E]:
        return iter(tuple(self._until))

    def add(self, who: E, remaining_s: float) -> None:
        """Has `who` expire in so long, unless it is discarded before."""
        until = asyncio.get_running_loop().time() + remaining_s
        self._until[who] = until
        if until < self._looks_at:
            self._look_at(until)

    def discard(self, who: E) -> None:
        """Says that `who` is done; harmless where it is, or has expired."""
        self._until.pop(who, None)

    def close(self) -> None:
        """Has nobody expire any more."""
        self._until.clear()
        self._look_at(math.inf)

    def _look_at(self, time: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = time
        self._timer = None if time == math.inf else asyncio.get_running_loop().call_at(time, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        expired = [who for who, until in self._until.items() if until <= now]
        for who in expired:
            del self._until[who]
        self._look_at(min(self._until.values(), default=math.inf))
        for who in expired:
            try:
                who.expire()
            except Exception:  # the others' time is over all the same
                log.exception("the end of a request's time could not be told")
