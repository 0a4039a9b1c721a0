"""Files that change under loaded models: replaced in one step, or not at all."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from pool_stage import FEEDS, MB, Stage, put_models, soon, turns, until

from modelhost.errors import ModelBroken, ModelNotFound, RunFailed
from modelhost.pool import ModelKey
from modelhost.pool.changes import SETTLE_S
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


async def change(stage: Stage, name: str, *files: int) -> None:
    """Changes a model's files and lets the pool see that, and that they stay so."""
    stage.script(name).fingerprint = files
    await stage.pool.catalog.scan()
    await compared(stage)
    stage.clock.now += SETTLE_S
    await stage.pool.catalog.scan()
    await compared(stage)


async def compared(stage: Stage) -> None:
    await until(lambda: not stage.pool._scheduler.changes._is_comparing)


def state(stage: Stage, name: str, version: str = "1") -> tuple[str, str]:
    return stage.pool.state_of(ModelKey(name, version))


async def begin_change(stage: Stage, gate: threading.Event) -> FakeScript:
    """Loads `a` and changes its files; returns its script when a child prepares the new ones, until `gate` is set."""
    await stage.use("a")
    script = stage.script("a")
    script.is_prepared, script.prepare_may_end = False, gate
    await change(stage, "a", 2)
    await until(script.prepare_started.is_set)
    return script


async def test_changed_files_take_over_while_those_before_answer(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=30 * MB, is_prepared=True)}) as stage:
        script = await begin_change(stage, gate)
        await stage.use("a")
        assert script.generations == [(1, "all")]
        gate.set()
        await until(lambda: script.generations == [(2, "all")])
        await stage.settled()
        await stage.use("a")
        assert (script.loads, script.closes) == (2, 1)
        assert stage.pool.snapshot().counters.swaps == 1
        stage.check_at_rest()


