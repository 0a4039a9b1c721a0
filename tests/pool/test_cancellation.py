"""Requests that are cancelled, at each point where they can be, leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest
from pool_stage import FEEDS, MB, Stage, put_models, soon, turns, until

from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio

Request = Callable[[Stage], Coroutine[Any, Any, Any]]


class Interrupted:
    """Awaits `work` and cancels the task at its k-th suspension; `how` says at which moment of it.

    `asleep`: as it goes to sleep. `woken`: what it waits for is done, and the task has not run yet.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, how: str) -> None:
        self.work, self.at, self.how = work, at, how
        self.suspensions = 0

    def __await__(self) -> Generator[Any, None, Any]:
        task = asyncio.current_task()
        assert task is not None
        thrown: BaseException | None = None
        while True:
            try:
                future = self.work.send(None) if thrown is None else self.work.throw(thrown)
            except StopIteration as end:
                return end.value
            if self.suspensions == self.at:
                if self.how == "woken" and future is not None:
                    future.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            self.suspensions += 1
            thrown = None
            try:
                yield future
            except BaseException as error:
                thrown = error


async def use_a(stage: Stage) -> None:
    await stage.use("a")


async def use_a_by_late_scan(stage: Stage) -> None:
    stage.clock.now += 10
    put_models(stage.directory, ["late"])
    await stage.use("late")


async def load_a(stage: Stage) -> None:
    await stage.pool.load("a")


async def reload_a(stage: Stage) -> None:
    stage.script("a").fingerprint = (2,)
    await stage.pool.load("a")


async def unload_a(stage: Stage) -> None:
    await stage.pool.unload("a")


async def clean_up(stage: Stage) -> None:
    await stage.memory.attempt_cleanup(everything=True)


async def describe_a(stage: Stage) -> None:
    await stage.pool.describe("a")


async def nothing(stage: Stage) -> None:
    pass


async def a_is_loaded(stage: Stage) -> None:
    await stage.use("a")


async def memory_is_full(stage: Stage) -> None:
    await stage.use(*"bcdef")


async def a_is_being_unloaded(stage: Stage) -> None:
    await stage.use("a")
    stage.begin(stage.pool.unload("a"))
    await asyncio.sleep(0)


async def a_is_draining(stage: Stage) -> None:
    lease = await stage.pool.acquire("a")
    stage.begin(stage.pool.unload("a"))
    await until(lambda: stage.states()["a"] == "draining")
    asyncio.get_running_loop().call_later(0.002, lease.end)


async def another_request_loads_a(stage: Stage) -> None:
    stage.begin(stage.use("a"))
    await asyncio.sleep(0)


CASES: list[tuple[Request, Request]] = [
    (nothing, use_a),
    (nothing, use_a_by_late_scan),
    (nothing, load_a),
    (nothing, describe_a),
    (a_is_loaded, use_a),
    (a_is_loaded, reload_a),
    (a_is_loaded, unload_a),
    (a_is_loaded, clean_up),
    (memory_is_full, use_a),
    (a_is_being_unloaded, use_a),
    (a_is_being_unloaded, unload_a),
    (a_is_draining, use_a),
    (a_is_draining, unload_a),
    (another_request_loads_a, use_a),
    (another_request_loads_a, unload_a),
]


async def cancelled_leaves_nothing(stage: Stage, request: asyncio.Task[Any]) -> bool:
    """Waits for a request that may have been cancelled, checks the pool, and returns whether it was."""
    await asyncio.wait([request])
    if not request.cancelled():
        assert request.exception() is None
    stage.check()
    await stage.settled()
    # Who else was there may be between its run's end and its lease's; a lease that leaks never ends.
    await until(lambda: not any(model.leases for model in stage.pool.snapshot().models))
    stage.check_at_rest()
    await soon(stage.use("a"))  # the pool still serves
    await stage.settled()
    stage.check_at_rest()
    return request.cancelled()


@pytest.mark.parametrize("how", ["asleep", "woken"])
@pytest.mark.parametrize(("before", "request_"), CASES, ids=lambda case: case.__name__)
async def test_a_request_cancelled_at_its_kth_suspension(
    tmp_path: Path, before: Request, request_: Request, how: str
) -> None:
    cancelled = 0
    for k in range(20):
        async with Stage(tmp_path, names="abcdef") as stage:
            await before(stage)

            async def work(stage: Stage = stage, k: int = k) -> Interrupted:
                interrupted = Interrupted(request_(stage), k, how)
                await interrupted
                return interrupted

            request = stage.begin(work())
            cancelled += await cancelled_leaves_nothing(stage, request)
            if not request.cancelled() and request.result().suspensions <= k:  # all have been seen
                assert cancelled > 0
                return
    pytest.fail("the request has more suspensions than were tried")


