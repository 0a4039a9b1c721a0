"""Bodies on their way: who is let in, who waits, and who yields to whom."""

from __future__ import annotations

import pytest

from modelhost.api import arrivals as module
from modelhost.api.arrivals import Arrival, Arrivals
from modelhost.api.body import ByteBudget
from modelhost.errors import ModelHostError, Overloaded, RequestTooLarge

MB, KB = 1 << 20, 1 << 10

pytestmark = pytest.mark.anyio


class Body:
    def __init__(self, stage: Stage, length: int, received: int) -> None:
        self.length, self.received_bytes = length, received
        self.hold, self.error, self.is_granted = stage.budget.hold(), None, False
        self._stage = stage
        self.arrival: Arrival = stage.arrivals.begin(self)

    def granted(self) -> None:
        self.is_granted = True

    def refused(self, error: ModelHostError) -> None:
        self.error: ModelHostError | None = error
        self._stage.arrivals.end(self.arrival)
        self.hold.end()

    def end(self) -> None:
        self._stage.arrivals.end(self.arrival)
        self.hold.end()


class Stage:
    """Arrivals in 16 MB, of which bodies may have 12, and 1 MB for pieces; the clock is the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module, "_now", lambda: self.now)
        self.budget = ByteBudget(16 * MB, max_waiting=3)
        self.arrivals = Arrivals(self.budget, pieces_bytes=MB, max_waiting=3)

    def body(self, length: int, received: int = 10 * KB) -> Body:
        return Body(self, length, received)

    def claimed(self, length: int, received: int = 10 * KB) -> Body:
        body = self.body(length, received)
        self.arrivals.claim(body.arrival)
        return body

    def nothing_held(self) -> bool:
        return (
            self.budget.used_bytes
            == self.arrivals.pieces.used_bytes
            == self.arrivals.waiting
            == len(self.arrivals)
            == 0
        )


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


# --- pieces --------------------------------------------------------------------------------------------------


async def test_of_a_body_that_trickles_in_little_is_claimed_ahead(stage: Stage) -> None:
    body = stage.body(60 * KB, 0)
    claimed = []
    for body.received_bytes in (0, 1, 4 * KB, 4 * KB + 1, 9 * KB, 40 * KB, 60 * KB):
        assert stage.arrivals.keep(body.arrival)
        claimed.append(stage.arrivals.pieces.used_bytes // KB)
    assert claimed == [4, 4, 4, 8, 16, 40, 60]
    body.end()
    assert stage.nothing_held()


async def test_a_thousand_may_begin_where_there_are_4_mb_for_that(stage: Stage) -> None:
    stage.arrivals.pieces.resize(4 * MB)
    bodies = [stage.body(10 * MB, 1) for _ in range(1000)]
    assert all(stage.arrivals.keep(body.arrival) for body in bodies)
    assert stage.budget.used_bytes == 0


async def test_without_room_for_a_beginning_it_is_refused_unless_somebody_is_slow(stage: Stage) -> None:
    bodies = [stage.body(60 * KB, 50 * KB) for _ in range(20)]
    assert all(stage.arrivals.keep(body.arrival) for body in bodies)
    newcomer = stage.body(60 * KB, 50 * KB)
    assert not stage.arrivals.keep(newcomer.arrival)
    assert isinstance(newcomer.error, Overloaded)
    assert "1000.0 KB of 1.0 MB, 21 bodies are on their way" in str(newcomer.error)
    stage.now = 1000
    assert stage.arrivals.keep(stage.body(60 * KB, 50 * KB).arrival)
    assert sum(body.error is not None for body in bodies) == 1
    (refused,) = [body.error for body in bodies if body.error is not None]
    assert "50.0 KB of 60.0 KB came in 1000 s" in str(refused)


# --- whole bodies --------------------------------------------------------------------------------------------


async def test_all_of_a_body_is_claimed_at_once_and_bodies_leave_room_for_answers(stage: Stage) -> None:
    first, second, third = stage.claimed(8 * MB), stage.claimed(4 * MB), stage.claimed(1 * MB)
    assert (first.is_granted, second.is_granted, third.is_granted) == (True, True, False)
    assert stage.budget.used_bytes == stage.budget.request_limit_bytes
    second.end()
    assert third.is_granted
    first.end()
    third.end()
    assert stage.nothing_held()


async def test_one_body_alone_may_have_all(stage: Stage) -> None:
    assert stage.claimed(16 * MB).is_granted
    assert isinstance(stage.claimed(16 * MB + 1).error, RequestTooLarge)


async def test_the_line_is_kept_and_a_small_one_does_not_overtake(stage: Stage) -> None:
    holder, large, small = stage.claimed(8 * MB), stage.claimed(6 * MB), stage.claimed(1 * MB)
    assert not stage.arrivals.try_claim(stage.body(1 * MB))
    assert (large.is_granted, small.is_granted) == (False, False)
    holder.end()
    assert large.is_granted
    assert small.is_granted


async def test_who_is_slow_yields_to_who_waits(stage: Stage) -> None:
    slow = stage.claimed(10 * MB)
    quick = stage.claimed(8 * MB)
    assert not quick.is_granted  # nobody can be judged yet
    stage.now = 2
    stage.arrivals._look()
    assert "10.0 KB of 10.0 MB came in 2 s, and others wait" in str(slow.error)
    assert quick.is_granted


async def test_who_comes_at_a_pace_does_not_yield(stage: Stage) -> None:
    holder, waiter = stage.claimed(10 * MB), stage.claimed(8 * MB)
    stage.now, holder.received_bytes = 2, 4 * MB
    stage.arrivals._look()
    assert (holder.error, waiter.is_granted) == (None, False)


async def test_the_slow_yield_to_requests_that_are_there(stage: Stage) -> None:
    slow = stage.claimed(10 * MB)
    stage.now = 2
    hold = stage.budget.hold()
    await hold.grow(10 * MB)
    assert isinstance(slow.error, Overloaded)
    hold.end()
    assert stage.nothing_held()


async def test_the_slow_wait_behind_those_who_are_not_and_nobody_yields_to_them(stage: Stage) -> None:
    holder, slow = stage.claimed(10 * MB), stage.body(8 * MB)
    stage.now, holder.received_bytes = 2, 9 * MB
    stage.arrivals.claim(slow.arrival)
    quick = stage.claimed(8 * MB)
    holder.end()
    assert (quick.is_granted, slow.is_granted) == (True, False)
    stage.now = 20
    quick.received_bytes = 11 * KB
    stage.arrivals._relieve()
    assert quick.error is None


async def test_the_wait_is_bounded_and_stops_the_clock(stage: Stage) -> None:
    holder, waiter = stage.claimed(10 * MB), stage.claimed(8 * MB)
    stage.now, holder.received_bytes = 9, 9 * MB
    stage.arrivals._look()
    assert waiter.error is None
    assert (waiter.arrival.age_s(stage.now), waiter.arrival.slow_s(stage.now)) == (0, 0)
    stage.now = 10.5
    stage.arrivals._look()
    assert "no memory for a body of 8.0 MB within 10.5 s" in str(waiter.error)
    assert "hold 10.0 MB of 16.0 MB" in str(waiter.error)
    holder.end()
    assert stage.nothing_held()


async def test_in_a_full_line_the_last_slow_one_makes_place_for_one_who_is_not(stage: Stage) -> None:
    holder = stage.claimed(12 * MB)
    slow = [stage.body(4 * MB) for _ in range(4)]
    stage.now, holder.received_bytes = 2, 11 * MB
    for body in slow:
        stage.arrivals.claim(body.arrival)
    assert [body.error is not None for body in slow] == [False, False, False, True]
    quick = [stage.claimed(4 * MB) for _ in range(4)]
    assert [body.error is not None for body in slow] == [True] * 4
    assert [body.error is not None for body in quick] == [False, False, False, True]
    for body in (holder, *quick[:3]):
        body.end()
    assert stage.nothing_held()


async def test_a_limit_that_goes_up_lets_the_next_in(stage: Stage) -> None:
    stage.budget.resize(8 * MB)
    first, second = stage.claimed(5 * MB), stage.claimed(5 * MB)
    assert (first.is_granted, second.is_granted) == (True, False)
    stage.budget.resize(16 * MB)
    assert second.is_granted


async def test_models_take_turns_at_the_memory_of_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(monkeypatch)
    stage.arrivals._max_waiting = 10

    def of(model: str) -> Body:
        body = stage.body(10 * MB)
        body.hold.model = model
        stage.arrivals.claim(body.arrival)
        return body

    flood = [of("flooded") for _ in range(4)]
    other = of("other")
    assert [body.is_granted for body in (*flood, other)] == [True, False, False, False, False]
    flood[0].end()
    assert flood[1].is_granted  # whose turn it was when the other one came
    flood[1].end()
    assert other.is_granted
    assert not flood[2].is_granted
    other.end()
    for body in flood[2:]:
        assert body.is_granted
        body.end()
    assert stage.nothing_held()