async def test_leases_on_what_is_replaced_end_as_they_like(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        held = await stage.pool.acquire("a")
        await change(stage, "a", 2)
        await until(lambda: stage.pool.snapshot().counters.swaps == 1)
        assert sorted(model.state for model in stage.pool.snapshot().models) == ["draining", "ready"]
        fresh = await stage.pool.acquire("a")
        assert stage.script("a").generations == [(1, "all"), (2, "all")]
        for lease in (held, fresh):
            assert (await lease.run(FEEDS))["y"].tolist() == [2, 2]
        held.end()
        await until(lambda: stage.script("a").generations == [(2, "all")])
        fresh.end()
        await stage.settled()
        stage.check_at_rest()


async def test_files_that_go_on_changing_are_not_looked_into(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        for files in range(2, 8):
            stage.script("a").fingerprint = (files,)
            stage.clock.now += SETTLE_S
            await stage.pool.catalog.scan()
            await compared(stage)
        assert stage.script("a").loads == 1
        stage.clock.now += SETTLE_S
        await stage.pool.catalog.scan()
        await until(lambda: stage.script("a").generations == [(7, "all")])
        assert stage.script("a").loads == 2


@pytest.mark.parametrize("where", ["load", "run"])
async def test_what_cannot_be_loaded_or_run_is_not_served_and_told(tmp_path: Path, where: str) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        await stage.use("a")
        script = stage.script("a")
        if where == "load":
            script.load_error = "half of it"
        else:
            script.new_run_error = RunFailed("no such kernel")
        await change(stage, "a", 2)
        await until(lambda: stage.pool.snapshot().counters.swap_failures == 1)
        await until(lambda: script.generations == [(1, "all")])
        await stage.use("a", "a")
        found, reason = state(stage, "a")
        assert found == "READY"
        assert "its new files are not served" in reason
        assert stage.pool.is_ready("a")
        assert stage.memory.history.counts["swap_failed"] == 1
        await change(stage, "a", 2)  # the same once more is not tried again
        assert script.loads == 2
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.loaded == ["a"]  # it could not come back
        script.load_error = script.new_run_error = None
        await change(stage, "a", 3)
        await until(lambda: script.generations == [(3, "all")])
        assert state(stage, "a") == ("READY", "")
        await stage.settled()
        stage.check_at_rest()


async def test_an_explicit_load_says_what_is_wrong_with_changed_files_and_the_old_ones_serve(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        stage.script("a").fingerprint, stage.script("a").load_error = (2,), "half of it"
        with pytest.raises(ModelBroken, match="half of it"):
            await soon(stage.pool.load("a"))
        await stage.use("a")
        stage.script("a").load_error = None
        assert (await soon(stage.pool.load("a"))).state == "ready"
        await stage.settled()
        assert stage.script("a").generations == [(2, "all")]
        stage.check_at_rest()


async def test_what_does_not_fit_beside_what_it_replaces_has_it_leave_when_it_is_known_to_open(tmp_path: Path) -> None:
    script = FakeScript(resident_bytes=100 * MB)
    async with Stage(tmp_path, {"a": script}, memory_wait_s=5.0) as stage:
        held = await stage.pool.acquire("a")
        await change(stage, "a", 2)
        await until(lambda: state(stage, "a") == ("READY", "its new files wait for memory"))
        assert script.loads == 1  # both do not fit, and it may be over soon
        stage.clock.now += 5
        stage.pool._scheduler.pump()
        assert sorted(model.state for model in stage.pool.snapshot().models) == ["draining", "queued"]
        waiting = stage.begin(stage.use("a"))
        await turns(20)
        assert not waiting.done()
        held.end()
        await soon(waiting)
        assert script.generations == [(2, "all")]
        assert stage.pool.snapshot().counters.refusals == {}
        await stage.settled()
        stage.check_at_rest()


async def test_an_idle_model_leaves_for_its_new_files_after_all_others(tmp_path: Path) -> None:
    async with Stage(tmp_path, {name: FakeScript(resident_bytes=40 * MB) for name in "ab"}) as stage:
        await stage.use("a", "b")
        await change(stage, "a", 2)
        await until(lambda: stage.script("a").generations == [(2, "all")])
        assert stage.script("b").closes == 1  # though it was used last
        await stage.settled()
        stage.check_at_rest()


async def test_what_leaves_while_its_new_files_are_prepared_comes_back_from_those(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=30 * MB, is_prepared=True)}) as stage:
        script = await begin_change(stage, gate)
        await stage.memory.attempt_cleanup(everything=True)
        assert script.generations == []
        using = stage.begin(stage.use("a"))
        gate.set()
        await soon(using)
        assert script.generations == [(2, "all")]
        await stage.settled()
        stage.check_at_rest()


@pytest.mark.parametrize("phase", ["prepare", "load", "run"])
async def test_an_unload_ends_what_was_to_replace_it_too(tmp_path: Path, phase: str) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=30 * MB, is_prepared=True)}) as stage:
        await stage.use("a")
        script = stage.script("a")
        script.is_prepared = phase != "prepare"
        script.run_started.clear()
        script.load_started.clear()
        setattr(script, f"{phase}_may_end", gate)
        await change(stage, "a", 2)
        await until(getattr(script, f"{phase}_started").is_set)
        unloading = stage.begin(stage.pool.unload("a"))
        await turns(20)
        gate.set()
        await soon(unloading)
        await until(lambda: stage.states() == {})
        assert script.generations == []
        stage.check_at_rest()


# --- models and versions that come and go -------------------------------------------------------------


