"""A model whose worker process ends leaves, and comes back: at once, then later after each further time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, ByHand, Stage, StopWatch, know, soon, until

from modelhost.errors import WorkerCrashed, WorkerRestarting
from modelhost.pool.key import ModelKey
from modelhost.pool.statistics import Timing
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


def crash(stage: Stage, name: str, reason: str = "it ended with signal 11 (SIGSEGV)") -> None:
    """Ends a model's worker as its thread would tell it; `end` of the same slot is later than this."""
    ended = stage.script(name).ended
    assert ended is not None
    ended(reason)


async def test_a_model_comes_back_at_once_the_first_time_and_nobody_else_notices(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(is_isolated=True), "b": FakeScript()}) as stage:
        await stage.use("a")
        await stage.use("b")
        crash(stage, "a")
        await until(lambda: stage.script("a").loads == 2)
        await soon(stage.use("a"))
        assert stage.script("b").loads == 1
        assert stage.pool.is_ready("a")
        counters = stage.pool.snapshot().counters
        assert (counters.worker_crashes, counters.evictions) == (1, 0)
        (event,) = [event for event in stage.memory.history.snapshot() if event.kind == "worker_crash"]
        assert (event.cause, event.details["in_a_row"]) == ("a:1", 1)
        stage.check_at_rest()


async def test_after_that_requests_are_sent_away_until_its_time_has_come(tmp_path: Path) -> None:
    stage = Stage(tmp_path, {"a": FakeScript(is_isolated=True)}, failure_backoff_s=0.02, failure_backoff_max_s=0.05)
    async with stage:
        for crashes, wait_s in ((1, 0.0), (2, 0.02), (3, 0.04), (4, 0.05), (5, 0.05)):
            await soon(stage.use("a"))
            crash(stage, "a")
            await until(lambda crashes=crashes: stage.pool.snapshot().counters.worker_crashes == crashes)
            if not wait_s:
                continue
            with pytest.raises(WorkerRestarting, match="SIGSEGV") as refused:
                await stage.pool.acquire("a")
            assert refused.value.details() == {
                "reason": "it ended with signal 11 (SIGSEGV)",
                "crashes": crashes,
                "retry_after_s": 1,
            }
            assert refused.value.wait_s == pytest.approx(wait_s)
            assert not stage.pool.is_ready("a")
            await until(lambda: not stage.states().get("a"))
            state, reason = stage.pool.state_of(ModelKey("a", "1"))
            assert state == "UNAVAILABLE"
            assert "SIGSEGV" in reason
            stage.clock.now += wait_s
            assert stage.pool.is_ready("a")
            await until(lambda crashes=crashes: stage.script("a").loads == crashes + 1)
        stage.clock.now += 0.05 + 0.05  # well for so long: it begins anew
        await soon(stage.use("a"))
        crash(stage, "a")
        await soon(until(lambda: stage.script("a").loads == 7))


async def test_somebody_who_asks_for_a_load_need_not_wait(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(is_isolated=True)}, failure_backoff_s=60) as stage:
        for crashes in (1, 2):
            await soon(stage.use("a"))
            crash(stage, "a")
            await until(lambda crashes=crashes: stage.pool.snapshot().counters.worker_crashes == crashes)
        with pytest.raises(WorkerRestarting):
            await stage.pool.acquire("a")
        await soon(stage.pool.load("a"))
        await soon(stage.use("a"))


async def test_what_was_unloaded_meanwhile_stays_away(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(is_isolated=True, close_may_end=gate)}) as stage:
        await stage.use("a")
        crash(stage, "a")
        unload = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        gate.set()
        await soon(unload)
        await until(lambda: not stage.states())
        assert stage.script("a").loads == 1


async def test_all_requests_of_a_shared_run_end_with_it_and_those_that_wait_come_back(tmp_path: Path) -> None:
    gate, script = threading.Event(), FakeScript(is_isolated=True, width=2)
    async with Stage(tmp_path, {"a": script}, models={"options": {"a": {"batching": True}}}, threads=1) as stage:
        async with stage.pool.lease("a") as lease:
            script.run_may_end = gate
            feeds = {"x": FEEDS["x"].reshape(1, 2)}
            runs = [stage.begin(lease.run(feeds)) for _ in range(4)]
            await until(script.run_started.is_set)
            script.run_error = WorkerCrashed("it ended with signal 11 (SIGSEGV)")
            crash(stage, "a")
            late = stage.begin(stage.pool.acquire("a"))
            gate.set()
            ends = await soon(asyncio.gather(*runs, return_exceptions=True))
        assert [type(end) for end in ends] == [WorkerCrashed] * 4
        assert len({id(end) for end in ends}) == 4  # each its own
        assert script.sizes == [4]  # none is tried again by itself
        script.run_error = None
        (await soon(late)).end()
        assert script.loads == 2


async def test_what_a_crashed_model_held_is_not_missed(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(is_isolated=True)}) as stage:
        await stage.use("a")
        stage.machine.add(-20 * MB)  # gone with the process
        stage.script("a").resident_bytes = 0
        crash(stage, "a")
        await until(lambda: stage.script("a").loads == 2)
        await soon(stage.use("a"))
        assert stage.memory.shortfall_bytes_total == 0
        assert stage.memory.ledger.totals.resident_bytes == 0


async def test_a_close_does_not_wait_for_a_restart(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(is_isolated=True)}, failure_backoff_s=60) as stage:
        for crashes in (1, 2):
            await soon(stage.use("a"))
            crash(stage, "a")
            await until(lambda crashes=crashes: stage.pool.snapshot().counters.worker_crashes == crashes)
    assert stage.script("a").loads == 2


async def test_runs_of_an_isolated_model_are_never_in_place(tmp_path: Path) -> None:
    small = RunFootprint((Term(100.0),), {})
    scripts = {"a": FakeScript(is_isolated=True, run_footprint=small), "b": FakeScript(run_footprint=small)}
    async with Stage(tmp_path, scripts, runner={"clock_ns": StopWatch(), "guard": ByHand()}) as stage:
        found = {}
        for name in ("a", "b"):
            await stage.use(name)
            slot = stage.pool.resident((name, None))
            assert slot is not None
            assert slot.runs is not None
            know(slot.runs)
            found[name] = slot.runs.try_in_place(FEEDS, ("y",), Timing(0))
        assert found["a"] is None
        assert found["b"] is not None
