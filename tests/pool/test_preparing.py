"""A model that nobody has opened is opened by a child first, within what memory allows."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, soon, turns, until

from modelhost.errors import HostClosed, InsufficientMemory, ModelBroken, NeverFits
from modelhost.runtime.base import LoadError
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio

#: What a child is given at first where it wants more than there is: 132 MB between baseline and critical.
MOST_BYTES = int((132 * MB - 1) * 7 / 8)


async def test_a_child_opens_a_model_once_and_before_the_host_does(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=50 * MB, prepare_may_end=gate)}) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").prepare_started.is_set)
        assert stage.states() == {"a": "preparing"}
        assert stage.memory.ledger.totals.loading_bytes == 50 * MB
        assert stage.script("a").loads == 0
        gate.set()
        (await soon(request)).end()
        await stage.pool.unload("a")
        await stage.use("a")
        assert stage.script("a").ceilings == [50 * MB]
        assert stage.pool.snapshot().counters.preparations == 1
        stage.check_at_rest()


async def test_everybody_who_asks_meanwhile_waits_for_the_one_child(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=MB, prepare_may_end=gate)}) as stage:
        requests = [stage.begin(stage.use("a")) for _ in range(5)]
        await until(stage.script("a").prepare_started.is_set)
        gate.set()
        await soon(asyncio.gather(*requests))
        assert len(stage.script("a").ceilings) == 1
        assert stage.script("a").loads == 1


async def test_one_child_at_a_time_and_loads_go_on_beside_it(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {
        "a": FakeScript(child_bytes=50 * MB, prepare_may_end=gate),
        "b": FakeScript(child_bytes=10 * MB),
        "known": FakeScript(),
    }
    async with Stage(tmp_path, scripts) as stage:
        first, second = stage.begin(stage.use("a")), stage.begin(stage.use("b"))
        await until(stage.script("a").prepare_started.is_set)
        await soon(stage.use("known"))
        assert stage.states() == {"a": "preparing", "b": "queued", "known": "ready"}
        gate.set()
        await soon(asyncio.gather(first, second))
        assert stage.loaded == ["a", "b", "known"]


async def test_what_the_child_holds_already_is_not_reserved_twice(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"a": FakeScript(child_bytes=60 * MB, prepare_may_end=gate), "b": FakeScript(), "c": FakeScript()}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("b")
        request = stage.begin(stage.use("a"))
        await until(stage.script("a").prepare_started.is_set)
        # 60 of the host, 20 of b, 60 of the child, and 20 of c are below warning; with 60 more they are not.
        await soon(stage.use("c"))
        assert stage.loaded == ["b", "c"]
        gate.set()
        await soon(request)


async def test_idle_models_leave_for_a_child(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "bcde"} | {"a": FakeScript(child_bytes=90 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("b", "c", "d", "e")
        await soon(stage.use("a"))
        assert "a" in stage.loaded
        assert "b" not in stage.loaded
        assert stage.machine.highest_bytes < stage.memory.thresholds.critical_bytes


async def test_a_child_that_met_its_ceiling_is_given_more(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=80 * MB, child_estimate_bytes=30 * MB)}) as stage:
        await soon(stage.use("a"))
        assert stage.script("a").ceilings == [30 * MB, 60 * MB, MOST_BYTES]
        stage.check_at_rest()


async def test_a_child_leaves_a_part_of_what_there_is_to_others_as_long_as_that_may_do(tmp_path: Path) -> None:
    """All would have to leave for the last of it, those that are in use all the time and hold next to nothing too."""
    small = {name: FakeScript(resident_bytes=MB // 4) for name in "rstuvw"}
    scripts = {"a": FakeScript(child_bytes=100 * MB, child_estimate_bytes=200 * MB), "b": FakeScript()} | small
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("b", *small)
        await soon(stage.use("a"))
        assert stage.script("a").ceilings == [MOST_BYTES]
        assert set(small) <= set(stage.loaded)
        assert stage.script("r").loads == 1


async def test_what_is_idle_and_holds_next_to_nothing_stays_beside_a_child(tmp_path: Path) -> None:
    """One would leave for the other, and be back in a moment in its place, for as long as the child is at work."""
    gate = threading.Event()
    small = {name: FakeScript(resident_bytes=MB, peak_bytes=10 * MB) for name in "rstuvw"}
    scripts = {
        "a": FakeScript(child_bytes=115 * MB, prepare_may_end=gate),
        "b": FakeScript(resident_bytes=10 * MB, peak_bytes=15 * MB),
    }
    async with Stage(tmp_path, scripts | small) as stage:
        await stage.use(*small)
        request = stage.begin(stage.use("a"))
        await until(stage.script("a").prepare_started.is_set)
        waiting = stage.begin(stage.use("b"))
        await until(lambda: stage.states().get("b") == "queued")
        await turns(50)
        await stage.use(*small)
        gate.set()
        await soon(asyncio.gather(request, waiting))
        assert [stage.script(name).loads for name in small] == [1] * len(small)


async def test_a_child_is_given_what_there_is_where_the_host_is_not_as_empty_as_it_was(tmp_path: Path) -> None:
    scripts = {
        "a": FakeScript(child_bytes=120 * MB, child_least_bytes=MB, child_estimate_bytes=200 * MB),
        "b": FakeScript(),
    }
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("b")
        await stage.settled()
        stage.machine.other_bytes = 3 * MB
        await soon(stage.use("a"))
        assert stage.script("a").ceilings == [int((129 * MB - 1) * 7 / 8), 129 * MB - 1]
        stage.check_at_rest()


async def test_more_and_more_ends_in_the_figures_and_not_in_a_broken_model(tmp_path: Path) -> None:
    script = FakeScript(child_bytes=3000 * MB, child_least_bytes=MB, child_estimate_bytes=MB)
    async with Stage(tmp_path, {"a": script}, limit_bytes=2048 * MB) as stage:
        with pytest.raises(NeverFits):
            await soon(stage.use("a"))
        assert len(script.ceilings) > 5


async def test_what_no_child_can_open_here_is_refused_with_figures_and_remembered(tmp_path: Path) -> None:
    modest = FakeScript(child_bytes=300 * MB, child_least_bytes=MB, child_estimate_bytes=30 * MB)
    async with Stage(tmp_path, {"a": modest, "b": FakeScript()}) as stage:
        with pytest.raises(NeverFits) as refusal:
            await soon(stage.use("a"))
        assert refusal.value.available_bytes == 132 * MB - 1
        assert "modelhost prepare" in str(refusal.value)
        ceilings = list(stage.script("a").ceilings)
        assert ceilings[-1] == 132 * MB - 1
        with pytest.raises(NeverFits):
            await soon(stage.use("a"))
        assert stage.script("a").ceilings == ceilings
        await soon(stage.use("b"))
        stage.check_at_rest()


async def test_what_is_too_large_for_sure_costs_no_child_and_no_other_model(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=200 * MB), "b": FakeScript()}) as stage:
        await stage.use("b")
        with pytest.raises(NeverFits, match=r"200\.0 MB") as refusal:
            await soon(stage.use("a"))
        assert refusal.value.needed_bytes == 200 * MB
        assert stage.script("a").ceilings == []
        assert stage.loaded == ["b"]


async def test_a_child_that_cannot_open_it_makes_it_broken(tmp_path: Path) -> None:
    error = LoadError("it was ended by signal 11 (SIGSEGV)")
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=MB, prepare_error=error), "b": FakeScript()}) as stage:
        with pytest.raises(ModelBroken, match="SIGSEGV"):
            await soon(stage.use("a"))
        await soon(stage.use("b"))
        assert stage.script("a").loads == 0
        stage.check_at_rest()


async def test_a_model_that_is_waited_for_no_more_is_prepared_and_not_loaded(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=MB, prepare_may_end=gate)}) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").prepare_started.is_set)
        request.cancel()
        await turns(3)
        assert stage.states() == {"a": "preparing"}
        gate.set()
        await until(lambda: stage.states() == {})
        assert (stage.script("a").is_prepared, stage.script("a").loads) == (True, 0)
        stage.check_at_rest()


async def test_an_unload_meanwhile_leaves_the_requests_waiting(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=MB, prepare_may_end=gate)}) as stage:
        request = stage.begin(stage.use("a"))
        await until(stage.script("a").prepare_started.is_set)
        assert await soon(stage.pool.unload("a")) == ()
        gate.set()
        await soon(request)


async def test_closing_ends_the_child(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=MB, prepare_may_end=gate)}) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").prepare_started.is_set)
        await soon(stage.pool.close())
        with pytest.raises(HostClosed):
            await soon(request)
        assert stage.memory.ledger.open_count == 0


async def test_a_load_that_waits_for_a_child_to_end_is_not_refused(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"a": FakeScript(child_bytes=100 * MB, prepare_may_end=gate), "b": FakeScript(resident_bytes=60 * MB)}
    async with Stage(tmp_path, scripts, sampling=True) as stage:
        first, second = stage.begin(stage.use("a")), None
        await until(stage.script("a").prepare_started.is_set)
        second = stage.begin(stage.use("b"))
        await until(lambda: stage.states().get("b") == "queued")
        stage.clock.now += 1000
        await turns(200)
        assert stage.states()["b"] == "queued"
        gate.set()
        await soon(asyncio.gather(first, second))


async def test_a_damaged_artifact_is_prepared_again_and_the_request_served(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(unusable_artifacts=1)}) as stage:
        async with stage.pool.lease("a") as lease:
            assert (await lease.run(FEEDS))["y"].tolist() == [2.0, 2.0]
        assert stage.script("a").loads == 2
        stage.check_at_rest()


async def test_artifacts_that_stay_unusable_end_in_an_error(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(unusable_artifacts=1000)}) as stage:
        with pytest.raises(ModelBroken, match="looks"):
            await soon(stage.use("a"))
        stage.check_at_rest()


# --- predictions -------------------------------------------------------------------------------------


async def test_a_figure_that_was_too_small_grows_to_the_truth(tmp_path: Path) -> None:
    scripts = {"a": FakeScript(resident_bytes=30 * MB, estimate_bytes=20 * MB), "b": FakeScript(estimate_bytes=30 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("a", "b")
        await stage.settled()
        assert stage.script("a").learnt == [30 * MB]
        assert stage.script("b").learnt == []  # held less than was said: others may need it all
        counters = stage.pool.snapshot().counters
        assert (counters.overshoot_bytes, counters.undershoot_bytes) == (10 * MB, 10 * MB)
        kinds = [event.kind for event in stage.memory.history.snapshot()]
        assert kinds.count("misprediction") == 2


async def test_a_tenth_is_no_misprediction(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(resident_bytes=21 * MB, estimate_bytes=20 * MB)}) as stage:
        await stage.use("a")
        assert [event.kind for event in stage.memory.history.snapshot()] == []
        assert stage.script("a").learnt == []


# --- idle models -------------------------------------------------------------------------------------


async def test_what_nobody_has_used_for_the_idle_ttl_leaves_with_its_pages(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abc", sampling=True, idle_ttl=60, models={"pinned": ("c",)}) as stage:
        await stage.use("a", "c")
        stage.clock.now += 40
        await stage.use("b")
        stage.clock.now += 40
        await until(lambda: stage.loaded == ["b", "c"])
        await until(lambda: stage.runtime.forgotten == ["a"])
        assert stage.pool.snapshot().counters.expiries == 1
        await stage.use("a")
        assert stage.loaded == ["a", "b", "c"]


async def test_a_model_in_use_is_not_idle_however_long(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a", sampling=True, idle_ttl=60) as stage:
        async with stage.pool.lease("a"):
            stage.clock.now += 1000
            await turns(100)
            assert stage.loaded == ["a"]
        await turns(100)
        assert stage.loaded == ["a"]


async def test_an_eviction_gives_back_the_pages_of_cold_models_only(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        await stage.use("a")
        stage.clock.now += 120
        await stage.use("b", "c", "d", "e", "f", "g")
        await stage.settled()
        assert "a" not in stage.loaded
        assert "b" not in stage.loaded
        assert stage.runtime.forgotten == ["a"]


async def test_waiting_for_memory_that_a_lease_holds_ends_in_a_refusal_as_before(tmp_path: Path) -> None:
    scripts = {"a": FakeScript(resident_bytes=90 * MB), "b": FakeScript(child_bytes=60 * MB)}
    async with Stage(tmp_path, scripts, sampling=True) as stage:
        async with stage.pool.lease("a"):
            request = stage.begin(stage.pool.acquire("b"))
            await until(lambda: stage.states().get("b") == "queued")
            while not request.done():  # patience begins when it has been looked at
                stage.clock.now += 100
                await turns(1)
            with pytest.raises(InsufficientMemory, match="first time"):
                await soon(request)
        stage.check_at_rest()
