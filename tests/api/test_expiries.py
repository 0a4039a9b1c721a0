"""Who expires when, with one timer for all."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.api.deadlines import Expiries


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time is what it is told."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def turn(self) -> None:
        """Runs what is due."""
        self.call_soon(self.stop)
        self.run_forever()


class Worker:
    def __init__(self, expired: list[int], number: int, both: asyncio.Event | None = None) -> None:
        self._expired, self._number, self._both = expired, number, both

    def expire(self) -> None:
        self._expired.append(self._number)
        if self._both is not None and len(self._expired) == 2:
            self._both.set()


@given(st.lists(st.one_of(st.floats(0, 10), st.integers(0, 30), st.none()), max_size=40))
def test_each_expires_at_its_time_unless_it_is_done_before(steps: list[float | int | None]) -> None:
    """Numbers with a point add one that has so long, whole ones discard that one, None lets a second pass."""
    loop = Clock()
    try:
        asyncio.set_event_loop(loop)
        expired: list[int] = []
        expiries: Expiries[Worker] = Expiries()
        workers: list[Worker] = []
        due: dict[int, float] = {}
        gone: list[int] = []

        def step(one: float | int | None) -> None:
            if isinstance(one, float):
                worker = Worker(expired, len(workers))
                due[len(workers)] = loop.now + one
                workers.append(worker)
                expiries.add(worker, one)
            elif one is not None and one < len(workers):
                expiries.discard(workers[one])
                due.pop(one, None)

        for one in [*steps, *[None] * 11]:
            if one is None:
                loop.now += 1.0
            loop.call_soon(step, one)
            loop.turn()
            loop.turn()
            over = [number for number, until in due.items() if until <= loop.now]
            gone += over
            for number in over:
                del due[number]
            assert sorted(expired) == sorted(gone)
            assert len(expiries) == len(due)
        assert not due
        assert sum(not handle.cancelled() for handle in loop._scheduled) == 0  # type: ignore[attr-defined]
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@pytest.mark.anyio
async def test_one_that_has_less_time_than_others_is_not_kept_waiting_for_them() -> None:
    expired: list[int] = []
    both = asyncio.Event()
    expiries: Expiries[Worker] = Expiries()
    workers = [Worker(expired, number, both) for number in range(3)]
    for worker, remaining_s in zip(workers, (60.0, 0.001, 0.0), strict=True):
        expiries.add(worker, remaining_s)
    async with asyncio.timeout(30):
        await both.wait()
    assert sorted(expired) == [1, 2]
    assert list(expiries) == workers[:1]
    expiries.close()
    assert not expiries


class Broken(Worker):
    def expire(self) -> None:
        super().expire()
        raise RuntimeError("said by a test")


@pytest.mark.anyio
async def test_one_that_fails_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    expired: list[int] = []
    both = asyncio.Event()
    expiries: Expiries[Worker] = Expiries()
    for number, kind in enumerate((Broken, Worker)):
        expiries.add(kind(expired, number, both), 0.0)
    async with asyncio.timeout(30):
        await both.wait()
    assert expired == [0, 1]
    assert "said by a test" in caplog.text
