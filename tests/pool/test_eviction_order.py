"""Which idle models leave first under each rule of `pool.eviction`."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pool_stage import MB, Stage

from benchmarks.policy.fleet import Fleet
from benchmarks.policy.rules import GreedyDualSizeFrequency as Simulated
from modelhost.config import ModelOptions
from modelhost.pool.key import ModelKey
from modelhost.pool.slot import Slot
from modelhost.pool.statistics import ModelStatistics
from modelhost.pool.worth import GreedyDualSizeFrequency, LeastRecentlyUsed
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


async def test_lru_evicts_what_was_used_often_but_long_ago(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdef") as stage:
        await stage.use("a", "a", "a", *"bcde", "f")
        assert "a" not in stage.states()


async def test_gdsf_keeps_what_is_used_often_until_it_has_aged(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefghij", eviction="gdsf") as stage:
        await stage.use("a", "a", "a", *"bcde", "f")
        assert "b" not in stage.states()
        assert "a" in stage.states()
        # Each round of the others ages it: in the end it leaves though nothing else was used as often.
        for _ in range(5):
            await stage.use(*"bcdefghij")
        assert "a" not in stage.states()


async def test_gdsf_evicts_the_large_one_of_two_that_are_used_alike(tmp_path: Path) -> None:
    scripts = {"small": FakeScript(resident_bytes=10 * MB), "large": FakeScript(resident_bytes=60 * MB)}
    async with Stage(tmp_path, scripts, names="abcd", eviction="gdsf") as stage:
        await stage.use("small", "large", "a", "b", "c")
        assert "large" not in stage.states()
        assert {"small", "a", "b", "c"} <= set(stage.states())


def _slot(name: str, size_bytes: int, load_s: float) -> Slot:
    slot = Slot(ModelKey(name, "1"), None, ModelOptions())  # type: ignore[arg-type]
    slot.load_s = load_s
    slot.runs = SimpleNamespace(statistics=ModelStatistics())  # type: ignore[assignment]
    slot.reservation = SimpleNamespace(size_bytes=size_bytes)  # type: ignore[assignment]
    return slot


def test_the_age_is_what_the_last_victim_was_worth_and_never_falls() -> None:
    order = GreedyDualSizeFrequency()
    quick, slow = _slot("quick", MB, 0.01), _slot("slow", MB, 1.0)
    assert [slot.key.name for slot in order.sort([slow, quick])] == ["quick", "slow"]
    order.evicted([quick])
    assert order.age == pytest.approx(0.01 / MB)
    before = slow.worth
    order.sort([slow])
    assert slow.worth == before  # nobody has used it since
    slow.runs.statistics.execution_count += 1
    order.sort([slow])
    assert slow.worth == pytest.approx(order.age + 2 * 1.0 / MB)
    order.evicted([slow])
    order.evicted([quick])
    assert order.age == slow.worth


def test_lru_leaves_the_order_alone() -> None:
    slots = [_slot(str(index), random.randrange(1, MB), random.random()) for index in range(9)]
    assert LeastRecentlyUsed().sort(slots) == slots


@pytest.mark.parametrize("seed", range(5))
def test_the_host_evicts_in_the_order_of_the_simulation(seed: int) -> None:
    """The host sorts slots when it needs room; the simulation has a heap. Same victims, one after another."""
    rng = random.Random(seed)
    sizes = [rng.randrange(1 << 20, 1 << 24) for _ in range(30)]
    loads = [rng.uniform(0.01, 1.0) for _ in range(30)]
    capacity_bytes = sum(sizes) // 4
    wanted = [int(30 * rng.random() ** 3) for _ in range(2000)]

    fleet = Fleet(np.array(sizes, np.int64), np.array(loads))
    simulated = Simulated(fleet, np.array(wanted, np.int32))
    order, slots = GreedyDualSizeFrequency(), dict[int, Slot]()
    left: list[tuple[int, int]] = []
    for at, model in enumerate(wanted):
        if simulated.use(model, at):
            slots[model].runs.statistics.execution_count += 1  # type: ignore[union-attr]
            continue
        while sum(sizes[other] for other in slots) + sizes[model] > capacity_bytes:
            first = order.sort(slots.values())[0]
            order.evicted([first])
            del slots[int(first.key.name)]
            left.append((simulated.leave(), int(first.key.name)))
        simulated.load(model, at)
        slots[model] = _slot(str(model), sizes[model], loads[model])
        order.sort(slots.values())  # what a host does before each load
    assert len(left) > 100
    assert all(ours == theirs for ours, theirs in left)
