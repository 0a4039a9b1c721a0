"""Runs of leases before the arena: in order, alone where they must be, and every claim comes back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, soon, turns, until

from modelhost.errors import ActivationsFull, DeadlineExceeded, Overloaded, RunTooLarge
from modelhost.pool import Kept, Lease
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript
from modelhost.tensors import Array

pytestmark = pytest.mark.anyio


def script(megabytes: int, **more: object) -> FakeScript:
    """A model whose runs take so much, as is predicted."""
    footprint = RunFootprint((Term(megabytes * MB),), {})
    return FakeScript(run_footprint=footprint, **({"run_bytes": megabytes * MB} | more))  # type: ignore[arg-type]


def held(megabytes: int, **more: object) -> FakeScript:
    return script(megabytes, run_may_end=threading.Event(), **more)


class Leases:
    """A lease on each model of a stage; runs begin by name."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.leases: dict[str, Lease] = {}

    async def __aenter__(self) -> Leases:
        for name in self.stage.runtime.scripts:
            self.leases[name] = await self.stage.pool.acquire(name)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for lease in self.leases.values():
            lease.end()
        await self.stage.settled()
        self.stage.check_at_rest()

    def begin(self, name: str, *, deadline: float | None = None) -> asyncio.Task[dict[str, Array]]:
        return self.stage.begin(self.leases[name].run(FEEDS, deadline=deadline))

    async def begun(self, name: str) -> asyncio.Task[dict[str, Array]]:
        task = self.begin(name)
        await until(self.stage.script(name).run_started.is_set)
        return task

    def let_end(self, name: str) -> None:
        event = self.stage.script(name).run_may_end
        assert event is not None
        event.set()


# --- in order ----------------------------------------------------------------------------------------------


async def test_only_as_much_runs_at_once_as_the_arena_holds(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(20)}) as stage, Leases(stage) as leases:
        stage.machine.arena_bytes = 64 * MB
        runs = [leases.begin("a") for _ in range(10)]
        await until(lambda: stage.runner.in_flight == 3)
        await turns(20)
        assert stage.runner.in_flight == 3
        assert (stage.pool.activations.waiting, stage.pool.activations.claimed_bytes) == (7, 60 * MB)
        leases.let_end("a")
        await soon(asyncio.gather(*runs))
        assert stage.pool.activations.missed_total == 0


async def test_a_large_run_is_not_starved_by_small_ones(tmp_path: Path) -> None:
    scripts = {"small": held(30), "large": held(60), "later": script(1)}
    async with Stage(tmp_path, scripts) as stage, Leases(stage) as leases:
        small = await leases.begun("small")
        large = leases.begin("large")
        await turns(3)
        later = [leases.begin("later") for _ in range(20)]
        await turns(20)
        assert not stage.script("later").run_started.is_set()
        leases.let_end("small")
        await until(stage.script("large").run_started.is_set)
        leases.let_end("large")
        await soon(asyncio.gather(small, large, *later))


@pytest.mark.parametrize("threads", [2, 8])
async def test_runs_that_nobody_can_predict_keep_no_thread_idle(tmp_path: Path, threads: int) -> None:
    scripts = {"a": FakeScript(run_may_end=threading.Event())}
    async with Stage(tmp_path, scripts, threads=threads) as stage, Leases(stage) as leases:
        at_once = max(4, threads)
        runs = [leases.begin("a") for _ in range(at_once + 1)]
        await until(lambda: stage.runner.in_flight == at_once)
        await turns(20)
        assert stage.runner.in_flight == at_once
        leases.let_end("a")
        await soon(asyncio.gather(*runs))


async def test_the_line_is_bounded(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(60)}, max_queue=2) as stage, Leases(stage) as leases:
        runs = [await leases.begun("a"), leases.begin("a"), leases.begin("a")]
        await turns(3)
        with pytest.raises(Overloaded, match="memory of runs is full: 2 waiting"):
            await leases.begin("a")
        leases.let_end("a")
        await soon(asyncio.gather(*runs))


