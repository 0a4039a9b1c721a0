"""The gate before the arena: what a run claims, who waits for whom, and that every claim comes back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from modelhost.errors import ActivationsFull, DeadlineExceeded, HostClosed, InsufficientMemory, Overloaded, RunTooLarge
from modelhost.memory import CleanupGoal, CleanupPlan, MemoryManager
from modelhost.pool.activations import ActivationGate, Claim, Kept
from modelhost.pool.demand import Demand
from modelhost.pool.key import ModelKey
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeMemory
from modelhost.tensors import TensorSpec

pytestmark = pytest.mark.anyio

MB = 1 << 20
KEY = ModelKey("a", "1")
PER_ROW = RunFootprint((Term(16 * MB, ("rows",)),), {"rows": (("x", 0),)}, rows="rows")
SPECS = {"x": TensorSpec("x", "FP32", (-1, 2))}
IN_ROWS = RunFootprint((Term(1 * MB, ("rows",)),), {"rows": (("x", 0),)}, rows="rows")


class Model:
    """What the gate looks at: inputs, and a footprint."""

    inputs = SPECS

    def __init__(self, footprint: RunFootprint | None) -> None:
        self.run_footprint = footprint


def rows(count: int) -> dict[str, Any]:
    return {"x": np.zeros((count, 2), np.float32)}


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Stage:
    """A gate of 64 MB on a machine of 256 MB, of which 60 are used."""

    def __init__(self, *, max_waiting: int = 100, preparing_bytes: Callable[[], int] = lambda: 0) -> None:
        self.machine = FakeMemory()
        self.memory = MemoryManager(probe=self.machine)
        self.memory.set_baseline()
        self.gate = ActivationGate(
            64 * MB, max_waiting=max_waiting, memory=self.memory, preparing_bytes=preparing_bytes
        )
        self.goals: list[CleanupGoal] = []
        self.unknown, self.per_row, self.in_rows = Model(None), Model(PER_ROW), Model(IN_ROWS)

    async def claim(self, megabytes: int, *, deadline: float | None = None) -> Claim:
        return await self.gate.claim(KEY, self.in_rows, rows(megabytes), deadline=deadline)  # type: ignore[arg-type]

    def begin(self, megabytes: int, *, deadline: float | None = None) -> asyncio.Task[Claim]:
        return asyncio.get_running_loop().create_task(self.claim(megabytes, deadline=deadline))

    def begin_alone(self) -> asyncio.Task[Claim]:
        alone = self.gate.claim_alone(self.in_rows, rows(1), deadline=None)  # type: ignore[arg-type]
        return asyncio.get_running_loop().create_task(alone)

    def let_idle_models_leave(self, size_bytes: int) -> None:
        """Has one clean-up give back so much of what is used."""

        def clean(goal: CleanupGoal) -> CleanupPlan | None:
            self.goals.append(goal)

            def act() -> None:
                self.machine.other_bytes -= size_bytes

            return CleanupPlan(("idle",), size_bytes, act)

        self.memory.set_cleaner(clean)

    @contextmanager
    def load_in_progress(self) -> Iterator[threading.Event]:
        may_end = threading.Event()
        task = asyncio.get_running_loop().create_task(self.memory.change(lambda: may_end.wait(10)))
        try:
            yield may_end
        finally:
            may_end.set()
            del task

    async def close(self) -> None:
        await self.gate.close()
        await self.memory.close()
        assert (self.gate.claimed_bytes, self.gate.waiting) == (0, 0)


@pytest.fixture
async def stage() -> Any:
    stage = Stage()
    yield stage
    await stage.close()


# --- what a run claims -------------------------------------------------------------------------------------


async def test_a_run_claims_what_is_predicted_and_gives_it_back(stage: Stage) -> None:
    first, second = await stage.claim(10), await stage.claim(20)
    assert (first.size_bytes, stage.gate.claimed_bytes) == (10 * MB, 30 * MB)
    first.run_ended()
    assert stage.gate.claimed_bytes == 20 * MB
    second.run_ended()
    assert stage.gate.claimed_bytes == 0


async def test_a_run_that_nobody_can_predict_claims_a_quarter(stage: Stage) -> None:
    claim = await stage.gate.claim(KEY, stage.unknown, rows(1), deadline=None)  # type: ignore[arg-type]
    assert claim.size_bytes == 16 * MB
    claim.run_ended()


@pytest.mark.parametrize(("count", "asked"), [(64, "64 rows need 1024.0 MB"), (6, "6 rows need 96.0 MB")])
async def test_what_would_not_fit_alone_is_refused_at_once_with_the_largest_batch(
    stage: Stage, count: int, asked: str
) -> None:
    running = await stage.claim(60)
    with pytest.raises(RunTooLarge) as refusal:
        await stage.gate.claim(KEY, stage.per_row, rows(count), deadline=None)  # type: ignore[arg-type]
    assert str(refusal.value) == (
        f"a:1: {asked} for activations, memory.activation_ceiling is 64.0 MB; at most 4 rows fit"
    )
    assert refusal.value.details() == {
        "needed_bytes": count * 16 * MB,
        "available_bytes": 64 * MB,
        "max_rows": 4,
    }
    assert (stage.gate.refused_total, stage.gate.missed_total, stage.gate.waiting) == (1, 0, 0)
    running.run_ended()
    (await stage.gate.claim(KEY, stage.per_row, rows(4), deadline=None)).run_ended()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("footprint", "words"),
    [
        (RunFootprint((Term(200 * MB, ("rows",)),), {"rows": (("x", 0),)}, rows="rows"), "1 row needs 200.0 MB"),
        (RunFootprint((Term(200 * MB),), {}), "this run needs 200.0 MB"),
    ],
)
async def test_a_model_of_which_no_run_fits_says_so(stage: Stage, footprint: RunFootprint, words: str) -> None:
    with pytest.raises(RunTooLarge, match=words) as refusal:
        await stage.gate.claim(KEY, Model(footprint), rows(1), deadline=None)  # type: ignore[arg-type]
    assert refusal.value.max_rows == (0 if footprint.rows else None)
    assert str(refusal.value).endswith("not even one row fits" if footprint.rows else "send fewer rows at once")


async def test_a_prediction_little_over_the_ceiling_is_left_to_the_arena_alone(stage: Stage) -> None:
    running = await stage.claim(1)
    over = stage.begin(80)
    await turns()
    assert stage.gate.waiting == 1
    running.run_ended()
    claim = await over
    assert (claim.size_bytes, claim.is_alone) == (64 * MB, True)
    claim.run_ended()
    with pytest.raises(RunTooLarge):
        await stage.claim(81)


async def test_predictions_are_remembered_by_shapes_and_stay_right() -> None:
    demand = Demand(SPECS, IN_ROWS)
    for _ in range(2):
        for count in range(1, 200):
            assert demand.predict(rows(count)) == count * MB
    other_face = Demand({"y": TensorSpec("y", "FP32", (-1,))}, IN_ROWS)
    assert other_face.predict({"y": np.zeros(1)}) is None


# --- who waits for whom ------------------------------------------------------------------------------------


async def test_runs_wait_in_order_and_a_small_one_does_not_pass_a_large_one(stage: Stage) -> None:
    running = await stage.claim(20)
    large, small = stage.begin(60), stage.begin(1)
    await turns()
    assert (large.done(), small.done(), stage.gate.waiting) == (False, False, 2)
    running.run_ended()
    await turns()
    assert (large.done(), small.done()) == (True, True)
    assert stage.gate.claimed_bytes == 61 * MB
    (await large).run_ended()
    (await small).run_ended()


async def test_a_large_run_has_its_turn_however_many_small_ones_come(stage: Stage) -> None:
    small = [await stage.claim(3) for _ in range(10)]
    large = stage.begin(64)
    later = [stage.begin(3) for _ in range(10)]
    for claim in small:
        await turns()
        assert not any(task.done() for task in (large, *later))
        claim.run_ended()
    claim = await large
    assert not any(task.done() for task in later)
    claim.run_ended()
    for task in later:
        (await task).run_ended()


async def test_the_line_is_bounded_in_number() -> None:
    stage = Stage(max_waiting=2)
    running = await stage.claim(64)
    waiting = [stage.begin(1) for _ in range(2)]
    await turns()
    with pytest.raises(Overloaded) as refusal:
        await stage.claim(1)
    assert refusal.value.details() == {"queue": "the queue for memory of runs", "waiting": 2, "limit": 2}
    alone = stage.begin_alone()  # was in already
    await turns()
    assert stage.gate.waiting == 3
    running.run_ended()
    (await alone).run_ended()
    for task in waiting:
        (await task).run_ended()
    await stage.close()


async def test_the_line_is_bounded_in_time_and_moves_on_when_its_head_leaves(stage: Stage) -> None:
    running = await stage.claim(60)
    large = stage.begin(30, deadline=0.0)  # on the loop's clock: long ago
    small = stage.begin(4)
    with pytest.raises(DeadlineExceeded, match="the memory that other runs hold"):
        await large
    (await small).run_ended()
    running.run_ended()


@pytest.mark.parametrize("count", range(6))
async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(stage: Stage, count: int) -> None:
    running = await stage.claim(60)
    first, second = stage.begin(30), stage.begin(30)
    await turns(count)
    first.cancel()
    await asyncio.wait([first])
    running.run_ended()
    (await second).run_ended()
    assert stage.gate.claimed_bytes == 0


@pytest.mark.parametrize("is_first", [True, False])
async def test_who_is_cancelled_between_grant_and_waking_gives_the_claim_back(stage: Stage, is_first: bool) -> None:
    running = await stage.claim(60)
    first, second = stage.begin(40), stage.begin(40)
    await turns()
    if is_first:
        running.run_ended()  # granted; the task has not run since
        first.cancel()
    else:
        first.cancel()
        running.run_ended()
    await asyncio.wait([first])
    assert first.cancelled()
    (await second).run_ended()


async def test_who_needs_the_whole_arena_goes_before_the_line_and_after_who_runs(stage: Stage) -> None:
    running = [await stage.claim(30), await stage.claim(30)]
    waiting = stage.begin(10)
    alone, next_alone = stage.begin_alone(), stage.begin_alone()
    await turns()
    running[0].run_ended()
    await turns()
    assert not any(task.done() for task in (waiting, alone, next_alone))
    running[1].run_ended()
    claim = await alone
    assert claim.is_alone
    await turns()
    assert not any(task.done() for task in (waiting, next_alone))
    claim.run_ended()
    claim = await next_alone
    assert not waiting.done()
    claim.run_ended()
    (await waiting).run_ended()


async def test_closing_refuses_who_waits_and_who_would(stage: Stage) -> None:
    running = await stage.claim(64)
    waiting = stage.begin(1)
    await turns()
    await stage.gate.close()
    for task in (waiting, stage.begin(1)):
        with pytest.raises(HostClosed):
            await task
    running.run_ended()


# --- outputs that stay ---------------------------------------------------------------------------------------


def keep(claim: Claim, megabytes: int) -> Kept[str]:
    kept = Kept("outputs", megabytes * MB)
    claim.keep(kept)
    claim.run_ended()
    return kept


async def test_kept_outputs_hold_their_size_until_their_scope_ends(stage: Stage) -> None:
    kept = keep(await stage.claim(60), 20)
    with kept as value:
        assert (value, stage.gate.claimed_bytes) == ("outputs", 20 * MB)
    assert stage.gate.claimed_bytes == 0


async def test_work_on_kept_outputs_has_their_claim_beyond_their_scope(stage: Stage) -> None:
    kept = keep(await stage.claim(60), 20)
    with kept:
        kept.begin_use()
    assert stage.gate.claimed_bytes == 20 * MB
    kept.end_use()
    assert stage.gate.claimed_bytes == 0


async def test_a_run_waits_for_outputs_in_use_and_not_for_those_that_may_wait_for_it(stage: Stage) -> None:
    kept = keep(await stage.claim(60), 20)
    with kept:
        kept.begin_use()
        large = stage.begin(60)
        await turns()
        assert not large.done()
        kept.end_use()
        await turns()
        assert not large.done()  # who has it is about to go on
    claim = await large
    claim.run_ended()

    kept = keep(await stage.claim(60), 20)
    with kept:
        claim = await stage.claim(60)
        assert stage.gate.claimed_bytes == 80 * MB
        assert not claim.is_alone
        claim.run_ended()


async def test_outputs_that_nobody_takes_end_with_the_run(stage: Stage) -> None:
    claim = await stage.claim(60)
    claim.keep(Kept("outputs", 20 * MB))
    claim.abandon()
    assert stage.gate.claimed_bytes == 60 * MB  # it still runs
    claim.run_ended()
    assert stage.gate.claimed_bytes == 0


async def test_outputs_whose_requester_left_when_the_run_had_ended_go_too(stage: Stage) -> None:
    claim = await stage.claim(60)
    keep(claim, 20)
    claim.abandon()
    assert stage.gate.claimed_bytes == 0
    other = await stage.claim(60)
    other.run_ended()
    other.abandon()
    assert stage.gate.claimed_bytes == 0


# --- memory beside the arena -----------------------------------------------------------------------------------


async def test_a_run_that_would_pass_the_limit_waits_for_runs_to_end(stage: Stage) -> None:
    stage.machine.other_bytes = 150 * MB  # 210 used; 38 to the limit's margin
    stage.let_idle_models_leave(0)
    first, second = await stage.claim(20), stage.begin(20)
    await turns()
    for _ in range(3):
        await stage.memory.trim()  # what it might have begun has ended too
        await turns()
    assert not second.done()
    first.run_ended()
    (await second).run_ended()
    assert stage.goals == []


async def test_a_run_that_would_pass_the_limit_waits_for_the_load_in_progress(stage: Stage) -> None:
    with stage.load_in_progress() as may_end, stage.memory.ledger.reserve("load", 160 * MB):
        run = stage.begin(40)
        await turns()
        assert stage.memory.is_changing
        assert not run.done()
        may_end.set()
        (await run).run_ended()


async def test_what_a_child_holds_of_its_reservation_is_in_usage_already() -> None:
    child = [100 * MB]
    stage = Stage(preparing_bytes=lambda: child[0])
    stage.machine.other_bytes = 100 * MB
    stage.let_idle_models_leave(0)
    with stage.memory.ledger.reserve("child", 120 * MB):
        (await stage.claim(60)).run_ended()
        assert stage.goals == []
        (await stage.claim(64)).run_ended()
        assert len(stage.goals) == 0
        stage.machine.other_bytes += 10 * MB
        waiting = asyncio.get_running_loop().create_task(stage.claim(64))
        while not stage.goals:
            await turns()
        await turns(20)
        # nobody is to be killed for it, the child neither, and it will give more than all that is idle
        assert [goal.everything for goal in stage.goals] == [False]
        assert not waiting.done()
        child[0] = 0
    await stage.memory.trim()  # as at the next sample
    (await waiting).run_ended()
    await stage.close()


async def test_idle_models_leave_for_a_run_that_is_alone(stage: Stage) -> None:
    stage.machine.other_bytes = 150 * MB
    stage.let_idle_models_leave(100 * MB)
    (await stage.claim(60)).run_ended()
    assert [goal.everything for goal in stage.goals] == [False], "as many as it takes"
    (await stage.claim(60)).run_ended()
    assert len(stage.goals) == 1


async def test_a_trim_that_is_enough_costs_no_model(stage: Stage) -> None:
    stage.machine.other_bytes = 150 * MB
    stage.let_idle_models_leave(100 * MB)

    def trim() -> None:
        stage.machine.other_bytes = 100 * MB

    stage.memory.add_trimmer(trim)
    (await stage.claim(60)).run_ended()
    await stage.gate.close()  # waits for what was begun
    assert stage.goals == []


async def test_a_run_that_is_alone_goes_when_nothing_more_can_be_done(stage: Stage) -> None:
    stage.machine.other_bytes = 190 * MB
    (await stage.claim(60)).run_ended()
    stage.let_idle_models_leave(0)
    (await stage.claim(60)).run_ended()
    assert [goal.everything for goal in stage.goals] == [False, True]


async def test_a_run_for_which_nothing_more_can_be_done_waits_for_a_load_all_the_same(stage: Stage) -> None:
    stage.machine.other_bytes = 190 * MB
    may_end = threading.Event()
    loads: list[asyncio.Task[Any]] = []

    def begin_load(goal: CleanupGoal) -> CleanupPlan | None:
        loads.append(asyncio.get_running_loop().create_task(stage.memory.change(lambda: may_end.wait(10))))
        return None

    stage.memory.set_cleaner(begin_load)
    # As a load that was decided in the same moment.
    clean_up = stage.memory.attempt_cleanup

    async def clean_up_and_let_load(**arguments: Any) -> Any:
        found = await clean_up(**arguments)
        await turns()
        return found

    stage.memory.attempt_cleanup = clean_up_and_let_load  # type: ignore[method-assign]
    run = stage.begin(60)
    while not loads:
        await turns(1)
    await turns(20)
    assert stage.memory.is_changing
    assert not run.done()
    may_end.set()
    (await run).run_ended()
    await asyncio.wait(loads)


async def test_a_clean_up_that_fails_holds_nobody_up(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    stage.machine.other_bytes = 190 * MB

    def fail(goal: CleanupGoal) -> CleanupPlan | None:
        raise ZeroDivisionError

    stage.memory.set_cleaner(fail)
    (await stage.claim(60)).run_ended()
    assert "making room for a run failed" in caplog.text


async def test_who_leaves_while_room_is_made_for_it_lets_the_next_one_go(stage: Stage) -> None:
    stage.machine.other_bytes = 150 * MB
    stage.let_idle_models_leave(100 * MB)
    run, small = stage.begin(60), stage.begin(1)
    await turns(2)
    assert not small.done()
    run.cancel()
    (await small).run_ended()
    await asyncio.wait([run])


async def test_small_runs_do_not_look_at_usage(stage: Stage) -> None:
    stage.machine.other_bytes = 190 * MB
    stage.let_idle_models_leave(0)
    (await stage.claim(3)).run_ended()
    assert stage.goals == []


# --- what the prediction missed ----------------------------------------------------------------------------------


def missed(stage: Stage, claim: Claim, model: Model, count: int, error: ActivationsFull | RunTooLarge) -> None:
    stage.gate.missed(KEY, model, rows(count), error, claim)  # type: ignore[arg-type]


async def test_a_run_that_others_left_no_room_for_may_try_again(stage: Stage) -> None:
    claim = await stage.claim(1)
    missed(stage, claim, stage.in_rows, 1, ActivationsFull("full", needed_bytes=2 * MB, available_bytes=MB))
    assert (stage.gate.missed_total, stage.gate.refused_total) == (1, 0)
    claim.run_ended()


@pytest.mark.parametrize(
    ("footprint", "count", "max_rows", "advice"),
    [
        (PER_ROW, 5, 4, "at most 4 rows fit"),
        (PER_ROW, 4, None, "send fewer rows at once"),  # the prediction said that these fit
        (None, 4, None, "send fewer rows at once"),
    ],
)
async def test_a_run_that_was_refused_alone_is_too_large(
    stage: Stage, footprint: RunFootprint | None, count: int, max_rows: int | None, advice: str
) -> None:
    claim = await stage.begin_alone()
    full = ActivationsFull("full", needed_bytes=30 * MB, available_bytes=24 * MB)
    with pytest.raises(RunTooLarge) as refusal:
        missed(stage, claim, Model(footprint), count, full)
    assert str(refusal.value) == (
        "a:1: this run needs at least 70.0 MB for activations, memory.activation_ceiling is 64.0 MB; " + advice
    )
    assert refusal.value.details() == {"needed_bytes": 70 * MB, "available_bytes": 64 * MB, "max_rows": max_rows}
    assert (stage.gate.missed_total, stage.gate.refused_total) == (1, 1)
    claim.run_ended()


async def test_a_step_over_the_ceiling_is_too_large_whoever_runs_beside(stage: Stage) -> None:
    claim = await stage.claim(1)
    step = RunTooLarge("one step", needed_bytes=80 * MB, available_bytes=64 * MB)
    with pytest.raises(RunTooLarge, match=r"at least 80\.0 MB .* at most 4 rows fit"):
        missed(stage, claim, stage.per_row, 5, step)
    claim.run_ended()


# --- less kept free for runs than the arena may grow to ---------------------------------------------


async def test_within_what_is_kept_free_runs_go_as_ever_and_peaks_are_known() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    first, second = await stage.claim(3), await stage.claim(10)
    assert stage.gate.take_peaks() == (13 * MB, 10 * MB)
    waits = stage.begin(5)
    await turns()
    assert not waits.done()
    first.run_ended()
    assert stage.gate.take_peaks() == (18 * MB, 0), "what was wanted counts, though it had to wait"
    second.run_ended()
    (await waits).run_ended()
    assert stage.gate.claimed_bytes == 0


async def test_a_run_that_wants_more_than_is_kept_free_is_told_of_and_goes_where_memory_is_there() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    wanted: list[int] = []
    stage.gate.wants_room = wanted.append
    (await stage.claim(40)).run_ended()
    (await stage.claim(40)).run_ended()
    assert wanted == [40 * MB]
    with pytest.raises(RunTooLarge):
        await stage.claim(100)
    assert wanted == [40 * MB], "what can never go changes nothing"


async def test_idle_models_leave_for_it_as_far_as_it_takes() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    stage.machine.other_bytes = 160 * MB
    stage.let_idle_models_leave(25 * MB)
    (await stage.claim(50)).run_ended()
    a_little_more_bytes = stage.memory.thresholds.hysteresis_bytes
    assert [(goal.everything, goal.excess_bytes) for goal in stage.goals] == [(False, 22 * MB + a_little_more_bytes)]
    await stage.memory.close()


async def test_where_models_in_use_hold_the_room_it_is_refused_and_the_line_moves_on() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    stage.machine.other_bytes = 150 * MB
    refused, after = stage.begin(50), stage.begin(8)
    with pytest.raises(InsufficientMemory, match=r"needs 50\.0 MB, 38\.0 MB are free"):
        await refused
    (await after).run_ended()
    await stage.memory.close()


async def test_it_goes_at_last_where_models_hold_no_more_than_by_default() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    stage.machine.other_bytes = 131 * MB
    (await stage.claim(60)).run_ended()
    await stage.memory.close()


async def test_a_run_of_which_nobody_can_tell_wants_all_of_the_arena() -> None:
    stage = Stage()
    stage.gate.resize(64 * MB, 14 * MB)
    wanted: list[int] = []
    stage.gate.wants_room = wanted.append
    assert stage.gate.try_claim(None) is None
    claim = await stage.gate.claim(KEY, stage.unknown, rows(1), deadline=None)  # type: ignore[arg-type]
    assert (wanted, claim.size_bytes) == ([64 * MB], 16 * MB)
    assert stage.gate.take_peaks() == (16 * MB, 64 * MB)
    claim.run_ended()
