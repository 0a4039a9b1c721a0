"""From a decoded request to the bytes of its answer: lease, run, encode, within the budget that HTTP has too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from modelhost.api.body import ByteBudget, ByteHold
from modelhost.api.codec import InferRequest
from modelhost.api.infer import (
    ANSWER_TAKES,
    ENCODE_AT_ONCE_BYTES,
    FEWER_ROWS,
    InferRoutes,
    kept_bytes,
    no_room,
)
from modelhost.api.rpc.encode import MessageEncoding, Outputs
from modelhost.errors import RequestTooLarge
from modelhost.host import Host
from modelhost.pool import Kept, Lease
from modelhost.repository import ModelFile
from modelhost.tensors import Array

T = TypeVar("T")


class Running:
    """Runs requests on the host that `routes` answers for. Event-loop thread."""

    def __init__(self, host: Host, routes: InferRoutes) -> None:
        self._host, self._routes = host, routes

    @property
    def budget(self) -> ByteBudget:
        """What all requests together may hold, those over HTTP included."""
        return self._routes.budget

    def refuse_exhausted(self) -> None:
        """Refuses work while usage is within `memory.min_free` of the limit."""
        self._routes.refuse_exhausted()

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Works on an inference thread."""
        return await self._routes.on_thread(work)

    def keep(self, decoded: InferRequest, message: bytes, hold: ByteHold) -> None:
        """Gives back of the claim what the tensors do not hold."""
        hold.shrink(kept_bytes(decoded, len(message)))

    async def run(
        self, file: ModelFile, decoded: InferRequest, hold: ByteHold, encoding: MessageEncoding, *, deadline: float
    ) -> bytes:
        """Returns the answer, claimed in `hold` where it is large. `deadline` is on the event loop's clock."""
        lease = await self._host.pool.acquire_file(file, deadline=deadline)
        try:
            return await self._run(lease, decoded, hold, encoding, deadline)
        finally:
            lease.end()

    async def _run(
        self, lease: Lease, decoded: InferRequest, hold: ByteHold, encoding: MessageEncoding, deadline: float
    ) -> bytes:
        """Runs and encodes on an inference thread; the memory for a large answer is claimed in between."""
        key, specs, asked, budget = lease.key, lease.outputs, decoded.outputs, self.budget

        def finish(arrays: list[Array]) -> bytes | Kept[tuple[Outputs, int]]:
            results = [(out, specs[out.name], value) for out, value in zip(asked, arrays, strict=True)]
            cost_bytes = encoding.cost_bytes(results)
            if cost_bytes <= ENCODE_AT_ONCE_BYTES:
                return encoding.encode(key, results)
            if not any(array.dtype.kind == "O" for array in arrays):
                return Kept((results, cost_bytes), sum(array.nbytes for array in arrays))
            # Text lies on the heap, outside the arena's ceiling: it must not wait in line.
            if cost_bytes > budget.limit_bytes:
                raise RequestTooLarge(
                    ANSWER_TAKES, size_bytes=cost_bytes, limit_bytes=budget.limit_bytes, advice=FEWER_ROWS
                )
            if cost_bytes > budget.free_bytes:
                raise no_room(cost_bytes, budget.free_bytes)
            return encoding.encode(key, results)

        done = await lease.run_checked(decoded.feeds, [out.name for out in asked], finish, deadline=deadline)
        if isinstance(done, bytes):
            if len(done) > ENCODE_AT_ONCE_BYTES and not hold.try_grow(len(done)):
                raise no_room(len(done), budget.free_bytes)
            return done
        with done as (results, cost_bytes):
            # The line for the answer's memory may wait for requests that wait for this one's model and
            # for its body's memory: both are given up first.
            lease.end()
            decoded.feeds.clear()
            hold.shrink(0)
            await hold.grow(cost_bytes, is_last_step=True, what=ANSWER_TAKES, advice=FEWER_ROWS)
            return await self._routes.on_thread(lambda: encoding.encode(key, results), kept=done)
