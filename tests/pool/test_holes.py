"""A heap that keeps what models give back, as holes that the next loads fill: usage never falls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_stage import MB, Stage, soon

from modelhost.config import ModelOptions
from modelhost.errors import InsufficientMemory
from modelhost.memory import Level
from modelhost.prepare import Variant
from modelhost.runtime.base import Inspection
from modelhost.runtime.fake import FakeMemory, FakeScript

pytestmark = pytest.mark.anyio


class HoleyMemory(FakeMemory):
    """Gives nothing back to the machine: it stays free inside, and is taken first."""

    holes_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Takes from the holes, or makes them."""
        taken_bytes = min(self.holes_bytes, size_bytes)  # below zero where memory is given back
        self.holes_bytes -= taken_bytes
        super().add(size_bytes - taken_bytes)

    @property
    def in_use_bytes(self) -> int:
        """What models hold of what is committed."""
        return self.committed_bytes() - self.baseline_bytes - self.holes_bytes


class HoleyStage(Stage):
    """A pool of mapped models (or such as are told) on holey memory."""

    def __init__(
        self, directory: Path, scripts: dict[str, FakeScript], *, variant: Variant = "mapped", **settings: Any
    ) -> None:
        self.holey = holey = HoleyMemory()
        super().__init__(directory, scripts, machine=holey, **settings)
        self.memory.read_heap_free = lambda: holey.holes_bytes
        inspect = self.runtime.inspect

        def as_variant(file: Path, options: ModelOptions) -> Inspection:
            found = inspect(file, options)
            assert found.plan is not None
            return replace(found, plan=replace(found.plan, variant=variant))

        self.runtime.inspect = as_variant  # type: ignore[method-assign]


def small(count: int) -> dict[str, FakeScript]:
    return {f"m{number:03}": FakeScript(resident_bytes=2 * MB) for number in range(count)}


async def test_far_more_small_models_than_fit_evict_one_for_one_where_the_heap_keeps_everything(
    tmp_path: Path,
) -> None:
    scripts = small(100)
    async with HoleyStage(tmp_path, scripts) as stage:
        for _ in range(3):
            await stage.use(*scripts)
            assert len(stage.loaded) >= 54  # of the 55 that fit below warning
            stage.check()
        counters = stage.pool.snapshot().counters
        assert counters.evictions <= counters.loads
        assert counters.loads == 300
        assert stage.machine.highest_bytes < 192 * MB
        assert stage.memory.shortfall_bytes_total == 0
        kept = [event.details["kept_free_bytes"] for event in stage.memory.history.snapshot()]
        assert set(kept) == {2 * MB}


async def test_a_load_into_holes_is_booked_at_what_it_holds(tmp_path: Path) -> None:
    scripts = small(3)
    async with HoleyStage(tmp_path, scripts) as stage:
        await stage.use(*scripts)
        await soon(stage.pool.unload("m000"))
        before = stage.machine.committed_bytes()
        await stage.use("m000")
        assert stage.machine.committed_bytes() == before
        assert stage.info("m000").committed_bytes == 2 * MB
        stage.check()


@pytest.mark.parametrize(
    ("variant", "size_mb", "is_loaded"), [("mapped", 2, True), ("mapped", 5, False), ("heap", 2, False)]
)
async def test_near_critical_only_loads_of_small_blocks_count_on_holes(
    tmp_path: Path, variant: Variant, size_mb: int, is_loaded: bool
) -> None:
    scripts = {"pinned": FakeScript(), "last": FakeScript(resident_bytes=size_mb * MB)}
    async with HoleyStage(tmp_path, scripts, variant=variant, models={"pinned": ["pinned"]}) as stage:
        await stage.use("pinned")
        stage.machine.other_bytes = 111 * MB  # 191 MB
        stage.memory.read_heap_free = lambda: 30 * MB
        await stage.memory.trim()
        if is_loaded:
            await stage.use("last")
        else:
            with pytest.raises(InsufficientMemory):
                await stage.use("last")


async def test_a_large_load_does_not_push_everybody_out_for_holes(tmp_path: Path) -> None:
    scripts = small(55) | {"large": FakeScript(resident_bytes=10 * MB)}
    async with HoleyStage(tmp_path, scripts) as stage:
        await stage.use(*scripts)  # 170 MB, and 10
        assert len(stage.loaded) >= 55 + 1 - 8
        assert "large" in stage.loaded
        stage.check()


async def test_above_warning_for_holes_alone_the_sampler_evicts_nobody(tmp_path: Path) -> None:
    scripts = small(50)
    async with HoleyStage(tmp_path, scripts) as stage:
        await stage.use(*scripts)
        stage.machine.other_bytes = 24 * MB  # 184 MB
        stage.holey.holes_bytes = 20 * MB
        await soon(stage.memory.attempt_cleanup())
        assert stage.memory.level is Level.WARNING  # usage is usage
        assert len(stage.loaded) == 50
        stage.holey.holes_bytes = 0
        await soon(stage.memory.attempt_cleanup())
        assert len(stage.loaded) < 50


async def test_at_critical_nothing_loads_into_holes(tmp_path: Path) -> None:
    async with HoleyStage(tmp_path, small(2)) as stage:
        await stage.use("m000")
        await soon(stage.pool.unload("m000"))
        stage.machine.other_bytes = 130 * MB  # 192 MB
        stage.holey.holes_bytes = 100 * MB
        await stage.memory.trim()
        with pytest.raises(InsufficientMemory):
            await soon(stage.pool.acquire("m001"))
