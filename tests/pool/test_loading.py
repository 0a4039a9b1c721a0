"""Models load when a lease is asked for: once, by memory, and with a short memory for failures."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, put_models, soon, turns, until

from modelhost.errors import (
    DeadlineExceeded,
    HostClosed,
    InsufficientMemory,
    ModelBroken,
    ModelNotFound,
    NeverFits,
    Overloaded,
)
from modelhost.pool import ModelKey
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


# --- on demand ------------------------------------------------------------------------------------


async def test_a_model_loads_at_its_first_lease_and_stays(tmp_path: Path) -> None:
    async with Stage(tmp_path, names=["a"]) as stage:
        assert stage.loaded == []

        async with stage.pool.lease("a") as lease:
            assert stage.info("a").leases == 1
            answer = await lease.run(FEEDS)
        async with stage.pool.lease("a"):
            pass

        assert answer["y"].tolist() == [2.0, 2.0]
        assert stage.script("a").loads == 1
        assert stage.loaded == ["a"]
        assert stage.memory.ledger.totals.resident_bytes == 20 * MB
        stage.check_at_rest()


async def test_64_simultaneous_requests_for_a_cold_model_cause_one_load(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        requests = [stage.begin(stage.pool.acquire("a")) for _ in range(64)]
        await until(lambda: stage.info("a").waiting == 64 if stage.states() else False)
        await until(stage.script("a").load_started.is_set)
        stage.check()
        gate.set()
        leases = await soon(asyncio.gather(*requests))

        assert stage.script("a").loads == 1
        assert stage.info("a").leases == 64
        for lease in leases:
            lease.end()
        stage.check_at_rest()


async def test_each_version_is_a_model_of_its_own(tmp_path: Path) -> None:
    put_models(tmp_path, ["a"], version="2")
    async with Stage(tmp_path, names=["a"]) as stage:
        one, two = await stage.pool.acquire("a", "1"), await stage.pool.acquire("a")
        assert one.key == ModelKey("a", "1")
        assert two.key == ModelKey("a", "2")
        assert stage.memory.ledger.open_count == 2
        one.end()
        two.end()
        stage.script("a").violations.clear()  # two copies of one name are right here


async def test_a_model_put_on_disk_later_is_found_without_being_asked_to_look(tmp_path: Path) -> None:
    async with Stage(tmp_path, names=["a"]) as stage:
        stage.clock.now += 10
        put_models(tmp_path, ["late"])
        await stage.use("late")
        assert stage.loaded == ["late"]


async def test_an_unknown_model_is_not_looked_for_on_disk_again_at_once(tmp_path: Path) -> None:
    async with Stage(tmp_path, names=["a"]) as stage:
        with pytest.raises(ModelNotFound):
            await stage.pool.acquire("late")
        put_models(tmp_path, ["late"])
        with pytest.raises(ModelNotFound):
            await stage.pool.acquire("late")
        stage.clock.now += 10
        await stage.use("late")


# --- eviction --------------------------------------------------------------------------------------


async def test_the_least_recently_used_model_leaves_first(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        await stage.use(*"abcde")
        await stage.use("a")  # b is now the oldest
        await stage.use("f")
        assert stage.loaded == list("acdef")
        await stage.use("g")
        assert stage.loaded == list("adefg")
        assert stage.pool.snapshot().counters.evictions == 2
        stage.check_at_rest()


async def test_no_more_leave_than_the_load_needs(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "abcde"} | {"big": FakeScript(resident_bytes=50 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use(*"abcde")
        await stage.use("big")  # 100 + 50 - 112 MB: two have to go
        assert stage.loaded == ["big", "c", "d", "e"]


async def test_a_leased_model_is_never_a_victim_while_others_push(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefgh") as stage:
        lease = await stage.pool.acquire("a")
        for _ in range(3):
            await stage.use(*"bcdefgh")
            assert "a" in stage.loaded
            stage.check()
        lease.end()
        assert stage.script("a").loads == 1
        assert stage.script("a").closes == 0


async def test_a_model_in_a_slow_run_is_not_evicted_while_others_push(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"slow": FakeScript(run_may_end=gate)} | {name: FakeScript() for name in "abcdefgh"}
    async with Stage(tmp_path, scripts) as stage:
        request = stage.begin(stage.use("slow"))
        await until(stage.script("slow").run_started.is_set)
        await stage.use(*"abcdefgh")
        assert stage.info("slow").leases == 1
        assert stage.script("slow").closes == 0
        gate.set()
        await soon(request)
        await stage.settled()
        stage.check_at_rest()


async def test_pinned_models_stay_whatever_is_asked(tmp_path: Path) -> None:
    async with Stage(
        tmp_path, names="abcdefgh", models={"pinned": ("a",), "options": {"b": {"pinned": True}}}
    ) as stage:
        await stage.use(*"abcdefgh")
        await stage.use(*"cdefgh")
        assert stage.info("a").pinned
        assert stage.info("b").pinned
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.loaded == ["a", "b"]


async def test_a_pin_in_the_models_own_file_counts_and_the_settings_win_over_it(tmp_path: Path) -> None:
    put_models(tmp_path, "ab")
    for name in "ab":
        (tmp_path / name / "model.toml").write_text("pinned = true\n")
    async with Stage(tmp_path, names="abc", models={"options": {"b": {"pinned": False}}}) as stage:
        await stage.use(*"abc")
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.loaded == ["a"]


async def test_what_can_never_fit_is_refused_before_anything_leaves(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "abcde"} | {"huge": FakeScript(resident_bytes=132 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use(*"abcde")
        with pytest.raises(NeverFits) as refusal:
            await stage.pool.acquire("huge")
        assert refusal.value.needed_bytes == 132 * MB
        assert refusal.value.available_bytes == 132 * MB
        assert {holder["name"] for holder in refusal.value.held_by} == set("abcde")
        assert stage.loaded == list("abcde")
        assert stage.pool.snapshot().counters.evictions == 0
        assert stage.pool.snapshot().counters.refusals == {"never_fits": 1}
        stage.check_at_rest()


async def test_the_largest_model_that_fits_gets_everything_else_out(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "abcde"} | {"huge": FakeScript(resident_bytes=131 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use(*"abcde")
        await stage.use("huge")
        assert stage.loaded == ["huge"]


async def test_usage_stays_below_critical_over_many_more_models_than_fit(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(40)]
    async with Stage(tmp_path, names=names, sampling=True) as stage:
        await stage.use(*names)
        await soon(asyncio.gather(*(stage.use(name) for name in names[::-1])))
        await stage.settled()
        assert stage.machine.highest_bytes < 192 * MB
        assert max(stage.script(name).loads for name in names) <= 2
        stage.check_at_rest()


# --- waiting for memory -----------------------------------------------------------------------------


async def test_a_load_that_waits_for_memory_goes_on_as_soon_as_a_lease_ends(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        leases = [await stage.pool.acquire(name) for name in "abcdef"]
        request = stage.begin(stage.pool.acquire("g"))
        await until(lambda: stage.states().get("g") == "queued")
        await turns(50)
        assert not request.done()
        assert stage.states()["g"] == "queued"
        leases.pop().end()
        lease = await soon(request)
        assert stage.loaded == list("abcdeg")
        for held in (lease, *leases):
            held.end()
        stage.check_at_rest()


async def test_a_load_is_refused_when_what_is_in_use_does_not_become_idle_in_time(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg", sampling=True, memory_wait_s=5) as stage:
        leases = [await stage.pool.acquire(name) for name in "abcdef"]
        request, asked_at = stage.begin(stage.pool.acquire("g")), stage.clock.now
        while not request.done():
            stage.clock.now += 1
            await asyncio.sleep(0.001)
        assert stage.clock.now >= asked_at + 5
        with pytest.raises(InsufficientMemory) as refusal:
            await request
        assert refusal.value.needed_bytes == 20 * MB
        assert refusal.value.available_bytes == 12 * MB
        assert {(held["name"], held["committed_bytes"]) for held in refusal.value.held_by} == {
            (name, 20 * MB) for name in "abcdef"
        }
        assert "a 20.0 MB" in str(refusal.value)
        assert stage.loaded == list("abcdef")
        for lease in leases:
            lease.end()
        await stage.use("g")
        await stage.settled()
        stage.check_at_rest()


async def test_a_load_is_refused_at_once_when_nothing_that_could_leave_would_help(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab", models={"pinned": ("a",)}) as stage:
        await stage.use("a")
        stage.machine.other_bytes = 110 * MB
        with pytest.raises(InsufficientMemory) as refusal:
            await soon(stage.pool.acquire("b"))
        assert refusal.value.available_bytes == 2 * MB
        stage.machine.other_bytes = 0
        await stage.use("b")


async def test_a_load_that_waits_for_memory_does_not_hold_up_a_smaller_one_behind_it(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "abcd"} | {
        "big": FakeScript(resident_bytes=100 * MB),
        "small": FakeScript(resident_bytes=MB),
    }
    async with Stage(tmp_path, scripts) as stage:
        leases = [await stage.pool.acquire(name) for name in "abcd"]
        big = stage.begin(stage.pool.acquire("big"))
        await until(lambda: stage.states().get("big") == "queued")
        small = await soon(stage.pool.acquire("small"))
        assert stage.states()["big"] == "queued"
        for lease in (small, *leases):
            lease.end()
        (await soon(big)).end()
        stage.check_at_rest()


async def test_waiting_is_bounded_in_number_and_one_more_is_refused_at_once(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate), "b": FakeScript()}, max_waiting=2) as stage:
        requests = [stage.begin(stage.pool.acquire("a")) for _ in range(2)]
        await until(lambda: stage.pool.snapshot().waiting == 2)
        for name in "ab":
            with pytest.raises(Overloaded) as refusal:
                await stage.pool.acquire(name)
        assert refusal.value.details() == {"queue": "the queue for models", "waiting": 2, "limit": 2}
        assert "b" not in stage.states()
        gate.set()
        for lease in await soon(asyncio.gather(*requests)):
            lease.end()
        (await stage.pool.acquire("b")).end()
        stage.check_at_rest()


async def test_a_deadline_ends_the_wait_and_the_load_goes_on(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        patient = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        with pytest.raises(DeadlineExceeded):
            await stage.pool.acquire("a", deadline=asyncio.get_running_loop().time() + 0.001)
        assert stage.states() == {"a": "loading"}
        assert stage.pool.snapshot().waiting == 1
        gate.set()
        (await soon(patient)).end()
        assert stage.script("a").loads == 1
        stage.check_at_rest()


async def test_the_pools_own_bound_on_waiting_holds_where_the_request_names_none(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}, wait_timeout_s=0.001) as stage:
        with pytest.raises(DeadlineExceeded) as refusal:
            await stage.pool.acquire("a", deadline=asyncio.get_running_loop().time() + 60)
        assert "a:1" in str(refusal.value)
        gate.set()
        await stage.settled()
        stage.check_at_rest()


async def test_a_load_nobody_waits_for_any_more_is_dropped_before_it_begins(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        leases = [await stage.pool.acquire(name) for name in "abcdef"]
        request = stage.begin(stage.pool.acquire("g"))
        await until(lambda: stage.states().get("g") == "queued")
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert "g" not in stage.states()
        for lease in leases:
            lease.end()
        assert stage.script("g").loads == 0
        stage.check_at_rest()


async def test_a_load_goes_on_when_the_request_that_began_it_is_cancelled(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        first = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        second = stage.begin(stage.pool.acquire("a"))
        await until(lambda: stage.pool.snapshot().waiting == 2)
        first.cancel()
        await asyncio.wait([first])
        gate.set()
        (await soon(second)).end()
        assert stage.script("a").loads == 1
        stage.check_at_rest()


# --- what a load takes ------------------------------------------------------------------------------


async def test_a_load_settles_to_what_was_measured(tmp_path: Path) -> None:
    scripts = {"a": FakeScript(resident_bytes=12 * MB, estimate_bytes=30 * MB, peak_bytes=40 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        gate = stage.script("a").load_may_end = threading.Event()
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        assert stage.memory.ledger.totals.loading_bytes == 40 * MB
        assert stage.info("a").committed_bytes == 40 * MB
        gate.set()
        (await soon(request)).end()
        assert stage.memory.ledger.totals.resident_bytes == 12 * MB
        assert stage.pool.snapshot().counters.overshoot_bytes == 0


async def test_a_measurement_above_the_prediction_is_reported_and_learnt(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(resident_bytes=30 * MB, estimate_bytes=20 * MB)}) as stage:
        await stage.use("a")
        assert stage.pool.snapshot().counters.overshoot_bytes == 10 * MB
        event = next(event for event in stage.memory.history.snapshot() if event.kind == "misprediction")
        assert event.details == {"predicted_bytes": 20 * MB, "measured_bytes": 30 * MB}
        assert stage.info("a").committed_bytes == 30 * MB


async def test_a_measured_size_replaces_the_estimate_at_the_next_load(tmp_path: Path) -> None:
    scripts = {name: FakeScript() for name in "bcde"} | {"a": FakeScript(estimate_bytes=110 * MB)}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("a")
        await stage.pool.unload("a")
        await stage.use("b", "a")  # by the estimate, b would have to leave: 60 + 20 + 110 MB are over warning
        assert stage.loaded == ["a", "b"]


async def test_a_load_beside_a_run_is_not_trusted_to_measure_more(tmp_path: Path) -> None:
    gate, other_gate = threading.Event(), threading.Event()
    scripts = {"a": FakeScript(load_may_end=gate), "busy": FakeScript(run_may_end=other_gate)}
    async with Stage(tmp_path, scripts) as stage:
        busy = stage.begin(stage.use("busy"))
        await until(stage.script("busy").run_started.is_set)
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        stage.machine.add(7 * MB)  # what the run takes meanwhile
        gate.set()
        lease = await soon(request)
        assert stage.info("a").committed_bytes == 20 * MB
        lease.end()
        stage.machine.add(-7 * MB)
        other_gate.set()
        await soon(busy)


# --- failures ---------------------------------------------------------------------------------------


async def test_a_failed_load_gives_the_runtimes_reason_to_everybody_and_keeps_nothing(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"a": FakeScript(load_error="bad node 'Foo'", load_may_end=gate), "b": FakeScript()}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("b")
        requests = [stage.begin(stage.pool.acquire("a")) for _ in range(3)]
        await until(lambda: stage.pool.snapshot().waiting == 3)
        gate.set()
        errors = await soon(asyncio.gather(*requests, return_exceptions=True))
        assert [type(error) for error in errors] == [ModelBroken] * 3
        assert len({id(error) for error in errors}) == 3
        assert "bad node 'Foo'" in str(errors[0])
        assert stage.script("a").loads == 1
        assert stage.loaded == ["b"]
        assert stage.memory.ledger.open_count == 1
        assert stage.pool.snapshot().counters.load_failures == 1
        assert not stage.pool.is_ready("a")
        assert stage.pool.is_ready("b")
        stage.check_at_rest()


async def test_a_failed_load_is_not_tried_again_for_a_growing_time(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(load_error="broken")}, failure_backoff_s=1) as stage:
        attempts = []
        for tick in range(16):
            stage.clock.now = 1000.0 + tick / 2
            with pytest.raises(ModelBroken, match="broken"):
                await stage.pool.acquire("a")
            attempts.append(stage.script("a").loads)
        assert attempts == [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4]
        stage.script("a").load_error = None
        stage.clock.now += 100
        await stage.use("a")
        assert stage.pool.is_ready("a")
        stage.check_at_rest()


async def test_an_explicit_load_tries_a_broken_model_again_at_once(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": FakeScript(load_error="broken")}) as stage:
        with pytest.raises(ModelBroken):
            await stage.pool.acquire("a")
        stage.script("a").load_error = None
        loaded = await stage.pool.load("a")
        assert (loaded.name, loaded.state, loaded.committed_bytes) == ("a", "ready", 20 * MB)
        stage.check_at_rest()


async def test_a_load_that_takes_too_long_is_cancelled_and_counts_as_failed(tmp_path: Path) -> None:
    scripts = {"a": FakeScript(load_may_end=threading.Event()), "b": FakeScript()}
    async with Stage(tmp_path, scripts, load_timeout_s=0.001) as stage:
        with pytest.raises(ModelBroken):
            await soon(stage.pool.acquire("a"))
        assert stage.script("a").copies == 0
        assert stage.memory.ledger.open_count == 0
        stage.check_at_rest()


async def test_a_runtime_that_breaks_in_its_own_way_breaks_one_model_only(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        inspect = stage.runtime.inspect

        def broken(file: Path, options: object) -> object:
            if "a" in file.parts:
                raise ZeroDivisionError("division by zero")
            return inspect(file, options)  # type: ignore[arg-type]

        stage.runtime.inspect = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(ModelBroken, match="ZeroDivisionError: division by zero"):
            await stage.pool.acquire("a")
        await stage.use("b")
        stage.check_at_rest()


# --- the end ----------------------------------------------------------------------------------------


async def test_closing_refuses_who_waits_lets_the_load_in_progress_end_and_unloads_everything(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"slow": FakeScript(load_may_end=gate), "next": FakeScript(), "idle": FakeScript()}
    async with Stage(tmp_path, scripts) as stage:
        await stage.use("idle")
        loading = stage.begin(stage.use("slow"))
        await until(stage.script("slow").load_started.is_set)
        queued = stage.begin(stage.use("next"))
        await until(lambda: stage.states().get("next") == "queued")
        closing = stage.begin(stage.pool.close())
        with pytest.raises(HostClosed):
            await soon(queued)
        with pytest.raises(HostClosed):
            await stage.pool.acquire("idle")
        gate.set()
        await asyncio.wait([loading])
        await soon(closing)
        await stage.pool.close()
        assert stage.states() == {}
        assert stage.memory.ledger.open_count == 0
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.script("next").loads == 0


async def test_closing_waits_for_the_run_in_progress(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(run_may_end=gate)}) as stage:
        run = stage.begin(stage.use("a"))
        await until(stage.script("a").run_started.is_set)
        closing = stage.begin(stage.pool.close())
        await turns(50)
        assert not closing.done()
        assert stage.script("a").closes == 0
        gate.set()
        await soon(run)
        await soon(closing)
        assert stage.script("a").closes == 1
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes


async def test_a_load_that_cannot_be_stopped_counts_until_it_ends_and_residents_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelhost.pool.load_watch._GRACE_S", 0.001)
    gate = threading.Event()
    scripts = {"stuck": FakeScript(load_may_end=gate, is_deaf=True), "b": FakeScript(), "resident": FakeScript()}
    async with Stage(tmp_path, scripts, load_timeout_s=0.01) as stage:
        await stage.use("resident")
        waiting = [stage.begin(stage.pool.acquire(name)) for name in ("stuck", "stuck", "b")]
        for task in waiting:
            with pytest.raises(Overloaded, match=r"cannot be loaded now: the load of stuck:1 has taken .* cannot be"):
                await soon(task)
        for name in ("stuck", "b"):
            with pytest.raises(Overloaded, match="cannot be stopped") as refusal:
                await stage.pool.acquire(name)
            assert refusal.value.details()["model"] == f"{name}:1"
        assert stage.states() == {"resident": "ready", "stuck": "loading"}
        assert stage.info("stuck").committed_bytes == 20 * MB
        stage.check()
        await soon(stage.use("resident"))
        gate.set()
        await stage.settled()
        assert stage.loaded == ["resident", "stuck"]  # it was loaded after all
        await soon(stage.use("b", "stuck"))
        assert (stage.script("stuck").loads, stage.script("b").loads) == (1, 1)
    stage.check()


async def test_a_load_that_ends_late_and_fails_lets_the_others_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelhost.pool.load_watch._GRACE_S", 0.001)
    gate = threading.Event()
    scripts = {"stuck": FakeScript(load_may_end=gate, is_deaf=True, load_error="broken"), "b": FakeScript()}
    async with Stage(tmp_path, scripts, load_timeout_s=0.01) as stage:
        with pytest.raises(Overloaded):
            await soon(stage.pool.acquire("stuck"))
        gate.set()
        await until(lambda: not stage.states())
        with pytest.raises(ModelBroken, match="broken"):
            await stage.pool.acquire("stuck")
        await soon(stage.use("b"))
        await stage.settled()
        stage.check_at_rest()
