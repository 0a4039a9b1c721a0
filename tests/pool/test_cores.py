"""Inference threads keep to a core each while there is long work for all of them, and for no longer."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from pool_stage import until

from modelhost.pool import Runner
from modelhost.pool import cores as module
from modelhost.pool.cores import Cores

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no cores to keep to"),
]

LONG_NS = 20_000_000


class System:
    """Two cores, and what threads were told of them."""

    def __init__(self) -> None:
        self.cores = {4, 7}
        self.told: list[tuple[int, set[int]]] = []
        self.error: OSError | None = None

    def get(self, thread: int) -> set[int]:
        return set(self.cores)

    def set(self, thread: int, cores: set[int]) -> None:
        if self.error is not None:
            raise self.error
        self.told.append((thread, set(cores)))


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    found = System()
    monkeypatch.setattr(module.os, "sched_getaffinity", found.get)
    monkeypatch.setattr(module.os, "sched_setaffinity", found.set)
    return found


def joined(cores: Cores, threads: int) -> list[int]:
    """Has so many threads join, which end; returns their numbers."""
    found = []
    for _ in range(threads):
        thread = threading.Thread(target=cores.join)
        thread.start()
        thread.join()
        found.append(thread.native_id)
    return [one for one in found if one is not None]


async def test_threads_keep_to_a_core_each_until_no_more_long_work_comes_for_all(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    cores = Cores(2)
    one, other = joined(cores, 2)
    cores.note_crowd(LONG_NS)
    assert system.told == [(one, {4}), (other, {7})]
    assert cores.are_kept
    cores.note_crowd(LONG_NS)  # which is no news
    await until(lambda: not cores.are_kept)
    assert system.told[2:] == [(one, {4, 7}), (other, {4, 7})]


async def test_short_work_is_left_to_the_system(system: System) -> None:
    cores = Cores(2)
    joined(cores, 2)
    cores.note_crowd(1_000_000)
    assert not cores.are_kept
    assert system.told == []


@pytest.mark.parametrize("threads", [1, 3, 8], ids=["one", "not one a core", "many"])
async def test_other_numbers_of_threads_are_left_to_the_system(system: System, threads: int) -> None:
    cores = Cores(threads)
    joined(cores, threads)
    cores.note_crowd(LONG_NS)
    assert not cores.are_kept
    assert system.told == []


async def test_a_system_that_refuses_is_asked_once(system: System) -> None:
    cores = Cores(2)
    joined(cores, 2)
    system.error = PermissionError("a sandbox")
    cores.note_crowd(LONG_NS)
    system.error = None
    cores.note_crowd(LONG_NS)
    assert not cores.are_kept
    assert system.told == []


async def test_the_event_loop_goes_where_a_long_job_has_ended_and_may_leave_at_once(system: System) -> None:
    cores, loop = Cores(2), threading.get_native_id()
    others = joined(cores, 1)
    end, told = threading.Event(), threading.Event()

    def thread() -> None:
        cores.join()
        told.set()
        assert end.wait(30)
        cores.call_loop(1_000_000)  # too short to be worth it
        cores.call_loop(LONG_NS)

    worker = threading.Thread(target=thread)
    worker.start()
    assert told.wait(30)
    cores.note_crowd(LONG_NS)
    assert system.told == [(others[0], {4}), (worker.native_id, {7})]
    end.set()
    await asyncio.to_thread(worker.join)
    assert system.told[2:] == [(loop, {7}), (loop, {4, 7})]
    cores.end()


class Held:
    """A job that waits for a gate, and notes which cores its thread may use."""

    holds_interpreter = False

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.cores: set[int] = set()
        self.is_begun = False

    def work(self) -> None:
        self.is_begun = True
        assert self.gate.wait(30)
        self.cores = os.sched_getaffinity(0)

    def ended(self) -> None:
        """Nobody waits for it."""


@pytest.fixture
def two_cores() -> Iterator[set[int]]:
    """Two real cores, which are this thread's and those that it starts."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("there is one core")
    cores = set(sorted(before)[:2])
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


async def test_the_threads_of_a_runner_are_on_a_core_each_and_free_afterwards(
    two_cores: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 60.0)
    runner = Runner(threads=2, max_waiting=8)
    lane = runner.lane("long")
    lane.job_ns = LONG_NS
    warm = [Held(), Held()]
    for job in warm:
        runner.start(job, lane)
    await until(lambda: all(job.is_begun for job in warm))
    jobs = [Held(), Held()]
    lane.job_ns = LONG_NS
    for job in jobs:
        runner.start(job, lane)  # by now both threads have said that they are there
    for job in (*warm, *jobs):
        job.gate.set()
    await until(lambda: not runner.in_flight)
    assert [len(job.cores) for job in jobs] == [1, 1]
    assert os.sched_getaffinity(0) == two_cores  # of the event loop
    last = Held()
    last.gate.set()
    runner._cores.end()
    lane.job_ns = 0
    runner.start(last, lane)
    await until(lambda: not runner.in_flight)
    assert last.cores == two_cores
    await asyncio.to_thread(runner.close)
