"""Jobs on the inference threads end exactly once, whatever becomes of who asked for them."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest
from pool_stage import soon, turns, until

from modelhost.errors import DeadlineExceeded, HostClosed, InvalidRequest, Overloaded
from modelhost.pool import Runner
from modelhost.runtime.base import CancelToken

pytestmark = pytest.mark.anyio


class Job:
    """Work that waits for a gate, and counts its ends."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        self.cancel = CancelToken()
        self.error = error
        self.ends = 0

    def work(self) -> str:
        self.started.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return "done"

    def ended(self) -> None:
        self.ends += 1

    async def run(self, runner: Runner, *, deadline: float | None = None) -> str:
        future = runner.submit(self.work, cancel=self.cancel, on_end=self.ended)
        return await runner.result(future, cancel=self.cancel, deadline=deadline)


async def test_a_job_answers_and_ends_once() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job()
    job.gate.set()
    assert await soon(job.run(runner)) == "done"
    assert (job.ends, runner.in_flight, runner.started) == (1, 0, 1)
    runner.close()


async def test_a_jobs_error_is_the_requesters() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job(error=ZeroDivisionError("zero"))
    job.gate.set()
    with pytest.raises(ZeroDivisionError, match="zero"):
        await soon(job.run(runner))
    assert (job.ends, runner.in_flight) == (1, 0)
    runner.close()


async def test_an_error_in_place_of_another_holds_nothing_of_its_work() -> None:
    class Body:
        pass

    def work(body: Body) -> None:
        try:
            raise ValueError("not gzip")
        except ValueError:
            raise InvalidRequest("the body is not valid gzip") from None

    runner, body = Runner(threads=1, max_waiting=1), Body()
    held = weakref.ref(body)
    cancel = CancelToken()
    gc.disable()
    try:
        future = runner.submit(partial(work, body), cancel=cancel, on_end=lambda: None)
        with pytest.raises(InvalidRequest, match="not valid gzip"):
            await soon(runner.result(future, cancel=cancel))
        del body, future
        assert held() is None
    finally:
        gc.enable()
    runner.close()


async def test_a_full_queue_refuses_at_once_and_does_not_end_what_it_did_not_take() -> None:
    runner = Runner(threads=1, max_waiting=2)
    jobs = [Job() for _ in range(4)]
    tasks = [asyncio.ensure_future(job.run(runner)) for job in jobs[:3]]
    await until(jobs[0].started.is_set)
    with pytest.raises(Overloaded) as refusal:
        await jobs[3].run(runner)
    assert refusal.value.details() == {"queue": "the queue for inference threads", "waiting": 2, "limit": 2}
    assert jobs[3].ends == 0
    for job in jobs:
        job.gate.set()
    assert await soon(asyncio.gather(*tasks)) == ["done"] * 3
    assert [job.ends for job in jobs] == [1, 1, 1, 0]
    runner.close()


async def test_a_deadline_answers_at_once_and_the_job_ends_when_its_work_returns() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job()
    with pytest.raises(DeadlineExceeded):
        await job.run(runner, deadline=asyncio.get_running_loop().time() + 0.001)
    assert job.cancel.is_cancelled
    assert (job.ends, runner.in_flight) == (0, 1)
    assert runner.quiet_marker() is None
    job.gate.set()
    await until(lambda: job.ends)
    await turns(3)
    assert (job.ends, runner.in_flight, runner.quiet_marker()) == (1, 0, 1)
    runner.close()


async def test_a_deadline_that_has_passed_before_ends_the_wait_at_once() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job()
    with pytest.raises(DeadlineExceeded):
        await soon(job.run(runner, deadline=0.0))
    job.gate.set()
    await until(lambda: job.ends)
    runner.close()


async def test_an_answer_before_the_deadline_stands() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job()
    job.gate.set()
    assert await job.run(runner, deadline=asyncio.get_running_loop().time() + 30) == "done"
    assert not job.cancel.is_cancelled
    runner.close()