async def test_a_run_that_finds_no_thread_gives_its_claim_back(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(1)}, threads=1, max_queue=1) as stage, Leases(stage) as leases:
        runs = [await leases.begun("a"), leases.begin("a")]
        await until(lambda: stage.runner.in_flight == 2)
        with pytest.raises(Overloaded, match="inference threads is full"):
            await leases.begin("a")
        assert stage.pool.activations.claimed_bytes == 2 * MB
        leases.let_end("a")
        await soon(asyncio.gather(*runs))


# --- what leaves early ----------------------------------------------------------------------------------------


async def test_the_deadline_holds_while_a_run_waits_for_memory(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(60)}) as stage, Leases(stage) as leases:
        running = await leases.begun("a")
        with pytest.raises(DeadlineExceeded, match="the memory that other runs hold"):
            await leases.begin("a", deadline=asyncio.get_running_loop().time() + 0.001)
        assert stage.script("a").runs == 1
        leases.let_end("a")
        await soon(running)


async def test_a_run_that_does_not_notice_its_cancellation_keeps_its_claim(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"deaf": held(60, is_deaf=True), "next": script(10)}) as stage, Leases(stage) as leases:
        running = await leases.begun("deaf")
        running.cancel()
        await asyncio.wait([running])
        waiting = leases.begin("next")
        await turns(20)
        assert stage.pool.activations.claimed_bytes == 60 * MB
        assert not stage.script("next").run_started.is_set()
        leases.let_end("deaf")
        await soon(waiting)


@pytest.mark.parametrize("count", range(25))
async def test_a_run_cancelled_at_any_moment_gives_its_claim_back(tmp_path: Path, count: int) -> None:
    async with Stage(tmp_path, {"first": held(60), "a": script(60)}) as stage, Leases(stage) as leases:
        first = await leases.begun("first")
        run, next_run = leases.begin("a"), leases.begin("a")
        await turns(count % 5)
        leases.let_end("first")
        for _ in range(count // 5):
            await turns(1)
            await asyncio.get_running_loop().run_in_executor(None, int)  # lets the threads run
        run.cancel()
        await asyncio.wait([run])
        await soon(asyncio.gather(first, next_run))
        await until(lambda: stage.pool.activations.claimed_bytes == 0)


async def test_a_lease_that_ends_while_its_run_waits_leaves_no_claim(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(60)}) as stage, Leases(stage) as leases:
        running = await leases.begun("a")
        lease = await stage.pool.acquire("a")
        waiting = stage.begin(lease.run(FEEDS))
        await turns(3)
        lease.end()
        leases.let_end("a")
        await soon(running)
        with pytest.raises(Exception, match="has ended"):
            await soon(waiting)
        assert stage.pool.activations.claimed_bytes == 0


async def test_closing_answers_who_waits_for_memory(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": held(60)}) as stage:
        lease = await stage.pool.acquire("a")
        running, waiting = stage.begin(lease.run(FEEDS)), stage.begin(lease.run(FEEDS))
        await until(stage.script("a").run_started.is_set)
        await turns(3)
        closing = stage.begin(stage.pool.close())
        with pytest.raises(Exception, match="shutting down"):
            await soon(waiting)
        event = stage.script("a").run_may_end
        assert event is not None
        event.set()
        await soon(asyncio.gather(running, closing))


# --- what the prediction missed ----------------------------------------------------------------------------------


async def test_runs_that_take_more_than_predicted_follow_each_other(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(5, run_bytes=40 * MB)}) as stage, Leases(stage) as leases:
        stage.machine.arena_bytes = 64 * MB
        runs = [leases.begin("a") for _ in range(50)]
        answers = await soon(asyncio.gather(*runs))
        assert [answer["y"].tolist() for answer in answers] == [[2.0, 2.0]] * 50
        assert stage.pool.activations.refused_total == 0


