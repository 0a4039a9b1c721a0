"""The memory manager by itself, on scripted memory: levels, reservations, verified clean-up."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from modelhost.config import MemorySettings
from modelhost.errors import ConfigError, InsufficientMemory, NeverFits
from modelhost.memory import CleanupGoal, CleanupPlan, Level, MemoryManager
from modelhost.runtime.fake import FakeMemory

pytestmark = pytest.mark.anyio

MB = 1 << 20


async def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came to hold"
        await asyncio.sleep(0)


def manager(machine: FakeMemory, **settings: Any) -> MemoryManager:
    return MemoryManager(MemorySettings(sample_interval_s=0.001, **settings), probe=machine)


class Cache:
    """Somebody's own models: a name, a size, oldest first."""

    def __init__(self, machine: FakeMemory, *, leaks: int = 0) -> None:
        self.machine, self.leaks = machine, leaks
        self.sizes: dict[str, int] = {}
        self.goals: list[CleanupGoal] = []

    def put(self, name: str, size: int) -> None:
        self.machine.add(size)
        self.sizes[name] = size

    def clean(self, goal: CleanupGoal) -> CleanupPlan | None:
        self.goals.append(goal)
        victims: list[str] = []
        freed = 0
        for name, size in self.sizes.items():
            if freed < goal.excess_bytes or goal.everything:
                victims.append(name)
                freed += size
        for name in victims:
            del self.sizes[name]
        return CleanupPlan(tuple(victims), freed, lambda: self.machine.add(self.leaks - freed)) if victims else None


# --- looking ----------------------------------------------------------------------------------------


async def test_the_baseline_is_what_is_used_at_the_start_and_the_thresholds_follow() -> None:
    machine = FakeMemory()
    machine.other_bytes = 5 * MB
    async with manager(machine) as memory:
        info = memory.memory_info()
    assert info.limit_bytes == 256 * MB
    assert info.limit_source == "cgroup v2"
    assert info.baseline_bytes == info.usage_bytes == 65 * MB
    assert (info.warning_bytes, info.critical_bytes, info.min_free_bytes) == (172 * MB, 192 * MB, 30 * MB)
    assert info.available_bytes == 127 * MB
    assert info.level is Level.NORMAL
    assert not info.is_warning
    assert not info.is_critical
    assert info.raw == {"current_bytes": 65 * MB}


async def test_without_a_baseline_nothing_can_be_asked() -> None:
    memory = manager(FakeMemory())
    with pytest.raises(RuntimeError, match="no baseline yet"):
        memory.memory_info()
    await memory.close()


async def test_impossible_thresholds_stop_the_start() -> None:
    memory = manager(FakeMemory(), critical="250MB")
    with pytest.raises(ConfigError, match=r"at most 226\.0 MB"):
        async with memory:
            pass
    await memory.close()


async def test_available_is_what_is_left_below_critical_after_all_claims() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        claim = memory.reserve(50 * MB)
        info = memory.memory_info()
        assert (info.reserved_bytes, info.available_bytes) == (50 * MB, 82 * MB)
        machine.add(45 * MB)
        claim.settle(45 * MB)
        info = memory.memory_info()
        assert (info.reserved_bytes, info.available_bytes) == (0, 87 * MB)
        machine.other_bytes = 200 * MB
        assert memory.memory_info().available_bytes == 0


