"""Bodies that do not come at once: what of them is in memory is claimed, and who is slow yields to who waits.

A body is first known by its beginning. That is little, and claimed from a share of its own (`pieces`), so that any
number of senders may begin. Beyond it all the rest is claimed in one step, and read only then: until it is granted
the bytes stay with the client. So nobody who has a part of a body's memory waits for another part, and whoever was
granted can finish. Who holds memory and sends slowly is refused as soon as somebody waits for it; who waits stands
in line by pace, models in turn and each first come first served, and for a bounded time. See DESIGN.md, "Bodies".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from modelhost.api.body import ByteBudget, ByteHold
from modelhost.api.rests import LITTLE_BYTES, Rests
from modelhost.errors import ModelHostError, Overloaded, RequestTooLarge
from modelhost.pool.turns import Turns
from modelhost.units import format_bytes, format_duration

#: Bodies up to this need no claim but for what of them is there; of longer ones so much has to be there before the
#: rest is claimed, which is enough to see a pace.
SMALL_BODY_BYTES: Final = 64 << 10
BEGINNING_BYTES: Final = 4 << 10

#: A sender is judged after this time, and is slow where the rest would take longer than that at its pace so far.
_JUDGED_AFTER_S: Final = 1.0
_QUICK_S: Final = 5.0

#: How long a body waits for memory, and how often it is looked at who might yield meanwhile.
_WAIT_S: Final = 10.0
_LOOK_S: Final = 0.25


class Coming(Protocol):
    """A body that is on its way."""

    length: int
    """What it will have; the most it may have where its sender does not say."""
    received_bytes: int
    hold: ByteHold

    def granted(self) -> None:
        """Goes on reading: all of the length is claimed."""

    def refused(self, error: ModelHostError) -> None:
        """Ends, with its claims."""


class Arrival:
    """One body on its way: its claims, and its pace. Made by Arrivals."""

    __slots__ = ("_began", "_stalled_s", "_waits_since", "body", "pieces")

    def __init__(self, body: Coming, pieces: ByteHold, now: float) -> None:
        self.body, self.pieces = body, pieces
        self._began, self._stalled_s = now, 0.0
        self._waits_since: float | None = None

    @property
    def model(self) -> str:
        """The name of what it is for, as far as is known; in line models take turns."""
        return self.body.hold.model.partition(":")[0]

    @property
    def is_waiting(self) -> bool:
        """Whether it is not read, so that its pauses are not its sender's."""
        return self._waits_since is not None

    def begin_wait(self, now: float) -> None:
        """Stops its clock."""
        self._waits_since = now

    def end_wait(self, now: float) -> None:
        """Goes on with its clock."""
        self._stalled_s += self.waited_s(now)
        self._waits_since = None

    def waited_s(self, now: float) -> float:
        """Returns how long it has been waiting for memory."""
        return 0.0 if self._waits_since is None else now - self._waits_since

    def age_s(self, now: float) -> float:
        """Returns the time that its sender has had."""
        return now - self._began - self._stalled_s - self.waited_s(now)

    def remaining_s(self, now: float) -> float:
        """Returns how long the rest takes at the pace so far; 0 for one too young to be judged."""
        age_s, body = self.age_s(now), self.body
        return (
            0.0 if age_s < _JUDGED_AFTER_S else (body.length - body.received_bytes) * age_s / (body.received_bytes + 1)
        )

    def slow_s(self, now: float) -> float:
        """Returns for how long it has been too slow to be waited for; 0 where it is not."""
        return self.age_s(now) if self.remaining_s(now) > _QUICK_S else 0.0