async def test_a_run_that_the_arena_refuses_runs_again_alone_before_who_waits(tmp_path: Path) -> None:
    scripts = {"other": held(60, run_bytes=30 * MB), "missed": script(1, run_bytes=40 * MB), "next": held(10)}
    async with Stage(tmp_path, scripts) as stage, Leases(stage) as leases:
        stage.machine.arena_bytes = 64 * MB
        other = await leases.begun("other")
        missed = leases.begin("missed")
        await until(lambda: stage.pool.activations.missed_total == 1)
        following = leases.begin("next")
        await turns(20)
        assert not stage.script("next").run_started.is_set()
        leases.let_end("other")
        await soon(asyncio.gather(other, missed))
        leases.let_end("next")
        await soon(following)
        assert stage.script("missed").runs == 1  # the first try did not get as far
        assert (stage.pool.activations.missed_total, stage.pool.activations.refused_total) == (1, 0)


async def test_a_run_that_the_arena_refuses_alone_is_too_large_and_the_next_one_works(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": script(5, run_bytes=70 * MB)}) as stage, Leases(stage) as leases:
        stage.machine.arena_bytes = 64 * MB
        with pytest.raises(RunTooLarge) as refusal:
            await soon(leases.begin("a"))
        assert refusal.value.details() == {"needed_bytes": 70 * MB, "available_bytes": 64 * MB, "max_rows": None}
        assert (stage.pool.activations.missed_total, stage.pool.activations.refused_total) == (2, 1)
        stage.script("a").run_bytes = 5 * MB
        await soon(leases.begin("a"))


async def test_a_run_that_outputs_of_others_leave_no_room_for_is_refused_for_now(tmp_path: Path) -> None:
    def keep(arrays: list[Array]) -> Kept[list[Array]]:
        return Kept(arrays, 30 * MB)

    async with Stage(tmp_path, {"a": script(50), "b": script(40)}) as stage, Leases(stage) as leases:
        kept = await soon(leases.leases["a"].run_checked(FEEDS, ["y"], keep))
        with kept as arrays:
            assert [array.tolist() for array in arrays] == [[2.0, 2.0]]
            assert stage.pool.activations.claimed_bytes == 30 * MB
            stage.machine.arena_bytes = 34 * MB  # without what is kept
            with pytest.raises(ActivationsFull) as refusal:
                await soon(leases.begin("b"))
            assert refusal.value.needed_bytes == 40 * MB
            assert stage.pool.activations.missed_total == 2
        stage.machine.arena_bytes = 64 * MB
        await soon(leases.begin("b"))


@pytest.mark.parametrize("count", range(6))
async def test_outputs_that_are_kept_for_a_requester_that_leaves_hold_nothing(tmp_path: Path, count: int) -> None:
    async with Stage(tmp_path, {"a": held(50)}) as stage, Leases(stage) as leases:
        ended = threading.Event()

        def keep(arrays: list[Array]) -> Kept[list[Array]]:
            ended.set()
            return Kept(arrays, 30 * MB)

        task = stage.begin(leases.leases["a"].run_checked(FEEDS, ["y"], keep))
        await until(stage.script("a").run_started.is_set)
        leases.let_end("a")
        await until(ended.is_set)
        await turns(count)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        else:
            with task.result():
                assert stage.pool.activations.claimed_bytes == 30 * MB
        await until(lambda: stage.pool.activations.claimed_bytes == 0)


# --- memory beside the arena ----------------------------------------------------------------------------------


async def test_idle_models_leave_for_a_run(tmp_path: Path) -> None:
    idle = {name: FakeScript() for name in "bcde"}
    async with Stage(tmp_path, {"a": script(60)} | idle) as stage:
        await stage.use(*"bcde")
        async with stage.pool.lease("a") as lease:
            stage.machine.other_bytes = 40 * MB  # 200 used with the models
            await soon(lease.run(FEEDS))
        assert stage.loaded == ["a", "c", "d", "e"], "as many as it takes"
        assert stage.machine.highest_bytes < stage.machine.limit_bytes


async def test_a_run_goes_on_beside_models_that_it_leaves_room_for(tmp_path: Path) -> None:
    idle = {name: FakeScript() for name in "bcde"}
    async with Stage(tmp_path, {"a": script(60)} | idle) as stage:
        await stage.use(*"bcdea")
        assert stage.loaded == ["a", "b", "c", "d", "e"]
