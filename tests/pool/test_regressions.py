"""What once went wrong: events that meet at a bad moment, and figures that mislead."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, put_models, soon, turns, until

from modelhost.config import ModelOptions
from modelhost.errors import HostClosed, InsufficientMemory
from modelhost.memory import Usage
from modelhost.repository import Index, Repository
from modelhost.runtime.base import Inspection
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


# --- explicit loads and unloads, at bad moments -------------------------------------------------------


@pytest.mark.parametrize("fingerprint", [(1,), (2,)], ids=["same files", "changed files"])
async def test_an_explicit_load_whose_model_leaves_and_is_queued_again_while_it_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fingerprint: tuple[int, ...]
) -> None:
    close_gate, look_gate, looking = threading.Event(), threading.Event(), threading.Event()

    def slow(file: Path) -> tuple[int, ...]:
        looking.set()
        assert look_gate.wait(30)
        return fingerprint

    async with Stage(tmp_path, {"a": FakeScript(close_may_end=close_gate)}) as stage:
        await stage.use("a")
        stage.script("a").fingerprint = fingerprint
        monkeypatch.setattr(stage.runtime, "stamp", slow)
        loading = stage.begin(stage.pool.load("a"))
        await until(looking.is_set)
        unloading = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        request = stage.begin(stage.use("a"))
        await until(lambda: stage.info("a").waiting == 1)
        close_gate.set()
        await until(lambda: stage.states() == {"a": "queued"})
        look_gate.set()  # the unload too has something to do on the disk thread
        await soon(unloading)
        assert (await soon(loading)).state == "ready"
        await soon(request)
        await stage.settled()
        assert stage.script("a").loads == 2
        stage.check_at_rest()


async def test_an_unload_during_a_load_waits_for_it_even_when_the_queue_is_full(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}, max_waiting=1) as stage:
        request = stage.begin(stage.use("a"))
        await until(stage.script("a").load_started.is_set)
        unloading = stage.begin(stage.pool.unload("a"))
        await turns(20)
        assert not unloading.done()
        gate.set()
        await soon(request)
        (recovery,) = await soon(unloading)
        assert recovery.freed_bytes == 20 * MB
        assert stage.states() == {}
        stage.check_at_rest()


async def test_a_model_that_was_unloaded_while_it_loaded_is_not_ready(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        request = stage.begin(stage.use("a"))
        await until(stage.script("a").load_started.is_set)
        unloading = stage.begin(stage.pool.unload("a"))
        await turns(20)
        gate.set()
        await soon(request)
        await soon(unloading)
        assert stage.states() == {}
        assert not stage.pool.is_ready("a")


async def test_an_unloaded_model_is_ready_when_it_loads_again_though_its_requester_has_left(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        await stage.pool.unload("a")
        stage.script("a").load_started.clear()
        gate = stage.script("a").load_may_end = threading.Event()
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        request.cancel()
        await asyncio.wait([request])
        gate.set()
        await stage.settled()
        assert stage.loaded == ["a"]
        assert stage.pool.is_ready("a")
        await stage.use("a")
        assert stage.pool.is_ready("a")


async def test_an_unload_of_a_model_that_waits_for_memory_answers_at_once_and_lets_it_wait(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        leases = [await stage.pool.acquire(name) for name in "abcdef"]
        request = stage.begin(stage.pool.acquire("g"))
        await until(lambda: stage.states().get("g") == "queued")
        assert await soon(stage.pool.unload("g")) == ()
        assert stage.states()["g"] == "queued"
        leases.pop().end()
        leases.append(await soon(request))
        for lease in leases:
            lease.end()
        stage.check_at_rest()


async def test_options_that_have_changed_count_at_the_next_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, names="a") as stage:
        inspect, seen = stage.runtime.inspect, []

        def spy(file: Path, options: ModelOptions) -> Inspection:
            seen.append(options.load_peak_bytes)
            return inspect(file, options)

        monkeypatch.setattr(stage.runtime, "inspect", spy)
        await stage.use("a")
        await stage.pool.unload("a")
        (tmp_path / "a" / "model.toml").write_text('load_peak_bytes = "50MB"\n')  # the model's file is the same
        await stage.pool.load("a")
        assert seen == [None, 50 * MB]


async def test_an_explicit_load_does_not_share_a_scan_that_began_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, scanned, look = threading.Event(), threading.Event(), Repository.look

    def slow(repository: Repository) -> Index:
        found = look(repository)
        scanned.set()
        assert gate.wait(30)
        return found

    async with Stage(tmp_path, names="a") as stage:
        monkeypatch.setattr(Repository, "look", slow)
        first = stage.begin(stage.pool.load("a"))
        await until(scanned.is_set)
        put_models(tmp_path, ["late"])
        second = stage.begin(stage.pool.load("late"))
        await turns(10)
        gate.set()
        await soon(first)
        assert (await soon(second)).name == "late"


# --- deciding -----------------------------------------------------------------------------------------


async def test_runs_that_start_during_each_trim_do_not_keep_a_load_from_going_on(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdeh") as stage:
        await stage.use(*"abcde")
        lease, loop = await stage.pool.acquire("e"), asyncio.get_running_loop()
        trims: list[int] = []
        runs: list[asyncio.Task[object]] = []

        def trim() -> None:
            trims.append(stage.runner.started)
            if len(trims) < 50:
                loop.call_soon_threadsafe(lambda: runs.append(stage.begin(lease.run(FEEDS))))

        stage.memory.add_trimmer(trim)
        (await soon(stage.pool.acquire("h"))).end()  # one has to leave for it
        assert len(trims) == 1
        await soon(asyncio.gather(*runs))
        lease.end()
        await stage.settled()
        stage.check_at_rest()


async def test_the_bound_on_waiting_for_memory_holds_while_others_run(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg", memory_wait_s=5) as stage:
        leases = [await stage.pool.acquire(name) for name in "abcdef"]
        request = stage.begin(stage.pool.acquire("g"))
        await until(lambda: stage.script("g").inspections)
        await stage.pool.catalog.on_disk(lambda: None)  # its face is known, and has been looked at
        await turns(10)
        for _ in range(10):
            await leases[0].run(FEEDS)
            stage.clock.now += 1
            await stage.memory.trim(deep=False)  # a change: the pool decides again
            await until(lambda: not stage.memory.is_changing)
            await turns(10)
        assert request.done()
        with pytest.raises(InsufficientMemory):
            await request
        for lease in leases:
            lease.end()
        stage.check_at_rest()


async def test_one_change_of_memory_is_one_look_at_it_however_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {"big": FakeScript(resident_bytes=130 * MB)} | {f"m{number}": FakeScript() for number in range(20)}
    async with Stage(tmp_path, scripts) as stage:
        lease = await stage.pool.acquire("big")
        requests = [stage.begin(stage.pool.acquire(name)) for name in scripts if name != "big"]
        await until(lambda: all(script.inspections for script in scripts.values()))
        await stage.pool.catalog.on_disk(lambda: None)
        await turns(10)
        read, reads = stage.machine.usage, []

        def counted() -> Usage:
            reads.append(1)
            return read()

        monkeypatch.setattr(stage.machine, "usage", counted)
        await stage.memory.trim(deep=False)
        await turns(10)
        assert len(reads) == 1
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        lease.end()
        stage.check_at_rest()


# --- what a load takes and an unload gives back -------------------------------------------------------


async def test_a_load_that_is_known_to_hold_more_than_its_estimated_peak_is_admitted_by_what_is_known(
    tmp_path: Path,
) -> None:
    scripts = {name: FakeScript() for name in "bcd"} | {"a": FakeScript(resident_bytes=90 * MB, estimate_bytes=20 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("a")
        await stage.pool.unload("a")
        leases = [await stage.pool.acquire(name) for name in "bcd"]  # 120 MB
        request = stage.begin(stage.pool.acquire("a"))
        while not request.done():
            stage.clock.now += 1
            await stage.memory.trim(deep=False)
            await turns(10)
        with pytest.raises(InsufficientMemory) as refusal:
            await request
        assert refusal.value.needed_bytes == 90 * MB
        for lease in leases:
            lease.end()
        await stage.use("a")
        assert stage.machine.highest_bytes < 192 * MB


async def test_a_load_beside_a_run_that_gives_memory_back_is_not_booked_at_too_little(tmp_path: Path) -> None:
    gate, run_gate = threading.Event(), threading.Event()
    scripts = {
        "a": FakeScript(resident_bytes=90 * MB, load_may_end=gate),
        "b": FakeScript(resident_bytes=90 * MB),
        "busy": FakeScript(resident_bytes=MB, run_may_end=run_gate),
    }
    async with Stage(tmp_path, scripts) as stage:
        busy = stage.begin(stage.use("busy"))
        await until(stage.script("busy").run_started.is_set)
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        stage.machine.add(-75 * MB)
        gate.set()
        (await soon(request)).end()
        stage.machine.add(75 * MB)
        assert stage.info("a").committed_bytes == 90 * MB
        run_gate.set()
        await soon(busy)
        await soon(stage.use("b"))  # a is known to be worth pushing out
        assert stage.loaded == ["b", "busy"]
        stage.check_at_rest()


async def test_a_run_beside_an_unload_is_not_a_shortfall(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(close_may_end=gate), "b": FakeScript()}) as stage:
        await stage.use("a", "b")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(stage.script("a").close_started.is_set)
        await stage.use("b")
        stage.machine.other_bytes = 10 * MB  # what the run has left in the arena
        gate.set()
        (recovery,) = await soon(unloading)
        assert (recovery.freed_bytes, recovery.shortfall_bytes) == (10 * MB, 0)
        assert stage.memory.shortfall_bytes_total == 0


async def test_a_load_ends_well_where_usage_cannot_be_read_in_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    scripts = {"a": FakeScript(resident_bytes=30 * MB, estimate_bytes=20 * MB, load_may_end=gate)}
    async with Stage(tmp_path, scripts) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)

        def broken() -> Usage:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(stage.machine, "usage", broken)
            gate.set()
            lease = await soon(request)
            await until(lambda: not stage.memory.is_changing)
            await turns(5)
        lease.end()
        await stage.settled()
        stage.check_at_rest()
        assert stage.info("a").committed_bytes == 30 * MB


async def test_a_close_that_fails_does_not_keep_the_other_victims_open(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "abc"}
    scripts["b"].close_error = ZeroDivisionError("division by zero")
    async with Stage(tmp_path, scripts) as stage:
        await stage.use(*"abc")
        recovery = await stage.memory.attempt_cleanup(everything=True)
        assert recovery is not None
        assert recovery.freed_bytes == 60 * MB
        assert [script.closes for script in scripts.values()] == [1, 1, 1]
        assert stage.states() == {}
        assert stage.memory.ledger.open_count == 0


async def test_pressure_is_still_answered_after_a_close_that_failed(tmp_path: Path) -> None:
    scripts = {"a": FakeScript(close_error=ZeroDivisionError("division by zero"))}
    async with Stage(tmp_path, scripts, sampling=True) as stage:
        for closes in (1, 2):
            await stage.use("a")
            stage.machine.other_bytes = 120 * MB
            await until(lambda: not stage.states())
            assert scripts["a"].closes == closes
            stage.machine.other_bytes = 0
            await until(lambda: stage.memory.level.label == "normal")


# --- the end ------------------------------------------------------------------------------------------


async def test_after_the_end_everything_is_refused_as_closed(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        stage.clock.now += 100  # an unknown name would be looked for on disk again
        await stage.pool.close()
        for ask in (stage.pool.acquire, stage.pool.load, stage.pool.unload, stage.pool.describe):
            for name in ("a", "nobody"):
                with pytest.raises(HostClosed):
                    await ask(name)


async def test_a_lease_that_is_held_over_the_end_runs_no_more_and_holds_no_memory(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        lease = await stage.pool.acquire("a")
        await stage.pool.close()
        with pytest.raises(HostClosed):
            await lease.run(FEEDS)
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.memory.ledger.open_count == 0
        lease.end()
        assert stage.states() == {}
        assert stage.script("a").closes == 1


async def test_who_waits_for_a_draining_model_is_told_of_the_end_while_its_lease_is_held(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        lease = await stage.pool.acquire("a")
        unloading = stage.begin(stage.pool.unload("a"))
        await until(lambda: stage.states() == {"a": "draining"})
        unloading.cancel()
        await asyncio.wait([unloading])
        waiting = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.info("a").waiting == 1)
        await stage.pool.close()
        with pytest.raises(HostClosed):
            await soon(waiting)
        lease.end()
        assert stage.states() == {}
