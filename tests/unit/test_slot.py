"""A slot's life is a table; a waiter is handed something once; failures are remembered for a growing time."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import pytest

from modelhost.config import ModelOptions
from modelhost.errors import HostClosed, ModelBroken
from modelhost.memory import Ledger
from modelhost.pool.failures import Failures
from modelhost.pool.key import ModelKey
from modelhost.pool.slot import TRANSITIONS, Slot, SlotState
from modelhost.pool.waiter import Waiter
from modelhost.repository import ModelFile

KEY = ModelKey("m", "1")
FILE = ModelFile("m", "1", Path("m/1/model.onnx"), ModelOptions())


# --- slot -------------------------------------------------------------------------------------------


def test_the_table_has_every_state() -> None:
    assert set(TRANSITIONS) == set(SlotState)
    assert TRANSITIONS[SlotState.GONE] == frozenset()


@pytest.mark.parametrize(("before", "after"), list(product(SlotState, SlotState)))
def test_a_slot_moves_as_the_table_says_and_no_other_way(before: SlotState, after: SlotState) -> None:
    slot = Slot(KEY, FILE, state=before)
    if after in TRANSITIONS[before]:
        slot.move(after)
        assert slot.state is after
    else:
        with pytest.raises(RuntimeError, match=f"m:1: {before.value} cannot become {after.value}"):
            slot.move(after)
        assert slot.state is before


def test_every_state_can_be_reached_and_all_but_the_last_can_be_left() -> None:
    reached, fresh = {SlotState.QUEUED}, {SlotState.QUEUED}
    while fresh:
        fresh = {after for before in fresh for after in TRANSITIONS[before]} - reached
        reached |= fresh
    assert reached == set(SlotState)
    assert [state for state, after in TRANSITIONS.items() if not after] == [SlotState.GONE]


def test_memory_is_held_from_loading_to_unloading_only_by_way_of_a_reservation() -> None:
    slot = Slot(KEY, FILE)
    assert slot.committed_bytes == 0
    slot.reservation = Ledger().reserve("m", 30)
    assert slot.committed_bytes == 30
    slot.reservation.settle(20)
    assert slot.committed_bytes == 20


def test_a_slot_is_idle_when_it_is_ready_and_nobody_holds_it() -> None:
    for state, leases in product(SlotState, (0, 1)):
        assert Slot(KEY, FILE, state=state, leases=leases).is_idle == (state is SlotState.READY and leases == 0)


# --- waiter -----------------------------------------------------------------------------------------


def test_a_waiter_takes_one_value() -> None:
    async def story() -> None:
        waiter: Waiter[int] = Waiter()
        assert waiter.is_waiting
        assert waiter.set(1)
        assert not waiter.is_waiting
        assert not waiter.set(2)
        assert not waiter.fail(HostClosed("too late"))
        assert await waiter.wait() == 1

    asyncio.run(story())


def test_a_waiter_that_left_takes_nothing() -> None:
    async def story() -> None:
        waiter: Waiter[int] = Waiter()
        assert waiter.leave() is None
        assert not waiter.is_waiting
        assert not waiter.set(1)
        assert waiter.leave() is None

    asyncio.run(story())


def test_a_waiter_that_leaves_after_the_hand_over_gives_back_what_it_got() -> None:
    async def story() -> None:
        waiter: Waiter[int] = Waiter()
        waiter.set(7)
        assert waiter.leave() == 7

    asyncio.run(story())


def test_a_waiter_that_leaves_after_an_error_has_nothing_to_give_back() -> None:
    async def story() -> None:
        waiter: Waiter[int] = Waiter()
        assert waiter.fail(HostClosed("closed"))
        assert waiter.leave() is None
        with pytest.raises(HostClosed):
            await waiter.wait()

    asyncio.run(story())


def test_a_waiter_cancelled_between_hand_over_and_wake_up_still_has_the_value() -> None:
    async def story() -> None:
        waiter: Waiter[int] = Waiter()
        task = asyncio.ensure_future(waiter.wait())
        await asyncio.sleep(0)
        assert waiter.set(7)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert waiter.leave() == 7

    asyncio.run(story())


# --- failures ---------------------------------------------------------------------------------------


def broken(text: str = "bad") -> ModelBroken:
    return ModelBroken("m", "1", text)


def test_a_failure_is_recent_for_twice_as_long_each_time_up_to_a_bound() -> None:
    failures = Failures(backoff_s=1, backoff_max_s=5)
    now = 100.0
    for wait_s in (1, 2, 4, 5, 5):
        error = broken()
        failures.note(KEY, error, now)
        assert failures.recent(KEY, now) is error
        assert failures.recent(KEY, now + wait_s - 0.001) is error
        assert failures.recent(KEY, now + wait_s) is None
        assert failures.last(KEY) is error
        now += wait_s


def test_a_failure_that_is_forgotten_starts_over() -> None:
    failures = Failures(backoff_s=1, backoff_max_s=60)
    for _ in range(5):
        failures.note(KEY, broken(), 0)
    failures.forget(KEY)
    failures.forget(KEY)
    assert failures.recent(KEY, 0) is None
    assert failures.last(KEY) is None
    failures.note(KEY, broken(), 0)
    assert failures.recent(KEY, 1) is None


def test_each_version_fails_for_itself() -> None:
    failures = Failures(backoff_s=1, backoff_max_s=60)
    failures.note(KEY, broken(), 0)
    assert failures.last(ModelKey("m", "2")) is None


def test_ten_thousand_failures_are_still_a_number() -> None:
    failures = Failures(backoff_s=1, backoff_max_s=60)
    for _ in range(10_000):
        failures.note(KEY, broken(), 0)
    assert failures.recent(KEY, 59.9) is not None
    assert failures.recent(KEY, 60) is None
