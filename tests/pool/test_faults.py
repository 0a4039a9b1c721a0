"""What goes wrong around the pool: errors of every kind from loads and runs, clocks that jump, missing threads."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_stage import FEEDS, MB, Stage, soon, until

from modelhost.errors import ModelBroken, ModelHostError, Overloaded
from modelhost.pool import ModelKey, Runner, arrivals
from modelhost.pool.changes import SETTLE_S
from modelhost.runtime.base import CancelToken, NoDescriptor
from modelhost.runtime.fake import FakeScript
from modelhost.threads import one_thread

pytestmark = pytest.mark.anyio

DAY_S = 86_400.0

#: What bindings in C++ raise, and what Python does where something runs out.
ERRORS = [
    RuntimeError("an error of the runtime"),
    MemoryError(),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    ValueError("no such name"),
    TypeError("incompatible arguments"),
    KeyError("x"),
    IndexError(),
    SystemError("error return without exception set"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    RecursionError(),
    StopIteration(3),
    Exception(),
]
NO_DESCRIPTOR = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "model.onnx")


def named(error: BaseException) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", ERRORS, ids=named)
async def test_an_error_of_any_kind_from_a_load_breaks_that_model_alone_and_for_a_while(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, names=["a", "b"]) as stage:

        def fail(*_: Any) -> Any:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(stage.runtime, "load", fail)
            with pytest.raises(ModelHostError) as raised:
                await soon(stage.pool.acquire("a"))
        assert isinstance(raised.value, ModelBroken)
        assert raised.value.code == "model_broken"
        assert stage.memory.ledger.open_count == 0
        await stage.use("b")
        stage.clock.now += 3600
        await stage.use("a")
        assert set(stage.loaded) == {"a", "b"}
        stage.check()


@pytest.mark.parametrize("error", ERRORS, ids=named)
async def test_an_error_of_any_kind_from_a_run_ends_that_run_and_nothing_else(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, {"a": FakeScript()}) as stage, stage.pool.lease("a") as lease:
        (slot,) = stage.pool._table

        def fail(*_: Any) -> Any:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(slot.model, "run", fail)
            # Which no future takes, and no coroutine raises.
            with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
                await soon(lease.run(FEEDS))
        assert stage.runner.in_flight == 0
        assert stage.pool.activations.claimed_bytes == 0
        assert (await lease.run(FEEDS)).keys()
        stage.check()


@pytest.mark.parametrize("error", [NO_DESCRIPTOR, NoDescriptor("Load model failed:system error number 24")], ids=named)
@pytest.mark.parametrize("step", ["inspect", "prepare", "load"])
async def test_without_a_descriptor_left_requests_are_told_to_come_again_and_nothing_is_remembered(
    tmp_path: Path, step: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, {"a": FakeScript(child_bytes=30 * MB), "b": FakeScript()}) as stage:

        def fail(*_: Any, **__: Any) -> Any:
            raise error

        await stage.use("b")
        with monkeypatch.context() as patched:
            patched.setattr(stage.runtime, step, fail)
            waiting = [stage.begin(stage.pool.acquire("a")) for _ in range(3)]
            refusals = await soon(asyncio.gather(*waiting, return_exceptions=True))
            await stage.use("b")
        assert {(type(refusal), refusal.queue) for refusal in refusals} == {(Overloaded, "file descriptors")}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert str(refusals[0]) == f"no file descriptor is left to open a:1: all {limit} are in use (ulimit -n)"
        assert refusals[0].limit == limit
        assert stage.memory.conditions.holds("descriptors_used_up")
        stage.memory.conditions.look_again()
        assert not stage.memory.conditions.holds("descriptors_used_up")
        assert stage.pool.is_ready("a")
        await stage.use("a")
        await stage.settled()
        stage.check_at_rest()


async def test_new_files_for_which_no_descriptor_is_left_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "_AGAIN_S", 0.0)
    async with Stage(tmp_path, names="a") as stage:
        await stage.use("a")
        load, left = stage.runtime.load, [3]

        def load_at_last(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0]:
                raise NO_DESCRIPTOR
            return load(*arguments)

        monkeypatch.setattr(stage.runtime, "load", load_at_last)
        stage.script("a").fingerprint = (2,)
        assert await change_is_seen(stage)
        await until(lambda: stage.pool.snapshot().counters.swaps == 1)
        assert left == [0]
        assert stage.pool.snapshot().counters.swap_failures == 0
        await stage.settled()
        stage.check_at_rest()


async def change_is_seen(stage: Stage) -> bool:
    """Has the pool look at changed files twice, so that they have settled; returns whether it loads them."""
    changes = stage.pool._scheduler.changes
    for _ in range(2):
        await stage.pool.catalog.scan()
        await until(lambda: not changes._is_comparing)
        stage.clock.now += SETTLE_S
    return any(slot.predecessor is not None for slot in stage.pool._table)


async def test_a_scan_without_a_descriptor_changes_nothing_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, names="ab") as stage:
        scandir = os.scandir

        def scan(path: str) -> Any:
            if path.endswith("b"):
                raise NO_DESCRIPTOR
            return scandir(path)

        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", scan)
            with pytest.raises(Overloaded, match="to look at the models' directory"):
                await stage.pool.catalog.scan()
        assert stage.pool.catalog.problems == {}
        await stage.use("b")


async def test_who_ends_a_lease_is_not_to_blame_for_what_is_wrong_with_a_model_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, names=["a", "bad", "good"]) as stage:
        held = await stage.pool.acquire("a")
        scheduler = stage.pool._scheduler
        plan = scheduler._arrivals.footprints.plan

        def fail(key: ModelKey, *more: Any) -> Any:
            if key.name == "bad":
                raise KeyError(key)
            return plan(key, *more)

        with monkeypatch.context() as patched:
            patched.setattr(scheduler, "_is_acting", True)  # a load is under way
            waiting = [stage.begin(stage.use(name)) for name in ("bad", "good")]
            await until(lambda: len([slot for slot in stage.pool._table.queue if slot.inspection is not None]) == 2)
        with monkeypatch.context() as patched:
            patched.setattr(scheduler._arrivals.footprints, "plan", fail)
            held.end()
            with pytest.raises(ModelBroken, match="KeyError"):
                await soon(waiting[0])
            await soon(waiting[1])
        await stage.settled()
        stage.check_at_rest()


class _Released(CancelToken):
    """One whose run ends on its thread as soon as somebody has looked at what stops it."""

    @property
    def _action(self) -> Any:
        action, self._found = self._found, None
        return action

    @_action.setter
    def _action(self, action: Any) -> None:
        self._found = action


def test_a_run_that_ends_while_it_is_being_cancelled_is_no_error() -> None:
    token, stopped = _Released(), []
    token.bind(lambda: stopped.append(True))
    token.cancel()
    assert stopped == [True]
    token.cancel()
    assert stopped == [True]


# --- clocks ------------------------------------------------------------------------------------------


async def test_a_wall_clock_that_jumps_by_days_changes_no_wait_and_no_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.cycle((0.0, -400 * DAY_S, 5 * DAY_S, 10_000 * DAY_S, -DAY_S))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    names = [f"m{number}" for number in range(9)]
    async with Stage(tmp_path, names=names, sampling=True, idle_ttl=60.0) as stage:
        for _ in range(2):
            await stage.use(*names)
        assert "m8" in stage.loaded
        assert "m0" not in stage.loaded, "the one used longest ago goes first, whatever the clock says"
        assert stage.pool.snapshot().counters.expiries == 0
        assert stage.pool.snapshot().counters.refusals == {}
        stage.check()


# --- threads -----------------------------------------------------------------------------------------


def refuse(*_: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_without_another_thread_those_that_are_there_do_all_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Stage(tmp_path, names=["a", "b"], threads=4) as stage:
        stage.runner.add_thread()
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            await stage.use("a", "b", "a")  # loads, too
            done = [stage.runner.submit(lambda: 1, cancel=CancelToken()) for _ in range(4)]
            assert [await one for one in done] == [1] * 4
        stage.check()


async def test_without_any_thread_a_run_is_refused_and_the_runner_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = Runner(threads=2, max_waiting=4)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            runner.submit(lambda: 1, cancel=CancelToken())
    assert runner.in_flight == 0
    assert await runner.submit(lambda: 1, cancel=CancelToken()) == 1
    runner.close()


def test_an_executor_has_its_thread_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = one_thread("one")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert executor.submit(lambda: np.pi).result() == np.pi
        with pytest.raises(RuntimeError, match="can't start"):
            one_thread("another")
    executor.shutdown()