class Arrivals:
    """All bodies that are on their way, within the budget of all requests. Event-loop thread."""

    def __init__(self, budget: ByteBudget, *, pieces_bytes: int, max_waiting: int) -> None:
        self.budget, self.pieces = budget, ByteBudget(pieces_bytes, max_waiting=0)
        self._max_waiting = max_waiting
        self._coming: set[Arrival] = set()
        self._quick: Turns[Arrival] = Turns()
        self._slow: Turns[Arrival] = Turns()
        self._timer: asyncio.TimerHandle | None = None
        self._rests = Rests()
        budget.on_free, budget.on_wait = self._advance, self._relieve

    def __len__(self) -> int:
        return len(self._coming)

    @property
    def waiting(self) -> int:
        """Bodies that wait for memory."""
        return len(self._quick) + len(self._slow)

    def begin(self, body: Coming) -> Arrival:
        """Takes note of a body that has begun; it has no claim yet."""
        arrival = Arrival(body, self.pieces.hold(), _now())
        self._coming.add(arrival)
        return arrival

    def end(self, arrival: Arrival) -> None:
        """Forgets a body that is there, or will never be; what `hold` has claimed for it is its owner's to end."""
        self._coming.discard(arrival)
        arrival.pieces.end()
        if arrival.is_waiting:
            if not self._quick.remove(arrival.model, arrival):
                self._slow.remove(arrival.model, arrival)
            arrival.end_wait(_now())
            self._advance()

    def rest(self, arrival: Arrival, piece_bytes: int, over: Callable[[], None]) -> bool:
        """Says whether a body need not be read until `over` is called, as it is slow and has sent only so little."""
        if piece_bytes >= LITTLE_BYTES or not arrival.slow_s(_now()):
            return False
        self._rests.begin(over)
        return True

    # --- pieces --------------------------------------------------------------------------------------

    def keep(self, arrival: Arrival) -> bool:
        """Claims what of a body is there, a little ahead; refuses it, and returns False, where there is no room."""
        body, pieces = arrival.body, arrival.pieces
        if body.received_bytes <= pieces.size_bytes and pieces.size_bytes:
            return True
        wanted = min(body.length, max(body.received_bytes, 2 * pieces.size_bytes, BEGINNING_BYTES))
        if self.keep_bytes(pieces, wanted):
            return True
        body.refused(self.no_pieces())
        return False

    def keep_bytes(self, pieces: ByteHold, size_bytes: int) -> bool:
        """Makes a claim on the share for pieces so large; slow senders yield. Returns False where there is no room."""
        if size_bytes <= pieces.size_bytes:
            pieces.shrink(size_bytes)
            return True
        more = size_bytes - pieces.size_bytes
        while not pieces.try_grow(more):
            slowest = self._slowest(lambda arrival: arrival.pieces.size_bytes > 0 and arrival.pieces is not pieces)
            if slowest is None:
                return False
            self._refuse_slow(slowest)
        return True

    def no_pieces(self) -> Overloaded:
        """Returns the error of a request that is not all there, where no more of them fit."""
        used, limit = format_bytes(self.pieces.used_bytes), format_bytes(self.pieces.limit_bytes)
        text = f"requests that are not all there hold {used} of {limit}, {len(self._coming)} bodies are on their way"
        return Overloaded("beginnings of requests", waiting=0, limit=0, text=text)

    # --- whole bodies --------------------------------------------------------------------------------

    def try_claim(self, body: Coming) -> bool:
        """Claims all of a body where that is free, and nobody waits for it."""
        is_free = not self.waiting and self._fits(body)
        return is_free and body.hold.try_grow(body.length - body.hold.size_bytes)

    def claim(self, arrival: Arrival) -> None:
        """Claims all of a body: grants it now or later, or refuses it. Until then it is not to be read."""
        body, now = arrival.body, _now()
        if body.length > self.budget.limit_bytes:
            body.refused(RequestTooLarge("the body has", size_bytes=body.length, limit_bytes=self.budget.limit_bytes))
            return
        is_slow = arrival.slow_s(now) > 0
        if self.waiting >= self._max_waiting:
            if is_slow or not self._slow:
                body.refused(self._no_room(arrival))
                return
            last = min(self._slow, key=lambda waiting: waiting.waited_s(now))
            last.body.refused(self._no_room(last))
        arrival.begin_wait(now)
        (self._slow if is_slow else self._quick).append(arrival.model, arrival)
        self._advance()
        self._relieve()

    def _fits(self, body: Coming) -> bool:
        budget, wanted = self.budget, body.length - body.hold.size_bytes
        if budget.waiting:
            return False  # requests that are there go before
        limit = budget.request_limit_bytes if budget.used_bytes else budget.limit_bytes
        return budget.used_bytes + wanted <= limit and budget.may_take(wanted)

    def _advance(self) -> None:
        """Grants what can be, in order."""
        while line := self._quick or self._slow:
            arrival = line.head
            if not self._fits(arrival.body):
                break
            line.take()
            arrival.end_wait(_now())
            arrival.body.hold.try_grow(arrival.body.length - arrival.body.hold.size_bytes)
            arrival.pieces.end()
            arrival.body.granted()
        self._watch()

    def _relieve(self) -> None:
        """Refuses those who hold memory and are slow, the slowest first, while others wait who are not."""
        while self.budget.waiting or self._quick:
            slowest = self._slowest(lambda arrival: arrival.body.hold.size_bytes > 0)
            if slowest is None:
                break
            self._refuse_slow(slowest)
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and (self.waiting or (self.budget.waiting and self._coming)):
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now = _now()
        for arrival in (*self._quick, *self._slow):
            if arrival.waited_s(now) >= _WAIT_S:
                arrival.body.refused(self._no_room(arrival))
        self._relieve()

    # --- refusals ------------------------------------------------------------------------------------

    def _slowest(self, holds: Callable[[Arrival], bool]) -> Arrival | None:
        """Returns who is slow, and slowest, of those for whom `holds` is true."""
        now = _now()
        chosen, longest_s = None, _QUICK_S
        for arrival in self._coming:
            if holds(arrival) and (remaining_s := arrival.remaining_s(now)) > longest_s:
                chosen, longest_s = arrival, remaining_s
        return chosen

    def _refuse_slow(self, arrival: Arrival) -> None:
        body, age_s = arrival.body, arrival.age_s(_now())
        text = (
            f"{format_bytes(body.received_bytes)} of {format_bytes(body.length)} came in {format_duration(age_s)}, "
            "and others wait for the memory that the body holds"
        )
        body.refused(Overloaded("bodies", waiting=self.waiting, limit=self._max_waiting, text=text))

    def _no_room(self, arrival: Arrival) -> Overloaded:
        budget, waited_s = self.budget, arrival.waited_s(_now())
        text = (
            f"no memory for a body of {format_bytes(arrival.body.length)}"
            + (f" within {format_duration(waited_s)}" if waited_s else "")
            + f": requests in flight hold {format_bytes(budget.used_bytes)} of {format_bytes(budget.limit_bytes)} "
            f"(server.max_decoding_bytes), {self.waiting} wait"
        )
        return Overloaded("bodies", waiting=self.waiting, limit=self._max_waiting, text=text)


def _now() -> float:
    return asyncio.get_running_loop().time()
