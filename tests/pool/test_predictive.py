"""Models that are loaded ahead: only in quiet moments, where there is room, and never in anybody's way."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pool_stage import MB, Stage, soon, turns, until

from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


def stage_of(directory: Path, names: str = "abcdef", **more: Any) -> Stage:
    return Stage(directory, more.pop("scripts", None), names=names, predictive=True, **more)


async def second(stage: Stage, *used: str) -> None:
    """A second in which these models are used; the looks at its end and what comes of them."""
    if used:
        await stage.use(*used)
    stage.clock.now += 1
    stage.memory._notify()
    await turns(20)
    await until(lambda: not stage.memory.is_changing)
    await turns(20)


async def make_due(stage: Stage, name: str) -> None:
    """Uses a model once a minute, and has it leave; a second later it is near enough to its next use."""
    for _ in range(5):
        stage.clock.now += 59
        await second(stage, name)
    await stage.pool.unload(name)
    stage.pool._table.unloaded.discard(name)
    stage.clock.now += 54


async def test_a_model_that_is_due_is_loaded_and_counts_as_a_hit_when_it_is_used(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        await second(stage)
        await until(lambda: stage.loaded == ["a"])
        (event,) = [event for event in stage.memory.history.snapshot() if event.kind == "predicted"]
        assert event.cause == "it is used every 60 s"
        assert stage.pool.counters.cold_starts == 1
        await second(stage, "a")
        counters = stage.pool.counters
        assert (counters.predicted_loads, counters.predicted_hits, counters.predicted_wasted) == (1, 1, 0)
        assert counters.cold_starts == 1, "the request found it loaded"


async def test_what_nobody_uses_is_wasted_and_the_next_guess_waits(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        await second(stage)
        await until(lambda: stage.loaded == ["a"])
        stage.clock.now += 121
        await second(stage)
        assert stage.pool.counters.predicted_wasted == 1


async def test_where_there_is_no_room_nobody_leaves_for_a_guess(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        stage.machine.other_bytes = 95 * MB
        for _ in range(3):
            await second(stage)
        assert stage.loaded == []
        assert stage.pool.counters.evictions == 0
        assert stage.pool.counters.predicted_loads == 0
        assert stage.memory.history.counts["predicted"] == 1, "not every second"
        await until(lambda: not stage.states())
        stage.check_at_rest()


async def test_a_guess_leaves_first_where_room_is_needed(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        await stage.use(*"bcde")
        await second(stage)  # it was not quiet
        await second(stage)
        await until(lambda: "a" in stage.loaded)
        await stage.use("f")
        assert stage.loaded == ["b", "c", "d", "e", "f"]
        assert [candidate.key.name for candidate in stage.pool._table.candidates()] == list("bcdef")


async def test_a_guess_that_is_loading_gives_way_to_a_request(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"a": FakeScript()}
    async with stage_of(tmp_path, names="b", scripts=scripts) as stage:
        await make_due(stage, "a")
        script = stage.script("a")
        script.load_started.clear()
        script.load_may_end = gate
        stage.clock.now += 1
        stage.memory._notify()
        await until(script.load_started.is_set)
        lease = await soon(stage.pool.acquire("b"))
        assert stage.loaded == ["b"]
        lease.end()
        stage.clock.now += 30  # it is not due any more
        await second(stage)
        assert stage.pool.counters.predicted_loads == 0
        assert stage.pool.counters.load_failures == 0
        stage.check_at_rest()


async def test_a_request_for_what_is_loading_ahead_joins_it(tmp_path: Path) -> None:
    gate = threading.Event()
    async with stage_of(tmp_path, scripts={"a": FakeScript()}) as stage:
        await make_due(stage, "a")
        script = stage.script("a")
        loads = script.loads
        script.load_started.clear()
        script.load_may_end = gate
        stage.clock.now += 1
        stage.memory._notify()
        await until(script.load_started.is_set)
        request = stage.begin(stage.pool.acquire("a"))
        await turns(10)
        gate.set()
        (await soon(request)).end()
        assert script.loads == loads + 1
        await second(stage)
        assert stage.pool.counters.predicted_hits == 1


@pytest.mark.parametrize("busy", ["in flight", "warning", "waiting"])
async def test_only_in_quiet_moments(tmp_path: Path, busy: str) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        if busy == "in flight":
            stage.runner.in_flight += 1
        elif busy == "warning":
            stage.machine.other_bytes = 115 * MB
            stage.memory.memory_info()
        else:
            stage.runner.started += 50
        stage.clock.now += 1
        stage.memory._notify()
        await turns(20)
        assert "a" not in stage.states()
        stage.runner.in_flight = 0
        stage.machine.other_bytes = 0


async def test_what_was_unloaded_on_request_or_is_broken_is_left_alone(tmp_path: Path) -> None:
    async with stage_of(tmp_path) as stage:
        await make_due(stage, "a")
        stage.pool._table.unloaded.add("a")
        await second(stage)
        assert stage.states() == {}


async def test_off_by_default(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        await make_due(stage, "a")
        await second(stage)
        assert stage.states() == {}
