"""Which idle models leave first under each rule of `pool.eviction`."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from pool_stage import MB, Stage

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
