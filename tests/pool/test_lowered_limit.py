"""A memory limit that is lowered while models come: what was let in under the former one does not go on blindly."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pool_stage import MB, Stage, soon, until

from modelhost.errors import NeverFits
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio


async def test_a_load_that_no_longer_fits_is_stopped_waits_for_memory_again_and_nobody_is_refused(
    tmp_path: Path,
) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"late": FakeScript(load_may_end=gate)}, names="abcd", sampling=True) as stage:
        await stage.use(*"abcd")
        request = stage.begin(stage.pool.acquire("late"))
        await until(stage.script("late").load_started.is_set)
        stage.machine.highest_bytes = 0
        stage.machine.limit_bytes = 160 * MB  # critical 120: usage is 140, the load has 20 to come
        (await soon(request)).end()
        await stage.settled()
        assert stage.script("late").loads == 2
        assert stage.machine.highest_bytes <= 140 * MB, "it went on beside all the others"
        assert "late" in stage.loaded
        assert stage.memory.memory_info().usage_bytes < 120 * MB
        assert stage.pool.snapshot().counters.load_failures == 0
        stage.check_at_rest()


async def test_a_load_that_fits_all_the_same_goes_on(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}, sampling=True) as stage:
        request = stage.begin(stage.pool.acquire("a"))
        await until(stage.script("a").load_started.is_set)
        stage.machine.limit_bytes = 160 * MB
        await until(lambda: stage.memory.memory_info().limit_bytes == 160 * MB)
        gate.set()
        (await soon(request)).end()
        assert stage.script("a").loads == 1
        stage.check_at_rest()


async def test_a_child_that_no_longer_fits_is_stopped_and_begins_again_when_it_does(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"new": FakeScript(child_bytes=50 * MB, prepare_may_end=gate)}
    async with Stage(tmp_path, scripts, names="abc", sampling=True) as stage:
        await stage.use(*"abc")
        request = stage.begin(stage.pool.acquire("new"))
        await until(stage.script("new").prepare_started.is_set)
        stage.machine.limit_bytes = 160 * MB
        (await soon(request)).end()
        await stage.settled()
        assert stage.script("new").ceilings == [50 * MB, 50 * MB]
        assert stage.pool.snapshot().counters.preparation_failures == 0
        stage.check_at_rest()


async def test_a_load_that_never_fits_under_the_new_limit_is_refused_with_the_figures(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"large": FakeScript(resident_bytes=80 * MB, load_may_end=gate)}
    async with Stage(tmp_path, scripts, sampling=True) as stage:
        request = stage.begin(stage.pool.acquire("large"))
        await until(stage.script("large").load_started.is_set)
        stage.machine.limit_bytes = 160 * MB
        with pytest.raises(NeverFits, match=r"60\.0 MB would be free below critical \(120\.0 MB of 160\.0 MB\)"):
            await soon(request)
        stage.check_at_rest()
