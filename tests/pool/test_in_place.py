"""Runs on the event loop itself: only where that is known to be short and free, and seen by all who look at runs."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pool_stage
import pytest
from pool_stage import FEEDS, MB, ByHand, StopWatch, know, soon, turns, until

from modelhost.errors import ActivationsFull, HostClosed, InvalidRequest
from modelhost.pool import ModelKey
from modelhost.pool.guard import RunGuard
from modelhost.pool.runs import ModelRuns
from modelhost.pool.slot import Slot
from modelhost.pool.statistics import Timing
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio

SMALL = RunFootprint((Term(1 << 10),), {})
ANSWER = [2.0, 2.0]


class Stage(pool_stage.Stage):
    """A stage on which every run takes what its stop watch says: a busy machine makes none longer."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.watch = StopWatch()
        super().__init__(*arguments, **({"runner": {"clock_ns": self.watch, "guard": ByHand()}} | more))


def script(**more: Any) -> FakeScript:
    return FakeScript(**({"run_footprint": SMALL, "resident_bytes": 20 * MB} | more))


def slot_of(stage: Stage, name: str) -> Slot:
    stage.pool.catalog.find(name)
    slot = stage.pool._table.get(ModelKey(name, "1"))
    assert slot is not None
    return slot


def runs_of(stage: Stage, name: str = "a") -> ModelRuns:
    runs = slot_of(stage, name).runs
    assert runs is not None
    return runs


def in_place(runs: ModelRuns, feeds: dict[str, np.ndarray] = FEEDS) -> list[float] | None:
    arrays = runs.try_in_place(feeds, ["y"], Timing(time.perf_counter_ns()))
    return None if arrays is None else arrays[0].tolist()


async def test_only_a_run_that_has_shown_to_be_short_is_made_in_place(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        assert in_place(runs) is None
        runs.demand.look(FEEDS).note(1000, 8)
        assert in_place(runs) is None  # once is no proof
        runs.demand.look(FEEDS).note(1000, 8)
        assert in_place(runs) == ANSWER
        assert in_place(runs, {"x": np.ones(3, np.float32)}) is None  # of this shape nothing is known


async def test_a_long_run_is_not_made_in_place_and_one_that_becomes_long_leaves(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(), "b": script()}) as stage:
        for name in "ab":
            await stage.pool.load(name)
        know(runs_of(stage, "a"), run_ns=50_000_000)
        assert in_place(runs_of(stage, "a")) is None
        know(runs_of(stage, "b"))
        stage.watch.took_ns = 1_000_000
        made = 0
        while in_place(runs_of(stage, "b")) is not None:
            made += 1
            assert made < 20, "it never left"
            await turns(2)
        assert made >= 1


async def test_runs_with_large_outputs_are_not_made_in_place(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs, output_bytes=1 << 20)
        assert in_place(runs) is None


async def test_an_output_that_grows_in_place_is_noticed(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}) as stage:
        await stage.pool.load("a")
        runs, feeds = runs_of(stage), {"x": np.ones(1 << 14, np.float32)}
        know(runs, feeds)
        assert in_place(runs, feeds) is not None
        assert runs.demand.look(feeds).output_bytes == 1 << 16
        assert in_place(runs, feeds) is None


async def test_runs_that_nobody_can_predict_or_that_are_large_claim_their_memory(tmp_path: Path) -> None:
    large = RunFootprint((Term(8 * MB),), {})
    async with Stage(tmp_path, {"a": script(run_footprint=None), "b": script(run_footprint=large)}) as stage:
        for name in "ab":
            await stage.pool.load(name)
            know(runs_of(stage, name))
            assert in_place(runs_of(stage, name)) is None


async def test_a_run_in_place_does_not_pass_those_that_wait_for_memory(tmp_path: Path) -> None:
    gate = threading.Event()
    whole = RunFootprint((Term(64 * MB),), {})
    scripts = {"a": script(), "big": script(run_footprint=whole, run_may_end=gate, run_bytes=MB)}
    async with Stage(tmp_path, scripts, ceiling_bytes=64 * MB) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        big = [stage.begin(stage.use("big"))]
        await until(scripts["big"].run_started.is_set)
        assert in_place(runs) is None  # the arena is claimed, all of it
        big.append(stage.begin(stage.use("big")))
        await until(lambda: stage.pool.activations.waiting)
        assert in_place(runs) is None
        gate.set()
        await soon(asyncio.gather(*big))
        assert in_place(runs) == ANSWER


async def test_the_arena_that_refuses_is_told_as_it_is_and_nothing_is_held(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(run_bytes=2 * MB)}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        stage.machine.arena_bytes = MB
        before = stage.runner.started
        with pytest.raises(ActivationsFull):
            in_place(runs)
        assert stage.runner.started == before
        assert runs.statistics.execution_count == 0
        stage.check_at_rest()


async def test_an_error_of_the_run_is_the_callers(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(wrong_number=1.0)}) as stage:
        await stage.pool.load("a")
        know(runs_of(stage))
        with pytest.raises(InvalidRequest):
            in_place(runs_of(stage))
        stage.check_at_rest()


