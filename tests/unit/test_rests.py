"""Slow senders that rest: how long, and how many are read together."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelhost.api import rests as module
from modelhost.api.rests import Rests


class Loop:
    """An event loop with one timer, which the test lets go off."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[[], None]) -> object:
        self.timers.append((self.now + delay_s, call))
        return object()

    def go_off(self) -> None:
        (timer,) = self.timers
        self.timers.clear()
        self.now = max(self.now, timer[0])
        timer[1]()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    found = Loop()
    monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: found)
    return found


def test_a_rest_takes_a_second_and_one_timer_does_for_all(loop: Loop) -> None:
    rests, over = Rests(), []
    rests.begin(lambda: over.append(1))
    loop.now = 0.5
    rests.begin(lambda: over.append(2))
    loop.go_off()
    assert (loop.now, over) == (1.0, [1])
    loop.go_off()
    assert (loop.now, over) == (1.5, [1, 2])
    assert not loop.timers


@pytest.mark.parametrize(("resting", "at_once"), [(100, 8), (1000, 21)])
def test_rests_that_end_together_end_some_at_a_time_and_all_within_seconds(
    loop: Loop, resting: int, at_once: int
) -> None:
    rests, over = Rests(), []
    for index in range(resting):
        rests.begin(lambda index=index: over.append(index))
    loop.go_off()
    assert len(over) == at_once
    while loop.timers:
        before = len(over)
        loop.go_off()
        assert 0 < len(over) - before <= at_once
    assert over == list(range(resting))
    assert 1 < loop.now <= 3


def test_who_is_over_may_rest_again(loop: Loop) -> None:
    rests, times = Rests(), []

    def again() -> None:
        times.append(loop.now)
        if len(times) < 3:
            rests.begin(again)

    rests.begin(again)
    while loop.timers:
        loop.go_off()
    assert times == [1.0, 2.0, 3.0]
