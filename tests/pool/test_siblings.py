"""A host that is two processes: two pools, here on one event loop, with one machine's memory and one board."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_stage import MB, Stage, soon, turns, until

from modelhost.errors import HeldElsewhere, InsufficientMemory, ModelHostError, NeverFits
from modelhost.memory.board import Board, Figure, Seat
from modelhost.runtime.fake import FakeMemory, FakeScript

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork"),
]

CRITICAL = 192 * MB


@asynccontextmanager
async def two(
    directory: Path, first: dict[str, FakeScript], second: dict[str, FakeScript], **settings: Any
) -> AsyncIterator[tuple[Stage, Stage]]:
    """Two processes of a host of 256 MB; each has its own scripts of the same models, as each loads its own."""
    machine, board = FakeMemory(256 * MB), Board(2)
    seats = [Seat(board, number) for number in range(2)]
    for seat in seats:
        seat.sit()
    settings = {"memory_wait_s": 0.2, "sampling": True, **settings}
    async with (
        Stage(directory, first, machine=machine, siblings=seats[0], **settings) as one,
        Stage(directory, second, machine=machine, siblings=seats[1], **settings) as other,
    ):
        yield one, other


def large(size_mb: int = 80, **more: Any) -> FakeScript:
    return FakeScript(resident_bytes=size_mb * MB, **more)


def waits(stage: Stage) -> bool:
    """Whether it has told the others that it waits for memory."""
    seat = stage.memory.siblings
    assert isinstance(seat, Seat)
    return seat.board.read(seat.number, Figure.WANTED) > 0


async def test_two_that_want_the_last_megabytes_do_not_both_get_them(tmp_path: Path) -> None:
    gate = threading.Event()
    async with two(tmp_path, {"a": large(load_may_end=gate)}, {"b": large()}) as (one, other):
        first = one.begin(one.pool.acquire("a"))
        await until(one.script("a").load_started.is_set)
        second = other.begin(other.pool.acquire("b"))
        await until(lambda: waits(other))
        assert other.script("b").loads == 0
        gate.set()
        lease = await soon(first)
        other.clock.now += 1  # its patience is over: what is in use there does not leave
        with pytest.raises(InsufficientMemory):
            await soon(second)
        lease.end()
        assert one.machine.highest_bytes < CRITICAL


async def test_what_rests_in_one_leaves_for_what_the_other_wants(tmp_path: Path) -> None:
    async with two(tmp_path, {"a": large()}, {"b": large()}) as (one, other):
        await one.use("a")
        (await soon(other.pool.acquire("b"))).end()
        assert one.loaded == []
        assert other.loaded == ["b"]
        assert one.machine.highest_bytes < CRITICAL
        assert other.memory.siblings.wanted_bytes() == 0
        await until(lambda: one.memory.siblings.wanted_bytes() == 0)


async def test_who_gives_up_wants_nothing_of_the_others_any_more(tmp_path: Path) -> None:
    gate = threading.Event()
    async with two(tmp_path, {"a": large(load_may_end=gate), "c": FakeScript()}, {"b": large()}) as (one, other):
        await one.use("c")
        first = one.begin(one.pool.acquire("a"))
        await until(one.script("a").load_started.is_set)
        second = other.begin(other.pool.acquire("b"))
        await until(lambda: waits(other))
        second.cancel()
        await until(lambda: not waits(other))
        gate.set()
        (await soon(first)).end()
        assert "c" in one.loaded


async def test_what_is_pinned_in_one_does_not_leave_for_the_other(tmp_path: Path) -> None:
    async with two(tmp_path, {"a": large()}, {"b": large()}, models={"pinned": ("a",)}) as (one, other):
        await one.use("a")
        with pytest.raises(InsufficientMemory):
            await soon(other.pool.acquire("b"))
        assert one.loaded == ["a"]


async def test_at_warning_the_one_lets_go_whose_model_has_rested_longest(tmp_path: Path) -> None:
    names = {name: FakeScript() for name in "abc"}
    async with two(tmp_path, names, {name: FakeScript() for name in "xyz"}) as (one, other):
        other.clock.now = one.clock.now + 10
        await one.use("a", "b", "c")
        await other.use("x")
        one.machine.other_bytes = 50 * MB  # 190 MB: warning
        await until(lambda: len(one.loaded) < 3)
        await one.settled()
        await other.settled()
        assert other.loaded == ["x"]
        assert one.loaded in (["c"], ["b", "c"])


async def test_never_is_said_where_it_would_not_fit_with_nothing_loaded_anywhere(tmp_path: Path) -> None:
    async with two(tmp_path, {"a": large()}, {"b": large(140)}) as (one, other):
        await one.use("a")
        with pytest.raises(NeverFits):
            await soon(other.pool.acquire("b"))
        assert one.loaded == ["a"]


async def test_a_child_opens_a_model_while_the_other_process_waits_with_its_own(tmp_path: Path) -> None:
    gate = threading.Event()
    first = {"new": FakeScript(child_bytes=20 * MB, prepare_may_end=gate)}
    async with two(tmp_path, first, {"new": FakeScript(child_bytes=20 * MB)}) as (one, other):
        a = one.begin(one.pool.acquire("new"))
        await until(one.script("new").prepare_started.is_set)
        b = other.begin(other.pool.acquire("new"))
        await until(lambda: other.states().get("new") == "queued")
        await turns(50)
        assert other.script("new").ceilings == []
        gate.set()
        (await soon(a)).end()
        (await soon(b)).end()


async def test_runs_of_both_have_one_room(tmp_path: Path) -> None:
    async with two(tmp_path, {"a": FakeScript()}, {"a": FakeScript()}) as (one, other):
        gates = [stage.pool.activations for stage in (one, other)]
        assert [gate.ceiling_bytes for gate in gates] == [60 * MB, 60 * MB]
        first = gates[0].try_claim(3 * MB)
        assert first is not None
        claims = []
        while (claim := gates[1].try_claim(3 * MB)) is not None:
            claims.append(claim)
        assert sum(claim.size_bytes for claim in claims) + first.size_bytes <= 64 * MB
        assert len(claims) == 20
        first.run_ended()
        for claim in claims:
            claim.run_ended()


async def test_what_a_process_had_claimed_is_free_when_it_has_died(tmp_path: Path) -> None:
    async with two(tmp_path, {"a": large()}, {"b": large()}) as (one, other):
        seat = other.memory.siblings
        assert isinstance(seat, Seat)
        seat.publish(Figure.LOADING, 100 * MB)
        request = one.begin(one.pool.acquire("a"))
        await until(lambda: waits(one))
        assert one.script("a").loads == 0
        seat.board.clear(seat.number)
        (await soon(request)).end()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_both_are_asked_usage_stays_below_critical(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    sizes = {f"m{number}": choose.randrange(1, 90) for number in range(8)}

    def scripts() -> dict[str, FakeScript]:
        return {name: large(size) for name, size in sizes.items()}

    async with two(tmp_path, scripts(), scripts(), memory_wait_s=0.01) as stages:

        async def ask(stage: Stage, name: str) -> bool:
            try:
                async with stage.pool.lease(name) as lease:
                    await turns(choose.randrange(20))
                    await lease.run({"x": np.ones(2, np.float32)})
            except ModelHostError:
                return False
            return True

        answered = 0
        for _ in range(25):
            asked = [ask(choose.choice(stages), choose.choice(list(sizes))) for _ in range(choose.randrange(1, 6))]
            tasks = [stages[0].begin(one) for one in asked]
            for task in tasks:
                answered += await soon(task)
            for stage in stages:
                stage.clock.now += choose.random()
                stage.check()
        assert answered > 30
        assert stages[0].machine.highest_bytes < CRITICAL
        for stage in stages:
            await stage.settled()
            assert stage.memory.ledger.totals == stage.memory.ledger.reconcile()


def alike(**more: Any) -> tuple[dict[str, FakeScript], dict[str, FakeScript]]:
    """The same models for both."""
    return {name: large(size) for name, size in more.items()}, {name: large(size) for name, size in more.items()}


async def test_what_fits_only_once_is_asked_for_where_it_is(tmp_path: Path) -> None:
    async with two(tmp_path, *alike(a=80)) as (one, other):
        async with one.pool.lease("a"):
            for _ in range(2):
                with pytest.raises(HeldElsewhere) as sent:
                    await soon(other.pool.acquire("a"))
                assert (sent.value.name, sent.value.version, sent.value.seat) == ("a", "1", 0)
            assert other.script("a").loads == 0
            assert other.pool.snapshot().counters.refusals == {}
            assert not waits(other)
        assert one.loaded == ["a"], "and it does not change places either"


async def test_who_is_to_load_what_another_one_is_loading_is_sent_there_at_once(tmp_path: Path) -> None:
    gate = threading.Event()
    first, second = alike(a=80)
    first["a"] = large(load_may_end=gate)
    async with two(tmp_path, first, second) as (one, other):
        loading = one.begin(one.pool.acquire("a"))
        await until(one.script("a").load_started.is_set)
        with pytest.raises(HeldElsewhere):
            await soon(other.pool.acquire("a"))
        gate.set()
        (await soon(loading)).end()


async def test_what_fits_twice_is_loaded_twice_and_so_is_what_has_left_where_it_was(tmp_path: Path) -> None:
    async with two(tmp_path, *alike(small=10, a=80)) as (one, other):
        await one.use("small", "a")
        await other.use("small")
        with pytest.raises(HeldElsewhere):
            await soon(other.pool.acquire("a"))
        await soon(one.pool.unload("a"))
        await other.use("a")
        assert set(other.loaded) == {"small", "a"}


async def test_nobody_leaves_for_a_second_copy_on_the_heap(tmp_path: Path) -> None:
    async with two(tmp_path, *alike(a=50, b=50)) as (one, other):
        await one.use("a")
        await other.use("b")
        for asked, name in ((one, "b"), (other, "a")):
            with pytest.raises(HeldElsewhere):
                await soon(asked.pool.acquire(name))
        assert (one.loaded, other.loaded) == (["a"], ["b"])


async def test_a_load_that_failed_is_nobodys_to_be_sent_to(tmp_path: Path) -> None:
    first, second = alike(a=80, b=80)
    first["a"] = large(load_error="bad")
    async with two(tmp_path, first, second) as (one, other):
        with pytest.raises(ModelHostError):
            await soon(one.pool.acquire("a"))
        await other.use("a")
        assert other.loaded == ["a"]


async def test_what_another_ones_child_takes_is_waited_for(tmp_path: Path) -> None:
    gate = threading.Event()
    opened = FakeScript(child_bytes=90 * MB, prepare_may_end=gate)
    async with two(tmp_path, {"a": opened}, {"b": large(60)}) as (one, other):
        first = one.begin(one.pool.acquire("a"))
        await until(opened.prepare_started.is_set)
        second = other.begin(other.pool.acquire("b"))
        await until(lambda: waits(other))
        other.clock.now += 1  # a child ends for sure: nobody's patience does before
        other.memory._notify()
        await turns(5)
        assert not second.done()
        gate.set()
        for waiting in (first, second):
            (await soon(waiting)).end()


async def test_no_child_opens_what_another_one_holds_where_it_would_get_too_little(tmp_path: Path) -> None:
    first, second = {"a": large(80)}, {"a": large(80, child_bytes=120 * MB)}
    async with two(tmp_path, first, second) as (one, other):
        async with one.pool.lease("a"):
            with pytest.raises(HeldElsewhere):
                await soon(other.pool.acquire("a"))
        assert second["a"].ceilings == []


async def test_what_is_there_twice_leaves_before_what_is_there_once(tmp_path: Path) -> None:
    async with two(tmp_path, *alike(a=30, b=30, c=30)) as (one, other):
        await one.use("a", "b")
        await other.use("b")
        await one.use("c")
        assert (one.loaded, other.loaded) == (["a", "c"], ["b"])
