"""Usage and limit when the kernel's files cannot be read, and when somebody changes the limit while the host runs."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cgroup import Machine, group_v1, group_v2
from test_memory_manager import MB, Cache, manager, until

from modelhost.config import MemorySettings
from modelhost.errors import ConfigError
from modelhost.memory import Level, MemoryManager, Probe
from modelhost.memory.steady import SteadyProbe
from modelhost.runtime.fake import FakeMemory

pytestmark = pytest.mark.anyio


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def vanish(group: Path) -> None:
    for file in ("memory.current", "memory.stat", "memory.max"):
        (group / file).unlink()


def fill_with_nonsense(group: Path) -> None:
    for file in ("memory.current", "memory.stat", "memory.max"):
        (group / file).write_text("\x00 no number\n\n7")


@pytest.mark.parametrize("damage", [vanish, fill_with_nonsense])
async def test_where_the_kernels_files_cannot_be_read_the_last_figures_count_until_they_can(
    machine: Machine, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    fs = machine.v2()
    machine.belong("0::/host\n")
    group = group_v2(fs / "host", str(256 * MB), current=70 * MB, inactive=10 * MB)
    settings = MemorySettings(sample_interval_s=0.001)
    async with MemoryManager(settings, probe=Probe(proc=machine.proc)) as memory:
        loaded = memory.reserve(30 * MB)
        damage(group)
        await until(lambda: memory.conditions.holds("memory_unreadable"))
        assert (memory.memory_info().usage_bytes, memory.memory_info().limit_bytes) == (60 * MB, 256 * MB)
        loaded.settle(30 * MB)  # what was loaded meanwhile counts, what has left does not
        assert memory.memory_info().usage_bytes == 90 * MB
        _, measured = await memory.change(lambda: None)
        assert not measured.quiet  # nobody can tell what it took
        loaded.end()
        assert memory.memory_info().usage_bytes == 60 * MB
        group_v2(group, str(256 * MB), current=65 * MB)
        await until(lambda: not memory.conditions.holds("memory_unreadable"))
        assert memory.memory_info().usage_bytes == 65 * MB
    assert memory.history.counts == {"memory_unreadable": 1, "memory_readable": 1}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_without_a_descriptor_left_the_last_figures_count_too() -> None:
    machine = FakeMemory()
    told: list[str | None] = []
    steady = SteadyProbe(machine, on_change=told.append)
    assert steady.usage().usage_bytes == 60 * MB
    assert steady.committed_bytes() == 60 * MB

    def refuse() -> Any:
        raise OSError(errno.EMFILE, "Too many open files", "/sys/fs/cgroup/memory.current")

    machine.usage = machine.committed_bytes = machine.refresh = refuse  # type: ignore[method-assign]
    machine.limit_bytes = 1 * MB
    steady.refresh()
    assert (steady.usage().usage_bytes, steady.committed_bytes(), steady.limit_bytes) == (60 * MB, 60 * MB, 256 * MB)
    assert steady.failures == 3
    assert told == ["memory.current: Too many open files"]


def test_at_the_start_there_is_no_last_figure(machine: Machine) -> None:
    group = group_v2(machine.v2(), str(256 * MB))
    machine.belong("0::/\n")
    steady = SteadyProbe(Probe(proc=machine.proc))
    (group / "memory.current").unlink()
    with pytest.raises(OSError, match=r"memory\.current"):
        steady.usage()


# --- the limit ---------------------------------------------------------------------------------------


async def test_thresholds_follow_a_limit_that_is_lowered_and_raised_again() -> None:
    machine = FakeMemory()
    cache, seen = Cache(machine), list[int]()
    async with manager(machine) as memory:
        memory.set_cleaner(cache.clean)
        memory.on_thresholds(lambda found: seen.append(found.critical_bytes))
        for name in "abcde":
            cache.put(name, 20 * MB)
        assert memory.level is Level.NORMAL
        machine.limit_bytes = 160 * MB
        await until(lambda: machine.usage().usage_bytes < 100 * MB and not memory.is_changing)
        info = memory.memory_info()
        assert (info.limit_bytes, info.warning_bytes, info.critical_bytes) == (160 * MB, 100 * MB, 120 * MB)
        assert info.level is Level.NORMAL
        machine.limit_bytes = 256 * MB
        await until(lambda: memory.memory_info().limit_bytes == 256 * MB)
        assert memory.memory_info().critical_bytes == 192 * MB
    assert seen == [120 * MB, 192 * MB]
    assert [event.details["limit_bytes"] // MB for event in memory.history.snapshot() if event.kind == "limit"] == [
        160,
        256,
    ]


async def test_thresholds_that_are_impossible_under_a_lowered_limit_are_left_to_the_host_and_that_is_told() -> None:
    machine = FakeMemory()
    async with manager(machine, warning="180MB", critical="200MB") as memory:
        machine.limit_bytes = 160 * MB
        await until(lambda: memory.conditions.holds("memory_limit_too_low"))
        assert memory.memory_info().critical_bytes == 120 * MB
        machine.limit_bytes = 256 * MB
        await until(lambda: not memory.conditions.holds("memory_limit_too_low"))
        assert memory.memory_info().critical_bytes == 200 * MB


async def test_under_a_limit_with_no_room_for_models_all_leave_and_none_is_let_in() -> None:
    machine = FakeMemory()
    cache = Cache(machine)
    async with manager(machine) as memory:
        memory.set_cleaner(cache.clean)
        cache.put("a", 20 * MB)
        machine.limit_bytes = 70 * MB
        await until(lambda: not cache.sizes)
        info = memory.memory_info()
        assert (info.level, info.available_bytes) == (Level.CRITICAL, 0)
        assert memory.conditions.holds("memory_limit_too_low")
        await asyncio.sleep(0.01)  # looks that can do nothing change nothing
        machine.limit_bytes = 256 * MB
        await until(lambda: memory.level is Level.NORMAL)


def test_v2_a_limit_is_read_anew_and_the_high_mark_is_one(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/slice/host\n")
    own = group_v2(fs / "slice" / "host", "max", current=50 * MB)
    above = group_v2(fs / "slice", str(512 * MB), current=80 * MB)
    probe = Probe(proc=machine.proc)
    assert probe.limit_bytes == 512 * MB
    (own / "memory.max").write_text(f"{256 * MB}\n")
    (own / "memory.high").write_text("max\n")
    probe.refresh()
    assert (probe.limit_bytes, probe.usage().usage_bytes) == (256 * MB, 50 * MB)
    (own / "memory.high").write_text(f"{160 * MB}\n")
    probe.refresh()
    assert probe.limit_bytes == 160 * MB
    (above / "memory.max").write_text(f"{128 * MB}\n")
    probe.refresh()
    assert (probe.limit_bytes, probe.usage().usage_bytes) == (128 * MB, 80 * MB)


def test_a_limit_that_cannot_be_read_any_more_stays_in_force(machine: Machine) -> None:
    fs = machine.v1()
    machine.belong("4:memory:/host\n")
    group = group_v1(fs / "host", str(256 * MB))
    probe = Probe(proc=machine.proc)
    (group / "memory.limit_in_bytes").unlink()
    with pytest.raises(OSError, match=r"memory\.limit_in_bytes"):
        probe.refresh()
    assert probe.limit_bytes == 256 * MB


def test_a_process_that_was_moved_to_another_group_has_that_ones_limit(machine: Machine) -> None:
    fs = machine.v1()
    machine.belong("4:memory:/host\n")
    group = group_v1(fs / "host", str(256 * MB))
    probe = Probe(proc=machine.proc)
    group_v1(fs / "other", str(160 * MB), current=20 * MB)
    machine.belong("4:memory:/other\n")
    (group / "memory.limit_in_bytes").unlink()
    probe.refresh()
    assert (probe.limit_bytes, probe.usage().usage_bytes) == (160 * MB, 20 * MB)


def test_a_configured_limit_can_be_changed_within_a_control_group(machine: Machine) -> None:
    fs = machine.v1()
    machine.belong("4:memory:/host\n")
    group_v1(fs / "host", str(256 * MB), current=50 * MB)
    probe = Probe(proc=machine.proc)
    for configured, limit, source in ((160 * MB, 160 * MB, "setting"), (None, 256 * MB, "cgroup v1")):
        probe.configure(configured)
        probe.refresh()
        assert (probe.limit_bytes, probe.limit_source, probe.usage().usage_bytes) == (limit, source, 50 * MB)


def test_a_configured_limit_that_would_change_what_usage_is_takes_a_new_start(machine: Machine) -> None:
    machine.belong("")
    for at_start, later in ((None, 160 * MB), (160 * MB, None)):
        probe = Probe(at_start, proc=machine.proc)
        with pytest.raises(ConfigError, match="next start"):
            probe.configure(later)
        assert probe.limit_source == ("machine" if at_start is None else "setting")
    probe.configure(128 * MB)
    probe.refresh()
    assert probe.limit_bytes == 128 * MB


async def test_a_configured_limit_below_what_is_used_is_approached_as_models_leave() -> None:
    machine = FakeMemory()
    cache, seen, room = Cache(machine), list[int](), list[int]()
    async with manager(machine) as memory:
        memory.set_cleaner(cache.clean)
        memory.on_thresholds(lambda found: seen.append(found.limit_bytes))
        memory.on_thresholds(lambda found: room.append(found.limit_bytes - machine.usage().usage_bytes))
        for name in "abcde":
            cache.put(name, 20 * MB)  # usage is as much as the limit is to be
        memory.use_limit(160 * MB)
        assert not memory.is_exhausted
        await until(lambda: memory.memory_info().limit_bytes == 160 * MB and not memory.is_changing)
        assert seen[0] == 200 * MB
        assert seen[-1] == 160 * MB
        assert seen == sorted(seen, reverse=True)
        assert min(room) >= 30 * MB
        memory.use_limit(240 * MB)
        assert memory.memory_info().limit_bytes == 240 * MB