async def test_each_change_of_level_is_one_event_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    for usage_mb in (100, 171, 172, 180, 169, 168, 193, 189, 188, 187, 167, 60, 192, 60):
        machine.other_bytes = (usage_mb - 60) * MB
        for _ in range(3):
            memory.memory_info()
    await memory.close()
    events = [event for event in memory.history.snapshot() if event.kind == "level"]
    assert [(event.details["from"], event.level.label, event.usage_bytes // MB) for event in events] == [
        ("normal", "warning", 172),
        ("warning", "critical", 193),
        ("critical", "warning", 187),
        ("warning", "normal", 167),
        ("normal", "critical", 192),
        ("critical", "normal", 60),
    ]
    assert {event.cause for event in events} == {"request"}
    assert len([record for record in caplog.records if "memory level" in record.message]) == 6
    assert [record.levelname for record in caplog.records] == [
        "WARNING",
        "WARNING",
        "INFO",
        "INFO",
        "WARNING",
        "INFO",
    ]


async def test_the_sampler_notices_a_change_without_being_asked() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        looks: list[Level] = []
        memory.on_change(lambda: looks.append(memory.level))
        machine.other_bytes = 120 * MB
        await until(lambda: Level.WARNING in looks)
        machine.other_bytes = 140 * MB
        await until(lambda: Level.CRITICAL in looks)
        machine.other_bytes = 0
        await until(lambda: looks[-1] is Level.NORMAL)
        levels = [(event.details["from"], event.level.label) for event in memory.history.snapshot()]
        assert levels == [("normal", "warning"), ("warning", "critical"), ("critical", "normal")]


async def test_the_sampler_outlives_figures_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        read, failures = machine.usage, []

        def broken() -> Any:
            failures.append(1)
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(machine, "usage", broken)
        await until(lambda: len(failures) > 2)
        monkeypatch.setattr(machine, "usage", read)
        machine.other_bytes = 120 * MB
        await until(lambda: memory.level is Level.WARNING)


async def test_a_listener_that_fails_stops_neither_the_change_nor_the_other_listeners_nor_the_sampler() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        told: list[Level] = []

        def broken() -> None:
            raise ZeroDivisionError("division by zero")

        memory.on_change(broken)
        memory.on_change(lambda: told.append(memory.level))
        assert (await memory.change(lambda: "done"))[0] == "done"
        await until(lambda: len(told) > 2)
        machine.other_bytes = 120 * MB
        await until(lambda: told[-1] is Level.WARNING)


async def test_exhaustion_is_less_than_min_free() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        machine.other_bytes = 166 * MB
        memory.memory_info()
        assert not memory.is_exhausted
        machine.other_bytes += 1
        memory.memory_info()
        assert memory.is_exhausted


async def test_the_history_is_as_long_as_the_settings_say() -> None:
    machine = FakeMemory()
    async with manager(machine, event_history=3) as memory:
        for number in range(5):
            memory.record("test", cause=str(number), details={})
        assert [event.cause for event in memory.history.snapshot()] == ["2", "3", "4"]
        assert memory.history.counts["test"] == 5


# --- reserving ----------------------------------------------------------------------------------------


async def test_what_can_never_fit_is_refused_with_the_figures() -> None:
    async with manager(FakeMemory()) as memory:
        with pytest.raises(NeverFits) as refusal:
            memory.reserve(132 * MB, owner="resnet")
        assert refusal.value.details() == {
            "needed_bytes": 132 * MB,
            "available_bytes": 132 * MB,
            "held_by": [],
        }
        assert "resnet needs 132.0 MB" in str(refusal.value)
        assert memory.ledger.open_count == 0
        memory.reserve(132 * MB - 1).end()


async def test_what_does_not_fit_now_is_refused_with_the_figures() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        machine.other_bytes = 60 * MB
        with memory.reserve(40 * MB, owner="first"):
            with pytest.raises(InsufficientMemory) as refusal:
                memory.reserve(32 * MB, owner="second")
            assert refusal.value.needed_bytes == refusal.value.available_bytes == 32 * MB
            assert "second needs 32.0 MB, 32.0 MB are free below critical (192.0 MB of 256.0 MB)" in str(refusal.value)
            memory.reserve(32 * MB - 1).end()
        assert memory.ledger.open_count == 0
        assert memory.ledger.totals == memory.ledger.reconcile()


async def test_a_change_is_measured_on_the_memory_thread() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:

        def work() -> str:
            machine.add(7 * MB)
            return threading.current_thread().name

        thread, measured = await memory.change(work)
        assert thread.startswith("modelhost-memory")
        assert (measured.delta_bytes, measured.quiet) == (7 * MB, True)
        memory.quiet_marker = lambda: None
        assert not (await memory.change(lambda: None))[1].quiet
        markers = iter(range(100))
        memory.quiet_marker = lambda: next(markers)
        assert not (await memory.change(lambda: None))[1].quiet
        memory.quiet_marker = lambda: 0


async def test_a_change_that_fits_into_the_heap_holds_what_it_took_of_it() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    free = [10 * MB]
    memory.read_heap_free = lambda: free[0]
    memory.set_baseline()

    def load() -> None:
        free[0] -= 4 * MB
        machine.add(3 * MB)

    assert (await memory.change(load))[1].delta_bytes == 7 * MB
    assert memory.memory_info().heap_free_bytes == 6 * MB
    await memory.close()


async def test_the_heap_is_not_read_around_changes_where_nothing_is_free_in_it() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    threads: list[str] = []

    def read() -> int:
        threads.append(threading.current_thread().name)
        return MB - 1

    memory.read_heap_free = read
    memory.set_baseline()
    threads.clear()
    assert (await memory.change(lambda: machine.add(3 * MB)))[1].delta_bytes == 3 * MB
    memory.memory_info()
    assert threads == []
    await memory.trim(deep=False)
    assert threads == []
    await memory.trim()
    assert threads
    assert all(name.startswith("modelhost-memory") for name in threads)  # not while the event loop waits
    await memory.close()


async def test_a_change_runs_to_its_end_when_its_caller_is_cancelled() -> None:
    machine, gate, started = FakeMemory(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert gate.wait(30)
        machine.add(MB)

    async with manager(machine) as memory:
        told: list[bool] = []
        task = asyncio.ensure_future(memory.change(work))
        await until(started.is_set)
        memory.on_change(lambda: told.append(memory.is_changing))
        task.cancel()
        await asyncio.wait([task])
        assert memory.is_changing
        gate.set()
        await until(lambda: not memory.is_changing)
        assert machine.committed_bytes() == 61 * MB
        assert False in told


async def test_changes_run_one_after_another() -> None:
    machine = FakeMemory()
    running: list[int] = []

    def work() -> None:
        running.append(1)
        assert len(running) == 1
        running.pop()

    async with manager(machine) as memory:
        await asyncio.gather(*(memory.change(work) for _ in range(50)))
    assert running == []
    assert not memory.is_changing


# --- cleaning up --------------------------------------------------------------------------------------


async def test_at_normal_nothing_has_to_leave() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        cache = Cache(machine)
        memory.set_cleaner(cache.clean)
        cache.put("a", 20 * MB)
        assert await memory.attempt_cleanup() is None
        assert cache.goals == []
        assert list(cache.sizes) == ["a"]


async def test_at_normal_free_heap_pages_are_returned_whenever_that_is_asked_for() -> None:
    memory = manager(FakeMemory())
    memory.set_baseline()
    trims: list[str] = []
    memory.add_trimmer(lambda: trims.append(threading.current_thread().name))
    for asked in (1, 2):
        assert await memory.attempt_cleanup() is None
        assert len(trims) == asked
    await memory.close()


async def test_at_warning_the_excess_is_asked_for_and_verified() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    cache = Cache(machine)
    memory.set_cleaner(cache.clean)
    for name in "abcdef":
        cache.put(name, 20 * MB)  # 180 MB
    recovery = await memory.attempt_cleanup(cause="test")
    assert cache.goals == [CleanupGoal(excess_bytes=12 * MB + 1, everything=False)]  # to where the level ends
    assert recovery is not None
    assert recovery.victims == ("a",)
    assert (recovery.before_bytes, recovery.after_bytes) == (180 * MB, 160 * MB)
    assert (recovery.expected_bytes, recovery.freed_bytes, recovery.shortfall_bytes) == (20 * MB, 20 * MB, 0)
    assert memory.level is Level.NORMAL
    kinds = [(event.kind, event.cause) for event in memory.history.snapshot()]
    assert kinds == [("level", "test"), ("level", "test"), ("recovery", "test")]
    await memory.close()


async def test_at_critical_everything_is_asked_for() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    cache = Cache(machine)
    memory.set_cleaner(cache.clean)
    for name in "abcdefg":
        cache.put(name, 20 * MB)  # 200 MB
    recovery = await memory.attempt_cleanup()
    assert cache.goals[0].everything
    assert recovery is not None
    assert recovery.victims == tuple("abcdefg")
    assert memory.memory_info().usage_bytes == 60 * MB
    assert await memory.attempt_cleanup(everything=True) is None
    await memory.close()


async def test_a_leak_is_trimmed_for_and_then_booked() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    trims: list[str] = []
    memory.add_trimmer(lambda: trims.append(threading.current_thread().name))
    cache = Cache(machine, leaks=8 * MB)
    memory.set_cleaner(cache.clean)
    cache.put("a", 20 * MB)
    recovery = await memory.attempt_cleanup(everything=True)
    assert recovery is not None
    assert recovery.trimmed
    assert (recovery.expected_bytes, recovery.freed_bytes, recovery.shortfall_bytes) == (20 * MB, 12 * MB, 8 * MB)
    assert memory.shortfall_bytes_total == 8 * MB
    assert [event.kind for event in memory.history.snapshot()] == ["recovery", "shortfall"]
    assert memory.history.snapshot()[-1].details["shortfall_bytes"] == 8 * MB
    assert len(trims) == 2  # before anybody leaves, and after too little came back
    assert all(name.startswith("modelhost-memory") for name in trims)
    await memory.close()


async def test_a_trim_that_helps_is_not_a_shortfall() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    cache = Cache(machine, leaks=8 * MB)
    memory.set_cleaner(cache.clean)
    cache.put("a", 20 * MB)
    memory.add_trimmer(lambda: machine.add(-8 * MB) if not cache.sizes else None)
    recovery = await memory.attempt_cleanup(everything=True)
    assert recovery is not None
    assert (recovery.trimmed, recovery.freed_bytes, recovery.shortfall_bytes) == (True, 20 * MB, 0)
    assert memory.shortfall_bytes_total == 0
    await memory.close()


async def test_what_the_heap_keeps_free_is_told_and_is_no_shortfall() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    cache = Cache(machine, leaks=15 * MB)
    memory.set_cleaner(cache.clean)
    cache.put("a", 20 * MB)
    memory.read_heap_free = lambda: (3 if machine.committed_bytes() == 80 * MB else 16) * MB
    recovery = await memory.attempt_cleanup(everything=True)
    assert recovery is not None
    assert recovery.trimmed  # as too little came back
    assert (recovery.freed_bytes, recovery.kept_free_bytes, recovery.shortfall_bytes) == (5 * MB, 13 * MB, 0)
    assert memory.shortfall_bytes_total == 0
    assert [event.kind for event in memory.history.snapshot()] == ["recovery"]
    assert memory.history.snapshot()[-1].details["kept_free_bytes"] == 13 * MB
    info = memory.memory_info()
    assert (info.heap_free_bytes, info.reusable_bytes) == (16 * MB, 12 * MB)
    await memory.close()


async def test_what_was_free_before_does_not_hide_a_leak() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.set_baseline()
    cache = Cache(machine, leaks=15 * MB)
    memory.set_cleaner(cache.clean)
    cache.put("a", 20 * MB)
    memory.read_heap_free = lambda: 50 * MB
    recovery = await memory.attempt_cleanup(everything=True)
    assert recovery is not None
    assert (recovery.kept_free_bytes, recovery.shortfall_bytes) == (0, 15 * MB)
    assert memory.shortfall_bytes_total == 15 * MB
    await memory.close()


@pytest.mark.parametrize(
    ("free_mb", "goals"),
    [
        (0, [CleanupGoal(12 * MB + 1, everything=False)]),
        (4, [CleanupGoal(9 * MB + 1, everything=False)]),  # of which three quarters count
        (12, []),
        (40, []),
    ],
)
async def test_at_warning_nobody_leaves_for_what_is_free_in_the_heap(free_mb: int, goals: list[CleanupGoal]) -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.read_heap_free = lambda: free_mb * MB
    memory.set_baseline()
    cache = Cache(machine)
    memory.set_cleaner(cache.clean)
    for name in "abcdef":
        cache.put(name, 20 * MB)  # 180 MB, 8 MB above warning
    assert (await memory.attempt_cleanup() is None) == (not goals)
    assert cache.goals == goals
    assert memory.memory_info().is_warning == (not goals)  # usage is usage
    await memory.close()


async def test_at_critical_everything_leaves_whatever_is_free_in_the_heap() -> None:
    machine = FakeMemory()
    memory = manager(machine)
    memory.read_heap_free = lambda: 100 * MB
    memory.set_baseline()
    cache = Cache(machine)
    memory.set_cleaner(cache.clean)
    for name in "abcdefg":
        cache.put(name, 20 * MB)  # 200 MB
    recovery = await memory.attempt_cleanup()
    assert recovery is not None
    assert recovery.victims == tuple("abcdefg")
    await memory.close()


async def test_done_is_told_on_the_loop_even_when_the_act_fails_or_its_caller_is_cancelled() -> None:
    machine = FakeMemory()
    threads: list[threading.Thread] = []

    def fail() -> None:
        raise ZeroDivisionError("no")

    async with manager(machine) as memory:
        plan = CleanupPlan(("a",), MB, fail, done=lambda: threads.append(threading.current_thread()))
        with pytest.raises(ZeroDivisionError):
            await memory.recover(plan, cause="test")
        assert threads == [threading.current_thread()]

        gate, started = threading.Event(), threading.Event()

        def slow() -> None:
            started.set()
            assert gate.wait(30)

        plan = CleanupPlan(("a",), 0, slow, done=lambda: threads.append(threading.current_thread()))
        task = asyncio.ensure_future(memory.recover(plan, cause="test"))
        await until(started.is_set)
        task.cancel()
        await asyncio.wait([task])
        assert len(threads) == 1
        gate.set()
        await until(lambda: len(threads) == 2)


async def test_the_sampler_cleans_up_by_itself() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        cache = Cache(machine)
        memory.set_cleaner(cache.clean)
        for name in "abcdef":
            cache.put(name, 20 * MB)
        await until(lambda: memory.history.counts.get("recovery"))
        await until(lambda: memory.level is Level.NORMAL)
        assert list(cache.sizes) == list("bcdef")
        assert memory.history.snapshot()[1].cause == "level warning"


async def test_closing_twice_is_harmless_and_waits_for_the_change_in_progress() -> None:
    machine, gate, started = FakeMemory(), threading.Event(), threading.Event()
    memory = manager(machine)
    memory.set_baseline()
    memory.start()

    def work() -> None:
        started.set()
        assert gate.wait(30)
        machine.add(MB)

    task = asyncio.ensure_future(memory.change(work))
    await until(started.is_set)
    closing = asyncio.ensure_future(memory.close())
    await asyncio.sleep(0)
    assert not closing.done()
    gate.set()
    await closing
    await task
    await memory.close()
    assert machine.committed_bytes() == 61 * MB


# --- the example for people who load models their own way ------------------------------------------------


async def test_somebody_who_loads_models_in_their_own_way() -> None:
    machine = FakeMemory()
    async with manager(machine) as memory:
        cache = Cache(machine)
        memory.set_cleaner(cache.clean)
        refused = 0
        for number in range(12):
            info = memory.memory_info()
            if info.is_warning or info.available_bytes < 30 * MB:
                await memory.attempt_cleanup(everything=info.available_bytes < 30 * MB)
            try:
                with memory.reserve(20 * MB, owner=f"m{number}") as claim:
                    _, measured = await memory.change(lambda number=number: cache.put(f"m{number}", 20 * MB))
                    claim.settle(measured.delta_bytes)
            except InsufficientMemory:
                refused += 1
            assert memory.memory_info().usage_bytes < 192 * MB
        assert refused == 0
        assert memory.ledger.totals.loading_bytes == 0

        machine.other_bytes = 150 * MB
        with pytest.raises(InsufficientMemory):
            memory.reserve(20 * MB)
        assert memory.memory_info().is_critical