async def test_a_closed_runner_makes_no_run_in_place(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        stage.runner.refuse()
        with pytest.raises(HostClosed):
            in_place(runs)
        assert stage.script("a").runs == 0


async def test_a_run_in_place_is_seen_by_who_looks_at_runs(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        marker, timing = stage.runner.quiet_marker(), Timing(time.perf_counter_ns())
        assert runs.try_in_place(FEEDS, ["y"], timing) is not None
        assert stage.runner.quiet_marker() not in (marker, None)
        assert (stage.runner.in_flight, stage.info("a").leases) == (0, 0)
        assert (runs.statistics.execution_count, timing.rows, timing.queue_ns) == (1, 2, 0)  # a number is a row here
        assert timing.infer_ns > 0


# --- the order of use ----------------------------------------------------------------------------------


def order(stage: Stage) -> str:
    return "".join(candidate.key.name for candidate in stage.pool._table.candidates())


async def test_use_in_place_keeps_the_order_in_which_models_leave(tmp_path: Path) -> None:
    names = "abcd"
    async with Stage(tmp_path, {name: script() for name in names}) as stage:
        await stage.use(*names)
        assert order(stage) == "abcd"
        for name, expected in (("a", "bcda"), ("a", "bcda"), ("c", "bdac"), ("b", "dacb"), ("a", "dcba")):
            stage.pool.touch(slot_of(stage, name))
            assert order(stage) == expected
        await stage.use("d")
        assert order(stage) == "cbad"
        stage.pool.touch(slot_of(stage, "a"))
        assert order(stage) == "cbda"


async def test_touching_a_model_that_is_in_use_leaves_it_where_it_is(tmp_path: Path) -> None:
    async with Stage(tmp_path, {name: script() for name in "ab"}) as stage:
        await stage.use("a", "b")
        async with stage.pool.lease("a"):
            stage.pool.touch(slot_of(stage, "a"))
            assert order(stage) == "b"
            stage.pool.touch(slot_of(stage, "b"))
        assert order(stage) == "ba"
        stage.pool.touch(slot_of(stage, "b"))
        assert order(stage) == "ab"


async def test_a_model_used_in_place_outlives_one_that_was_not_used_since(tmp_path: Path) -> None:
    names = "abcdef"
    async with Stage(tmp_path, {name: script() for name in names}) as stage:
        await stage.use(*"abcde")
        runs = runs_of(stage, "a")
        know(runs)
        assert in_place(runs) == ANSWER
        stage.pool.touch(slot_of(stage, "a"))
        await stage.use("f")
        await stage.settled()
        assert "a" in stage.loaded
        assert "b" not in stage.loaded


async def test_use_in_place_counts_for_the_time_of_last_use_and_for_rest(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(), "b": script()}, idle_ttl=30.0) as stage:
        await stage.use("a", "b")
        slot = slot_of(stage, "a")
        slot.last_used = 1.0
        stage.clock.now += 20
        stage.pool.touch(slot)
        assert slot.last_used > 1.0
        stage.clock.now += 20
        stage.pool._scheduler.departures.expire()
        await turns(3)
        await stage.settled()
        assert stage.loaded == ["a"]


async def test_the_slot_to_run_in_place_is_there_only_while_the_model_is_ready(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": script(close_may_end=gate)}) as stage:
        assert stage.pool.resident(("a", None)) is None
        await stage.use("a")
        slot = stage.pool.resident(("a", None))
        assert slot is slot_of(stage, "a")
        leaving = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        assert stage.pool.resident(("a", None)) is None
        gate.set()
        await soon(leaving)
        await stage.use("a")
        await soon(stage.pool.close())
        assert stage.pool.resident(("a", None)) is None


async def test_a_run_in_place_that_turns_out_to_be_long_is_stopped_and_happens_on_threads_from_then_on(
    tmp_path: Path,
) -> None:
    async with Stage(tmp_path, {"a": script()}, runner={}) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        stage.script("a").run_may_end = threading.Event()  # set by nobody but who stops the run
        assert in_place(runs) is None
        stage.script("a").run_may_end = None
        assert in_place(runs) is None
        assert stage.script("a").runs == 1


async def test_a_guard_that_has_gone_to_sleep_wakes_up_for_the_next_run() -> None:
    guard = RunGuard(period_s=0.0001)
    for _ in range(3):
        stopped = threading.Event()
        guard.begin().bind(stopped.set)
        assert stopped.wait(10)
        guard.end()
        await until(lambda: guard._is_asleep)
    guard.close()
    guard.join()


def test_a_run_that_two_looks_have_seen_is_stopped_and_no_other() -> None:
    guard = ByHand()
    for _ in range(3):
        short = guard.begin()
        guard.look()
        guard.end()
        guard.look()
    long = guard.begin()
    assert long is short  # runs share what stops them until it has stopped one
    guard.look()
    assert not long.is_cancelled
    guard.look()
    assert long.is_cancelled
    guard.end()
    assert not guard.begin().is_cancelled


def test_looks_end_where_there_is_nothing_to_see_for_long() -> None:
    guard = ByHand()
    guard.begin()
    guard.end()
    looks = 0
    while guard.look():
        looks += 1
        assert looks < 1000
    guard.begin()
    guard.end()
    assert looks >= 10


async def test_runs_in_place_leave_a_turn_of_the_event_loop_to_others(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script()}, threads=1) as stage:
        await stage.pool.load("a")
        runs = runs_of(stage)
        know(runs)
        stage.watch.took_ns = 2_000_000
        made = 0
        for _ in range(2):
            while in_place(runs) is not None:
                know(runs)  # as short as ever
                made += 1
            await turns(2)
        assert made == 2 * 5  # 10 ms in each turn