async def test_brief_work_does_not_wait_for_long_work_on_all_threads() -> None:
    others = set(threading.enumerate())  # another test's runner may still be about to end
    runner, long, brief = Runner(threads=1, max_waiting=4), Job(), Job()
    lane = runner.lane("brief")
    lane.job_ns = 1_000_000  # as its last jobs have shown
    brief.gate.set()
    first = asyncio.ensure_future(long.run(runner))
    await until(long.started.is_set)
    future = runner.submit(brief.work, cancel=brief.cancel, on_end=brief.ended, lane=lane)
    assert await soon(future) == "done"
    assert (brief.ends, long.ends, lane.in_flight, runner.in_flight) == (1, 0, 0, 1)
    long.gate.set()
    assert await soon(first) == "done"
    runner.close()
    assert not [thread for thread in set(threading.enumerate()) - others if thread.name.startswith("modelhost-run")]


@pytest.mark.parametrize("error", [None, ZeroDivisionError("too late to matter")])
async def test_a_cancelled_requester_triggers_the_token_and_the_job_ends_when_its_work_returns(
    error: Exception | None,
) -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job(error=error)
    task = asyncio.ensure_future(job.run(runner))
    await until(job.started.is_set)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert job.cancel.is_cancelled
    assert (job.ends, runner.in_flight) == (0, 1)
    job.gate.set()
    await until(lambda: job.ends)
    assert (job.ends, runner.in_flight) == (1, 0)
    runner.close()


async def test_a_job_that_was_abandoned_in_the_queue_ends_without_running() -> None:
    runner, first, second = Runner(threads=1, max_waiting=1), Job(), Job()
    running = asyncio.ensure_future(first.run(runner))
    await until(first.started.is_set)
    waiting = asyncio.ensure_future(second.run(runner))
    await until(lambda: runner.in_flight == 2)
    waiting.cancel()
    await asyncio.wait([waiting])
    first.gate.set()
    await soon(running)
    await until(lambda: second.ends)
    assert (second.ends, second.started.is_set(), runner.in_flight) == (1, False, 0)
    runner.close()


async def test_a_requester_cancelled_when_the_answer_is_there_loses_only_the_answer() -> None:
    runner, job = Runner(threads=1, max_waiting=1), Job()
    task = asyncio.ensure_future(job.run(runner))
    await until(job.started.is_set)
    job.gate.set()
    await until(lambda: job.ends)  # answered, and not yet woken up: this task came first
    task.cancel()
    await asyncio.wait([task])
    assert (job.ends, runner.in_flight) == (1, 0)
    runner.close()


async def test_the_quiet_marker_changes_with_every_job() -> None:
    runner = Runner(threads=2, max_waiting=1)
    seen = {runner.quiet_marker()}
    for number in range(3):
        job = Job()
        job.gate.set()
        await soon(job.run(runner))
        seen.add(runner.quiet_marker())
        assert len(seen) == number + 2
    assert None not in seen
    runner.close()


async def test_a_token_cancelled_before_it_is_bound_stops_the_work_at_once() -> None:
    calls: list[str] = []
    token = CancelToken()
    token.cancel()
    token.bind(lambda: calls.append("stop"))
    assert calls == ["stop"]
    other = CancelToken()
    other.bind(lambda: calls.append("other"))
    assert calls == ["stop"]
    other.cancel()
    assert calls == ["stop", "other"]


async def test_a_runner_that_refuses_takes_nothing_more_and_finishes_what_it_took() -> None:
    runner, jobs = Runner(threads=1, max_waiting=4), [Job(), Job()]
    tasks = [asyncio.ensure_future(job.run(runner)) for job in jobs]
    await until(jobs[0].started.is_set)
    runner.refuse()
    for refused in (runner.check_open, runner.admit, lambda: runner.submit(Job().work, cancel=CancelToken())):
        with pytest.raises(HostClosed):
            refused()
    for job in jobs:
        job.gate.set()
    assert await soon(asyncio.gather(*tasks)) == ["done"] * 2
    runner.close()
    assert (runner.in_flight, [job.ends for job in jobs]) == (0, [1, 1])


async def test_what_was_admitted_counts_until_it_has_begun() -> None:
    runner = Runner(threads=1, max_waiting=2)
    for _ in range(3):  # one of them could have the thread
        runner.admit()
    with pytest.raises(Overloaded):
        runner.admit()
    runner.note_begun(2)
    for _ in range(2):
        runner.admit()
    with pytest.raises(Overloaded) as refusal:
        runner.check_room()
    assert refusal.value.details()["waiting"] == 2
    runner.close()
