"""Models leave on request, under pressure and when their files change; never under somebody's hands."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, put_models, soon, turns, until

from modelhost.errors import DeadlineExceeded, HostClosed, ModelNotFound
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


# --- on request -------------------------------------------------------------------------------------


async def test_an_unload_answers_when_the_memory_is_back(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate)}) as stage:
        await stage.use("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        await turns(20)
        assert not unloading.done()
        assert stage.states() == {"a": "unloading"}
        assert stage.memory.ledger.totals.leaving_bytes == 20 * MB
        gate.set()
        (recovery,) = await soon(unloading)
        assert (recovery.victims, recovery.freed_bytes, recovery.shortfall_bytes) == (("a:1",), 20 * MB, 0)
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.states() == {}
        assert stage.pool.snapshot().counters.unloads == 1
        stage.check_at_rest()


async def test_an_unload_waits_for_leases_and_grants_none_meanwhile(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        lease = await stage.pool.acquire("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(lambda: stage.states() == {"a": "draining"})
        later = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        await turns(20)
        assert not unloading.done()
        assert not later.done()
        assert (await lease.run(FEEDS))["y"].tolist() == [2.0, 2.0]  # what is leased still works
        assert stage.script("a").closes == 0

        lease.end()
        (recovery,) = await soon(unloading)
        assert recovery.freed_bytes == 20 * MB
        second = await soon(later)
        assert stage.script("a").loads == 2  # who came meanwhile loads it again
        second.end()
        stage.check_at_rest()


async def test_a_request_during_an_unload_loads_the_model_again_after_it(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate)}) as stage:
        await stage.use("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        later = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        assert stage.script("a").loads == 1
        gate.set()
        await soon(unloading)
        (await soon(later)).end()
        assert stage.script("a").loads == 2
        stage.check_at_rest()


async def test_a_second_unload_during_the_first_is_answered_even_when_the_model_is_wanted_again(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate)}) as stage:
        await stage.use("a")
        first = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        request = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        second = stage.begin(stage.pool.unload("a"))
        await turns(20)
        assert not second.done()
        gate.set()
        await soon(first)
        assert await soon(second) == ()
        (await soon(request)).end()


async def test_a_request_that_gives_up_during_an_unload_does_not_load_it_again(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate)}) as stage:
        await stage.use("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        later = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        later.cancel()
        await asyncio.wait([later])
        gate.set()
        await soon(unloading)
        await stage.settled()
        assert stage.states() == {}
        assert stage.script("a").loads == 1


async def test_an_unload_during_a_load_waits_for_it_and_undoes_it(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        unloading = stage.begin(stage.pool.unload("a"))
        await turns(20)
        gate.set()
        lease = await soon(request)
        assert (await lease.run(FEEDS))["y"].tolist() == [2.0, 2.0]
        assert not unloading.done()
        lease.end()
        await soon(unloading)
        assert stage.states() == {}
        stage.check_at_rest()


async def test_to_unload_what_is_not_loaded_is_no_error_and_what_does_not_exist_is_one(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        assert await stage.pool.unload("a") == ()
        with pytest.raises(ModelNotFound):
            await stage.pool.unload("nobody")


async def test_an_unload_covers_all_versions_or_the_one_that_is_named(tmp_path: Path) -> None:
    for version in ("2", "3"):
        put_models(tmp_path, "a", version)
    async with Stage(tmp_path, names="a") as stage:
        for version in ("1", "2", "3"):
            (await stage.pool.acquire("a", version)).end()
        stage.script("a").violations.clear()  # its copies are different versions
        await stage.pool.unload("a", "2")
        assert [model.version for model in stage.pool.snapshot().models] == ["1", "3"]
        assert len(await stage.pool.unload("a")) == 2
        assert stage.states() == {}


async def test_an_unload_gives_up_waiting_and_still_happens(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a", wait_timeout_s=0.001) as stage:
        while stage.loaded != ["a"]:  # it takes less than a millisecond, most of the time
            with contextlib.suppress(DeadlineExceeded):
                (await stage.pool.acquire("a")).end()
        lease = await stage.pool.acquire("a")
        with pytest.raises(DeadlineExceeded):
            await stage.pool.unload("a")
        assert stage.states() == {"a": "draining"}
        lease.end()
        await until(lambda: stage.states() == {})
        stage.check_at_rest()


async def test_a_cancelled_unload_still_happens(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        lease = await stage.pool.acquire("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(lambda: stage.states() == {"a": "draining"})
        unloading.cancel()
        await asyncio.wait([unloading])
        lease.end()
        await until(lambda: stage.states() == {})
        stage.check_at_rest()


async def test_what_was_unloaded_is_not_ready_until_it_is_wanted_again(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        assert stage.pool.is_ready("a")  # it would load on demand
        await stage.use("a")
        await stage.pool.unload("a")
        assert not stage.pool.is_ready("a")
        await stage.use("a")
        assert stage.pool.is_ready("a")
        await stage.pool.unload("a")
        await stage.pool.load("a")
        assert stage.pool.is_ready("a")


async def test_pinned_models_can_be_unloaded_on_request(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a", models={"pinned": ("a",)}) as stage:
        await stage.use("a")
        await stage.pool.unload("a")
        assert stage.states() == {}


async def test_an_explicit_load_takes_changed_files_and_leaves_unchanged_ones_alone(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.pool.load("a")
        await stage.pool.load("a")
        assert stage.script("a").loads == 1
        stage.script("a").fingerprint = (2,)
        await stage.pool.load("a")
        assert stage.script("a").loads == 2
        await stage.settled()
        assert stage.script("a").closes == 1
        assert stage.info("a").leases == 0
        stage.check_at_rest()


async def test_a_model_whose_files_have_gone_can_still_be_unloaded(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        (tmp_path / "a" / "1" / "model.onnx").unlink()
        await stage.pool.catalog.scan()
        await stage.pool.unload("a")
        assert stage.states() == {}


# --- under pressure ---------------------------------------------------------------------------------


async def test_at_warning_the_oldest_leave_until_usage_is_below_it(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcd") as stage:
        await stage.use(*"abcd")
        await stage.use("a")
        stage.machine.other_bytes = 40 * MB  # 180 MB; below 168 MB, where the level ends, is the goal
        recovery = await stage.memory.attempt_cleanup()
        assert recovery is not None
        assert recovery.victims == ("b:1",)
        assert stage.loaded == ["a", "c", "d"]
        assert not stage.memory.memory_info().is_warning
        stage.check_at_rest()


async def test_at_critical_all_idle_models_leave_at_once(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcd", models={"pinned": ("b",)}) as stage:
        await stage.use(*"abcd")
        lease = await stage.pool.acquire("c")
        stage.machine.other_bytes = 60 * MB
        recovery = await stage.memory.attempt_cleanup()
        assert recovery is not None
        assert recovery.victims == ("a:1", "d:1")
        assert recovery.expected_bytes == recovery.freed_bytes == 40 * MB
        assert stage.loaded == ["b", "c"]
        lease.end()
        stage.check_at_rest()


async def test_at_normal_nothing_leaves_unless_everything_is_asked_for(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        await stage.use(*"ab")
        assert await stage.memory.attempt_cleanup() is None
        assert stage.loaded == ["a", "b"]
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.states() == {}


async def test_the_sampler_notices_pressure_and_cleans_up_by_itself(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcd", sampling=True) as stage:
        await stage.use(*"abcd")
        stage.machine.other_bytes = 60 * MB
        await until(lambda: not stage.states())
        await until(lambda: stage.memory.level.label == "normal")
        kinds = [event.kind for event in stage.memory.history.snapshot()]
        assert kinds.count("level") == 2
        assert kinds.count("recovery") == 1


async def test_a_request_for_a_victim_waits_and_loads_it_again(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate), "b": FakeScript()}) as stage:
        await stage.use("a")
        cleaning = stage.begin(stage.memory.attempt_cleanup(everything=True))
        await until(stage.script("a").close_started.is_set)
        requests = [stage.begin(stage.use(name)) for name in "aab"]
        await turns(50)
        assert stage.script("b").loads == 0  # decisions wait for the figures that the unload leaves
        gate.set()
        await soon(asyncio.gather(cleaning, *requests))
        assert stage.script("a").loads == 2
        await stage.settled()
        stage.check_at_rest()


async def test_what_does_not_come_back_is_booked(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(leaked_bytes=8 * MB)}) as stage:
        await stage.use("a")
        (recovery,) = await stage.pool.unload("a")
        assert recovery.trimmed
        assert recovery.shortfall_bytes == 8 * MB
        assert stage.memory.shortfall_bytes_total == 8 * MB
        assert [event.kind for event in stage.memory.history.snapshot()] == ["recovery", "shortfall"]


async def test_leaks_do_not_make_the_pool_load_past_critical(tmp_path: Path) -> None:
    scripts = {f"m{number}": FakeScript(leaked_bytes=4 * MB) for number in range(40)}
    async with Stage(tmp_path, scripts) as stage:
        refused = 0
        for name in scripts:
            try:
                await stage.use(name)
            except Exception as error:
                assert type(error).__name__ == "InsufficientMemory"
                refused += 1
        assert stage.machine.highest_bytes < 192 * MB
        assert refused > 0


# --- 300 cycles -------------------------------------------------------------------------------------


async def test_many_cycles_leave_nothing_behind(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        for _ in range(300):
            await stage.use("a")
            await stage.pool.unload("a")
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.memory.ledger.open_count == 0
        assert stage.pool.snapshot().counters.loads == 300


async def test_closing_while_a_clean_up_is_under_way_ends_both(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate), "b": FakeScript()}) as stage:
        await stage.use("b", "a")
        cleaning = stage.begin(stage.memory.attempt_cleanup(everything=True))
        await until(stage.script("a").close_started.is_set)
        waiting = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        closing = stage.begin(stage.pool.close())
        await turns(20)
        gate.set()
        await soon(closing)
        await soon(cleaning)
        with pytest.raises(HostClosed):
            await soon(waiting)
        assert stage.states() == {}
        assert stage.memory.ledger.open_count == 0
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