async def test_a_removed_model_leaves_when_its_leases_have_ended(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        lease = await stage.pool.acquire("a")
        shutil.rmtree(tmp_path / "a")
        await stage.pool.catalog.scan()
        with pytest.raises(ModelNotFound):
            await stage.pool.acquire("a")
        assert (await lease.run(FEEDS))["y"].tolist() == [2, 2]
        lease.end()
        await until(lambda: stage.states() == {})
        stage.check_at_rest()


async def test_a_loaded_model_goes_on_while_its_folder_is_being_written(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        file = tmp_path / "a/1/model.onnx"
        file.write_bytes(b"")
        await stage.pool.catalog.scan()
        assert "is empty" in stage.pool.catalog.problems["a"]
        await stage.use("a")
        file.unlink()
        await stage.pool.catalog.scan()
        await stage.use("a")
        assert stage.pool.catalog.versions("a") == ("1",)
        assert stage.pool.catalog.names == ("a",)
        file.write_bytes(b"x")
        await stage.pool.catalog.scan()
        assert stage.pool.catalog.problems == {}
        await stage.use("a")
        assert stage.script("a").loads == 1


async def test_a_new_version_answers_by_default_when_it_has_run(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        stage.script("a").fingerprint = (2,)  # of the new version, as the fake has one script for both
        stage.script("a").load_may_end = gate
        put_models(tmp_path, "a", "2")
        await stage.pool.catalog.scan()
        assert stage.pool.catalog.find("a").version == "1"
        assert stage.pool.catalog.versions("a") == ("1", "2")
        gate.set()
        await until(lambda: stage.pool.catalog.find("a").version == "2")
        await stage.use("a")
        await stage.settled()
        assert stage.pool.snapshot().counters.swaps == 1


async def test_a_new_version_that_is_broken_does_not_answer_by_default(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        stage.script("a").fingerprint, stage.script("a").load_error = (2,), "half of it"
        put_models(tmp_path, "a", "2")
        await stage.pool.catalog.scan()
        await until(lambda: "half of it" in state(stage, "a", "2")[1])
        assert stage.pool.catalog.find("a").version == "1"
        await stage.use("a")
        assert stage.pool.is_ready("a")
        assert not stage.pool.is_ready("a", "2")
        shutil.rmtree(tmp_path / "a/2")
        await stage.pool.catalog.scan()
        assert stage.pool.catalog.held == {}
        await stage.use("a")


async def test_a_version_in_the_place_of_another_one_is_waited_for(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        stage.script("a").fingerprint = (2,)
        stage.script("a").load_may_end = gate
        (tmp_path / "a/1").rename(tmp_path / "a/2")
        await stage.pool.catalog.scan()
        await stage.use("a")
        assert stage.pool.catalog.find("a").version == "1"
        gate.set()
        await until(lambda: stage.pool.catalog.find("a").version == "2")
        await stage.use("a")
        await until(lambda: [model.version for model in stage.pool.snapshot().models] == ["2"])
        with pytest.raises(ModelNotFound):
            stage.pool.catalog.find("a", "1")


async def test_who_waits_for_the_default_version_while_it_leaves_gets_the_one_after_it(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts, latest = {"a": FakeScript(close_may_end=gate)}, {"version_policy": {"latest": 1}}
    async with Stage(tmp_path, scripts, models=latest) as stage:
        await stage.use("a")
        leaving = stage.begin(stage.memory.attempt_cleanup(everything=True))
        await until(stage.script("a").close_started.is_set)
        waiting = [stage.begin(stage.pool.acquire("a", version)) for version in (None, "1")]
        await until(lambda: stage.info("a").waiting == 2)
        stage.script("a").fingerprint = (2,)
        put_models(tmp_path, "a", "2")
        await stage.pool.catalog.scan()
        gate.set()
        default = await soon(waiting[0])
        assert default.key == ModelKey("a", "2")
        with pytest.raises(ModelNotFound, match="version 1 of model 'a' is not served"):  # which was asked for
            await soon(waiting[1])
        default.end()
        await soon(leaving)
        await stage.settled()
        stage.check_at_rest()


# --- options ------------------------------------------------------------------------------------------


async def test_options_are_taken_over_and_only_some_need_another_load(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        options = tmp_path / "a/model.toml"
        options.write_text("pinned = true\nbatching = false\n")
        await stage.pool.catalog.scan()
        await until(lambda: stage.info("a").pinned)
        assert stage.script("a").loads == 1
        options.write_text('pinned = true\noptimization = "basic"\n')
        await stage.pool.catalog.scan()
        await compared(stage)
        stage.clock.now += SETTLE_S
        await stage.pool.catalog.scan()
        await until(lambda: stage.script("a").generations == [(1, "basic")])


async def test_versions_are_served_by_the_policy(tmp_path: Path) -> None:
    for version in "23":
        put_models(tmp_path, "a", version)
    async with Stage(tmp_path, names="a", models={"version_policy": {"latest": 2}}) as stage:
        assert stage.pool.catalog.versions("a") == ("2", "3")
        assert stage.pool.catalog.find("a").version == "3"
        with pytest.raises(ModelNotFound, match="version 1 of model 'a' is not served by its version policy, latest 2"):
            await stage.pool.acquire("a", "1")
        (tmp_path / "a/model.toml").write_text("version_policy = {specific = [1, 7]}")
        await stage.pool.catalog.scan()
        assert stage.pool.catalog.versions("a") == ("1",)
        await stage.use("a")
        assert stage.info("a").version == "1"