@pytest.mark.parametrize(("before", "request_"), CASES, ids=lambda case: case.__name__)
async def test_a_request_cancelled_after_k_turns_of_the_loop(
    tmp_path: Path, before: Request, request_: Request
) -> None:
    for k in range(24):
        async with Stage(tmp_path, names="abcdef") as stage:
            await before(stage)
            request = stage.begin(request_(stage))
            await turns(k)
            request.cancel()
            await cancelled_leaves_nothing(stage, request)


async def test_requests_cancelled_while_they_wait_for_memory(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="abcdefg") as stage:
        leases = [await stage.pool.acquire(name) for name in "bcdefg"]
        for k in range(24):
            requests = [stage.begin(stage.use("a")) for _ in range(3)]
            await turns(k)
            for request in requests:
                request.cancel()
            await asyncio.wait(requests)
            stage.check()
            assert stage.pool.snapshot().waiting == 0
            assert "a" not in stage.states()
        for lease in leases:
            lease.end()
        await stage.use("a")
        await stage.settled()
        stage.check_at_rest()


async def test_a_request_cancelled_in_the_moment_its_lease_is_granted_gives_it_back(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(load_may_end=gate)}) as stage:
        requests = [stage.begin(stage.pool.acquire("a")) for _ in range(3)]
        await until(stage.script("a").load_started.is_set)
        gate.set()
        await until(lambda: stage.info("a").leases == 3)  # granted, and nobody has woken up: this task came first
        held = [request for request in requests if not request.done()]
        for request in held:
            request.cancel()
        await asyncio.wait(requests)
        for request in requests:
            if not request.cancelled():
                request.result().end()
        stage.check_at_rest()


async def test_a_timeout_in_the_moment_the_lease_is_granted_gives_it_back(tmp_path: Path) -> None:
    for delay_ms in range(10):
        async with Stage(tmp_path, names="ab") as stage:
            deadline = asyncio.get_running_loop().time() + delay_ms / 2000
            results = await asyncio.gather(
                *(stage.pool.acquire(name, deadline=deadline) for name in "aabb"), return_exceptions=True
            )
            for result in results:
                if not isinstance(result, BaseException):
                    result.end()
                else:
                    assert type(result).__name__ == "DeadlineExceeded"
            await stage.settled()
            stage.check_at_rest()


async def test_a_run_whose_requester_has_gone_keeps_the_model_until_the_thread_returns(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"slow": FakeScript(run_may_end=gate, is_deaf=True)} | {name: FakeScript() for name in "abcdefgh"}
    async with Stage(tmp_path, scripts) as stage:
        request = stage.begin(stage.use("slow"))
        await until(stage.script("slow").run_started.is_set)
        request.cancel()
        await asyncio.wait([request])
        assert stage.info("slow").leases == 1
        await stage.use(*"abcdefgh")
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.script("slow").closes == 0
        unloading = stage.begin(stage.pool.unload("slow"))
        await turns(20)
        assert stage.states()["slow"] == "draining"
        gate.set()
        await soon(unloading)
        assert stage.script("slow").closes == 1
        await stage.settled()
        stage.check_at_rest()


async def test_a_run_that_waits_for_a_thread_when_its_requester_leaves_never_starts(tmp_path: Path) -> None:
    gate = threading.Event()
    scripts = {"slow": FakeScript(run_may_end=gate), "a": FakeScript()}
    async with Stage(tmp_path, scripts, threads=1) as stage:
        await stage.pool.load("a")
        slow = stage.begin(stage.use("slow"))
        await until(stage.script("slow").run_started.is_set)
        queued = stage.begin(stage.use("a"))
        await until(lambda: stage.pool.snapshot().in_flight == 2)
        queued.cancel()
        await asyncio.wait([queued])
        await turns(2)
        assert stage.info("a").leases == 0  # its place in the queue has gone with it
        gate.set()
        await soon(slow)
        await stage.settled()
        assert stage.script("a").runs == 0
        stage.check_at_rest()


async def test_a_lease_that_was_ended_gives_nothing_any_more_and_ends_once(tmp_path: Path) -> None:
    async with Stage(tmp_path, names="a") as stage:
        one, two = await stage.pool.acquire("a"), await stage.pool.acquire("a")
        one.end()
        one.end()
        assert stage.info("a").leases == 1
        with pytest.raises(Exception, match="has ended"):
            await one.run(FEEDS)
        two.end()
        stage.check_at_rest()
        assert stage.memory.ledger.totals.resident_bytes == 20 * MB


async def test_a_lease_that_ends_during_its_run_keeps_the_model_until_the_run_returns(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": FakeScript(run_may_end=gate)}) as stage:
        lease = await stage.pool.acquire("a")
        run = stage.begin(lease.run(FEEDS))
        await until(stage.script("a").run_started.is_set)
        lease.end()
        assert stage.info("a").leases == 1
        await stage.memory.attempt_cleanup(everything=True)
        assert stage.loaded == ["a"]
        gate.set()
        assert (await soon(run))["y"].tolist() == [2.0, 2.0]
        stage.check_at_rest()
