"""A flood for one model does not starve the others: threads, memory of runs, bounded queues."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from pool_stage import FEEDS, MB, Stage, soon, turns, until

from modelhost.errors import Overloaded
from modelhost.pool import Lease
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


def large(megabytes: float) -> FakeScript:
    """A model whose runs take so much of the arena of 64 MB, and end when they are let to."""
    size_bytes = int(megabytes * MB)
    footprint = RunFootprint((Term(size_bytes),), {})
    return FakeScript(run_may_end=threading.Event(), run_bytes=size_bytes, run_footprint=footprint)


def held() -> FakeScript:
    return large(0.01)


def let_end(*scripts: FakeScript) -> None:
    for script in scripts:
        assert script.run_may_end is not None
        script.run_may_end.set()


# --- threads -----------------------------------------------------------------------------------------------


async def test_whoever_is_flooded_lets_another_model_run_next(tmp_path: Path) -> None:
    scripts = {"flooded": held(), "other": held()}
    async with Stage(tmp_path, scripts, threads=1) as stage:
        async with stage.pool.lease("flooded") as flooded, stage.pool.lease("other") as other:
            flood = [stage.begin(flooded.run(FEEDS)) for _ in range(64)]
            await until(scripts["flooded"].run_started.is_set)
            one = stage.begin(other.run(FEEDS))
            await turns(3)
            let_end(scripts["flooded"])
            await until(scripts["other"].run_started.is_set)
            assert scripts["flooded"].runs <= 2  # which began before anybody knew what they take
            let_end(scripts["other"])
            await soon(asyncio.gather(one, *flood))
        await stage.settled()
        stage.check_at_rest()


@pytest.mark.parametrize("most", [1, 2])
async def test_a_model_runs_no_more_often_at_once_than_its_options_say(tmp_path: Path, most: int) -> None:
    scripts = {"bound": held(), "other": held()}
    models = {"options": {"bound": {"max_concurrency": most}}}
    async with Stage(tmp_path, scripts, threads=4, models=models) as stage:
        async with stage.pool.lease("bound") as bound, stage.pool.lease("other") as other:
            flood = [stage.begin(bound.run(FEEDS)) for _ in range(8)]
            await until(lambda: scripts["bound"].runs == most)
            others = [stage.begin(other.run(FEEDS)) for _ in range(4 - most)]
            await until(lambda: scripts["other"].runs == 4 - most)
            await turns(20)
            assert scripts["bound"].runs == most
            let_end(*scripts.values())
            await soon(asyncio.gather(*flood, *others))
        assert scripts["bound"].runs == 8


# --- bounds ------------------------------------------------------------------------------------------------


async def flood_until_refused(stage: Stage, lease: Lease) -> tuple[list[asyncio.Task[Any]], Overloaded]:
    """Asks until one is refused."""
    asked: list[asyncio.Task[Any]] = []
    while True:
        asked.append(stage.begin(lease.run(FEEDS)))
        await turns(2)
        if asked[-1].done():
            error = asked.pop().exception()
            assert isinstance(error, Overloaded)
            return asked, error


async def test_a_flood_leaves_room_in_the_queue_for_others(tmp_path: Path) -> None:
    scripts = {"flooded": held(), "other": held()}
    async with (
        Stage(tmp_path, scripts, threads=1, max_queue=16) as stage,
        stage.pool.lease("flooded") as flooded,
        stage.pool.lease("other") as other,
    ):
        flood, refused = await flood_until_refused(stage, flooded)
        assert str(refused) == (
            "the queue for inference threads is full for flooded:1: 12 waiting, its limit is 12 of 16 in all"
        )
        assert refused.details() == {
            "queue": "the queue for inference threads",
            "waiting": 12,
            "limit": 12,
            "model": "flooded:1",
        }
        more, refused = await flood_until_refused(stage, other)
        assert len(more) == 4
        let_end(*scripts.values())
        await soon(asyncio.gather(*flood, *more))


@pytest.mark.parametrize("where", ["settings", "options"])
async def test_the_queue_of_a_model_has_the_bound_that_it_is_given(tmp_path: Path, where: str) -> None:
    scripts = {"a": held()}
    stage_options: dict[str, Any] = {"max_queue_per_model": 5}
    if where == "options":
        stage_options = {"max_queue_per_model": 9, "models": {"options": {"a": {"max_queue": 5}}}}
    async with Stage(tmp_path, scripts, threads=1, **stage_options) as stage, stage.pool.lease("a") as lease:
        flood, refused = await flood_until_refused(stage, lease)
        assert len(flood) == 6  # one of them runs
        assert "5 waiting, its limit is 5 of 256 in all" in str(refused)
        let_end(scripts["a"])
        await soon(asyncio.gather(*flood))


async def test_a_flood_for_a_model_that_loads_leaves_room_for_those_who_want_others(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"slow": FakeScript(load_may_end=gate), "other": FakeScript()}
    async with Stage(tmp_path, scripts, max_waiting=8) as stage:
        flood = [stage.begin(stage.use("slow")) for _ in range(7)]
        await until(lambda: any(task.done() for task in flood))
        (refused,) = [task.exception() for task in flood if task.done()]
        assert "the queue for models is full for slow:1: 6 waiting, its limit is 6 of 8 in all" in str(refused)
        other = stage.begin(stage.use("other"))
        await turns(5)
        assert stage.pool.snapshot().waiting == 7
        gate.set()
        await soon(asyncio.gather(other, *(task for task in flood if not task.done())))


# --- memory of runs ------------------------------------------------------------------------------------------


async def test_models_take_turns_at_the_memory_of_runs(tmp_path: Path) -> None:
    scripts = {"flooded": large(60), "other": large(40), "third": large(1)}
    async with Stage(tmp_path, scripts) as stage:
        leases = {name: await stage.pool.acquire(name) for name in scripts}
        flood = [stage.begin(leases["flooded"].run(FEEDS)) for _ in range(20)]
        await until(scripts["flooded"].run_started.is_set)
        await turns(3)
        others = [stage.begin(leases[name].run(FEEDS)) for name in ("other", "third")]
        await turns(3)
        assert stage.pool.activations.waiting == 21
        let_end(scripts["flooded"])
        await until(scripts["other"].run_started.is_set)
        await until(scripts["third"].run_started.is_set)
        assert scripts["flooded"].runs == 2  # what ran, and whose turn it was when the others came
        let_end(*scripts.values())
        await soon(asyncio.gather(*flood, *others))
        for lease in leases.values():
            lease.end()


async def test_a_run_whose_turn_it_is_is_not_passed_by_small_ones_of_any_model(tmp_path: Path) -> None:
    scripts = {"running": large(30), "large": large(60), "small": large(1), "tiny": large(1)}
    async with Stage(tmp_path, scripts) as stage:
        leases = {name: await stage.pool.acquire(name) for name in scripts}
        tasks = [stage.begin(leases["running"].run(FEEDS))]
        await until(scripts["running"].run_started.is_set)
        tasks.append(stage.begin(leases["large"].run(FEEDS)))
        await turns(3)
        tasks += [stage.begin(leases[name].run(FEEDS)) for _ in range(10) for name in ("small", "tiny")]
        await turns(20)
        assert not scripts["small"].run_started.is_set()
        let_end(scripts["running"])
        await until(scripts["large"].run_started.is_set)
        let_end(*scripts.values())
        await soon(asyncio.gather(*tasks))
        for lease in leases.values():
            lease.end()


def known_short(stage: Stage, lease: Lease) -> None:
    for _ in range(2):
        lease._runs.demand.look(FEEDS).note(1_000_000, 8)


async def test_short_runs_pass_one_that_waits_for_long_ones_and_do_not_delay_it(tmp_path: Path) -> None:
    scripts = {"running": large(40), "large": large(60), "small": large(3)}
    async with Stage(tmp_path, scripts) as stage:
        leases = {name: await stage.pool.acquire(name) for name in scripts}
        known_short(stage, leases["small"])
        tasks = [stage.begin(leases["running"].run(FEEDS))]
        await until(scripts["running"].run_started.is_set)
        tasks.append(stage.begin(leases["large"].run(FEEDS)))
        await turns(3)
        tasks.append(stage.begin(leases["small"].run(FEEDS)))
        await until(scripts["small"].run_started.is_set)  # beside the long one, for which the large one waits
        let_end(scripts["running"])
        await until(lambda: stage.pool.activations.claimed_bytes == 63 * MB)  # the large one has not waited for it
        await until(scripts["large"].run_started.is_set)
        let_end(*scripts.values())
        await soon(asyncio.gather(*tasks))
        for lease in leases.values():
            lease.end()
        await stage.settled()
        stage.check_at_rest()
        assert stage.pool.activations._passing_bytes == 0


async def test_no_short_run_passes_one_that_waits_only_for_short_ones(tmp_path: Path) -> None:
    scripts = {"running": large(30), "large": large(60), "small": large(3.5)}
    async with Stage(tmp_path, scripts, threads=8) as stage:
        leases = {name: await stage.pool.acquire(name) for name in scripts}
        known_short(stage, leases["small"])
        tasks = [stage.begin(leases["running"].run(FEEDS))]
        await until(scripts["running"].run_started.is_set)
        tasks.append(stage.begin(leases["large"].run(FEEDS)))
        await turns(3)
        tasks += [stage.begin(leases["small"].run(FEEDS)) for _ in range(3)]
        await until(lambda: scripts["small"].runs == 3)
        let_end(scripts["running"])
        await until(lambda: stage.pool.activations.claimed_bytes == int(10.5 * MB))
        tasks.append(stage.begin(leases["small"].run(FEEDS)))
        await turns(20)
        assert scripts["small"].runs == 3  # the large one goes first
        let_end(*scripts.values())
        await soon(asyncio.gather(*tasks))
        for lease in leases.values():
            lease.end()


async def test_a_flood_leaves_room_in_the_line_for_memory(tmp_path: Path) -> None:
    scripts = {"flooded": large(60), "other": large(40)}
    async with (
        Stage(tmp_path, scripts, max_queue=8) as stage,
        stage.pool.lease("flooded") as flooded,
        stage.pool.lease("other") as other,
    ):
        flood, refused = await flood_until_refused(stage, flooded)
        assert "memory of runs is full for flooded:1: 6 waiting, its limit is 6 of 8 in all" in str(refused)
        one = stage.begin(other.run(FEEDS))
        await turns(3)
        assert not one.done()
        let_end(*scripts.values())
        await soon(asyncio.gather(one, *flood))
