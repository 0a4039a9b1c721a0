"""Bodies in both directions, bounded in sum: a budget that all requests share, and their claims on it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from modelhost.errors import Overloaded, RequestTooLarge
from modelhost.memory.board import Figure, Portion, Siblings
from modelhost.units import format_bytes

#: One part in so many of the budget is for answers alone.
_ANSWER_PART = 4

#: How long a request waits for others' bodies to be done with.
_WAIT_S = 10.0


@dataclass(eq=False, slots=True)
class _Waiter:
    size_bytes: int
    held_bytes: int
    is_last_step: bool
    granted: asyncio.Future[None]
    is_granted: bool = False


class ByteBudget:
    """Bytes that all requests together may hold in bodies and decoded values. Event-loop thread only.

    First come, first served: a large request is not overtaken for ever by small ones.
    """

    def __init__(self, limit_bytes: int, *, max_waiting: int, siblings: Siblings | None = None) -> None:
        """`siblings` are the host's other processes, where the bytes are theirs too."""
        self._portion = Portion.of(limit_bytes, siblings or Siblings(), Figure.BODIES)
        self.limit_bytes = self._portion.limit_bytes
        """The most that all requests may hold."""
        self.used_bytes = 0
        self._max_waiting = max_waiting
        self._waiters: deque[_Waiter] = deque()
        self.on_free: Callable[[], None] | None = None
        """Called where bytes are free that nobody waits for."""
        self.on_wait: Callable[[], None] | None = None
        """Called where somebody has begun to wait."""

    @property
    def waiting(self) -> int:
        """Requests that wait for bytes."""
        return len(self._waiters)

    @property
    def request_limit_bytes(self) -> int:
        """What requests may hold: a quarter is for answers alone, so that work that is done can leave."""
        return self.limit_bytes - self.limit_bytes // _ANSWER_PART

    @property
    def free_bytes(self) -> int:
        """What nobody holds; may be read from any thread, as a hint."""
        return self.limit_bytes - self.used_bytes

    def may_take(self, size_bytes: int) -> bool:
        """Whether so many more may be taken now."""
        return self._portion.fits(self.used_bytes + size_bytes)

    def resize(self, limit_bytes: int) -> None:
        """Changes what all may hold; what is held stays."""
        self._portion.resize(limit_bytes)
        self.limit_bytes = self._portion.limit_bytes
        self._grant()

    def hold(self) -> ByteHold:
        """Returns a claim of nothing, to be grown and to be ended."""
        return ByteHold(self)

    async def take(self, size_bytes: int, *, held_bytes: int, is_last_step: bool, what: str, advice: str) -> None:
        """Takes bytes for one who holds `held_bytes`, waiting for them where others hold them.

        Who claims for its last step goes before the others: its work is done but for the answer.
        `what` and `advice` are for the error. Raises RequestTooLarge where there are not as many at
        all, Overloaded where the wait is over, the line is full, or everybody who holds bytes waits
        for more. Takes nothing where it raises.
        """
        if held_bytes + size_bytes > self.limit_bytes:
            raise RequestTooLarge(what, size_bytes=held_bytes + size_bytes, limit_bytes=self.limit_bytes, advice=advice)
        if (is_last_step or not self._waiters) and self._portion.fits(self.used_bytes + size_bytes):
            self.used_bytes += size_bytes
            return
        if len(self._waiters) >= self._max_waiting and not is_last_step:
            raise self._overloaded()
        waiter = _Waiter(size_bytes, held_bytes, is_last_step, asyncio.get_running_loop().create_future())
        if is_last_step:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        if self.on_wait is not None:
            self.on_wait()
        self._break_deadlock()
        try:
            async with asyncio.timeout(_WAIT_S):
                await waiter.granted
        except BaseException as error:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.is_granted:  # and nobody is there to use it
                self.used_bytes -= size_bytes
            self._grant()
            if isinstance(error, TimeoutError):
                raise self._overloaded() from None
            raise

    def _break_deadlock(self) -> None:
        """Refuses the last in the line where everybody who holds bytes waits for more of them."""
        if not self._waiters or sum(waiter.held_bytes for waiter in self._waiters) < self.used_bytes:
            return
        victim = next((waiter for waiter in reversed(self._waiters) if waiter.held_bytes), None)
        if victim is not None:
            self._waiters.remove(victim)
            victim.granted.set_exception(self._overloaded())

    def give_back(self, size_bytes: int) -> None:
        """Returns bytes, and hands them to who waits."""
        self.used_bytes -= size_bytes
        self._portion.use(self.used_bytes)
        self._grant()

    def look_again(self) -> None:
        """Grants what may be granted now: the host's other processes may have given something back."""
        self._grant()

    def _grant(self) -> None:
        while self._waiters:
            waiter = self._waiters[0]
            limit_bytes = self.limit_bytes if waiter.is_last_step else self.request_limit_bytes
            wanted_bytes = self.used_bytes + waiter.size_bytes
            if wanted_bytes > limit_bytes or not self._portion.fits(wanted_bytes):
                return
            self._waiters.popleft()
            if not waiter.granted.done():
                self.used_bytes += waiter.size_bytes
                waiter.is_granted = True
                waiter.granted.set_result(None)
        if self.on_free is not None:
            self.on_free()

    def _overloaded(self) -> Overloaded:
        text = (
            f"requests in flight hold {format_bytes(self.used_bytes)} of {format_bytes(self.limit_bytes)} "
            f"(server.max_decoding_bytes), {len(self._waiters)} wait"
        )
        return Overloaded("requests in flight", waiting=len(self._waiters), limit=self._max_waiting, text=text)


