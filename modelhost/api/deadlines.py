"""The time that one stage of a request may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from modelhost.errors import DeadlineExceeded


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
