"""What is counted for each model beside all together, and models that are pinned while the host runs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from pool_stage import MB, Stage, soon, until

from modelhost.config import ModelsSettings
from modelhost.errors import InsufficientMemory, ModelNotFound
from modelhost.pool import ModelKey
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


async def test_loads_evictions_and_cold_starts_are_counted_by_model_and_together(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdef") as stage:
        await stage.use("a", "a", *"bcdef", "a")  # five fit: a leaves for f, and b for a
        accounts = {key.name: account for key, account in stage.pool.accounts}
        assert (accounts["a"].loads, accounts["a"].evictions, accounts["a"].cold_starts) == (2, 1, 2)
        assert (accounts["b"].loads, accounts["b"].evictions, accounts["f"].evictions) == (1, 1, 0)
        counters = stage.pool.snapshot().counters
        for name in ("loads", "load_seconds", "evictions", "cold_starts"):
            assert sum(getattr(account, name) for account in accounts.values()) == getattr(counters, name), name


async def test_each_request_that_waits_for_a_load_is_a_cold_start_and_a_load_that_none_asked_for_is_not(
    tmp_path: Path,
) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}, names="b") as stage:
        requests = [stage.begin(stage.pool.acquire("a")) for _ in range(3)]
        await until(stage.script("a").load_started.is_set)
        gate.set()
        for lease in await soon(asyncio.gather(*requests)):
            lease.end()
        await stage.pool.load("b")
        await stage.use("b")
        accounts = stage.pool.accounts
        assert accounts.get(ModelKey("a", "1")).cold_starts == 3
        assert (accounts.get(ModelKey("b", "1")).loads, accounts.get(ModelKey("b", "1")).cold_starts) == (1, 0)
        assert accounts.get(ModelKey("nobody", "1")).loads == 0


async def test_a_model_that_is_pinned_stays_from_then_on_and_one_that_is_not_any_more_leaves(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg", models={"pinned": ("b",)}) as stage:
        await stage.use("a", "b")
        await stage.pool.pin("a", pinned=True)
        await stage.pool.pin("b", pinned=False)
        assert (stage.info("a").pinned, stage.info("b").pinned) == (True, False)
        await stage.use(*"cdefg")
        assert "a" in stage.states()
        assert "b" not in stage.states()
        await stage.memory.attempt_cleanup(everything=True)
        assert list(stage.states()) == ["a"]
        # Options are read again at a reload and compared with at a scan: the pins go on.
        stage.pool.catalog.use(ModelsSettings(directory=tmp_path, pinned=("b",)))
        await stage.pool.catalog.scan()
        await stage.settled()
        await stage.use("b")
        assert (stage.info("a").pinned, stage.info("b").pinned) == (True, False)


async def test_a_model_may_be_pinned_before_it_is_loaded_and_does_not_expire(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="ab", idle_ttl=10, sampling=True) as stage:
        await stage.pool.pin("a", pinned=True)
        assert stage.states() == {}
        await stage.use("a", "b")
        stage.clock.now += 11
        await until(lambda: "b" not in stage.states())
        assert "a" in stage.states()
        await stage.pool.pin("a", pinned=False)
        await until(lambda: "a" not in stage.states())


async def test_a_pin_counts_where_room_is_looked_for(tmp_path: Path) -> None:
    scripts = {name: FakeScript(resident_bytes=60 * MB) for name in ("a", "b", "c")}
    async with Stage(tmp_path, scripts, memory_wait_s=0.05) as stage:
        await stage.use("a")
        await stage.pool.pin("a", pinned=True)
        await stage.use("b")
        await stage.pool.pin("b", pinned=True)
        with pytest.raises(InsufficientMemory):
            await stage.use("c")
        await stage.pool.pin("a", pinned=False)
        await stage.use("c")
        assert set(stage.states()) == {"b", "c"}


async def test_what_is_not_there_cannot_be_pinned(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        with pytest.raises(ModelNotFound):
            await stage.pool.pin("nobody", pinned=True)
        assert stage.pool.catalog.options(stage.pool.catalog.find("a")).pinned is False