class ByteHold:
    """One request's claim on the budget; a context manager that gives all of it back.

    Work on another thread that goes on when the request is answered keeps it until it ends: `begin_use`.
    """

    __slots__ = ("_budget", "_is_ended", "_uses", "model", "size_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._uses, self._is_ended = 0, False
        self.size_bytes = 0
        self.model = ""
        """Which model the request is for, once that is known: work for it waits in that model's turn."""

    async def grow(
        self,
        size_bytes: int,
        *,
        is_last_step: bool = False,
        what: str = "decoding this request takes",
        advice: str = "send fewer rows at once, or binary tensors",
    ) -> None:
        """Claims more; see ByteBudget.take."""
        await self._budget.take(
            size_bytes, held_bytes=self.size_bytes, is_last_step=is_last_step, what=what, advice=advice
        )
        self.size_bytes += size_bytes

    def try_grow(self, size_bytes: int) -> bool:
        """Claims more where it is free now, for an answer that is there already; never waits."""
        is_free = self._budget.may_take(size_bytes)
        if is_free:
            self._budget.used_bytes += size_bytes
            self.size_bytes += size_bytes
        return is_free

    def hand_over(self, size_bytes: int) -> ByteHold:
        """Moves `size_bytes` of the claim to a new one, which outlives this one's scope."""
        moved = ByteHold(self._budget)
        moved.size_bytes = min(size_bytes, self.size_bytes)
        self.size_bytes -= moved.size_bytes
        return moved

    def shrink(self, size_bytes: int) -> None:
        """Gives back all but `size_bytes`, where it is more than that."""
        if size_bytes < self.size_bytes:
            self._budget.give_back(self.size_bytes - size_bytes)
            self.size_bytes = size_bytes

    def take_over(self, other: ByteHold) -> None:
        """Adds another claim on the same budget to this one, and leaves nothing of it."""
        self.size_bytes += other.size_bytes
        other.size_bytes = 0

    def begin_use(self) -> None:
        """Says that work has begun on what is held, and may outlive the request."""
        self._uses += 1

    def end_use(self) -> None:
        """Says that the work is over."""
        self._uses -= 1
        if self._is_ended:
            self.end()

    def end(self) -> None:
        """Gives all of it back, or when the work on it is over; harmless when there is nothing."""
        if self._uses:
            self._is_ended = True
        elif self.size_bytes:
            self._budget.give_back(self.size_bytes)
            self.size_bytes = 0

    def __enter__(self) -> ByteHold:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
