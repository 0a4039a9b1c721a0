"""Requests that wait at the same time share a run; each gets its own answer, error and end all the same."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_stage import Stage, soon, turns, until

from modelhost.errors import ActivationsFull, DeadlineExceeded, HostClosed, InvalidRequest, Overloaded
from modelhost.pool import Kept, Lease, ModelKey
from modelhost.pool.demand import RowTimes
from modelhost.pool.runs import ModelRuns, rows_are_independent
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript
from modelhost.tensors import TensorSpec

pytestmark = pytest.mark.anyio

WRONG = -7.0
LONG_S = 60.0


def footprint(*, row_bytes: int = 1 << 10, independent: bool | None = True) -> RunFootprint:
    """As a child would have measured it: so much for each row of `x`."""
    return RunFootprint((Term(row_bytes, ("rows",)),), {"rows": (("x", 0),)}, "rows", independent)


def rowed(**more: Any) -> FakeScript:
    """A model of rows of two numbers, which preparing has proved to be independent."""
    return FakeScript(**({"width": 2, "run_footprint": footprint()} | more))


def row(number: float, rows: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((rows, 2), number, np.float32)}


class Busy:
    """A stage with one inference thread, which a run of another model occupies until `free` is set."""

    def __init__(self, stage: Stage, lease: Lease, free: threading.Event) -> None:
        self.stage, self.lease, self.free = stage, lease, free
        self.script = stage.script("a")
        self.requests: list[asyncio.Task[Any]] = []

    def ask(self, number: float, rows: int = 1, **more: Any) -> asyncio.Task[Any]:
        """Begins a request for `rows` rows of one number."""
        return self.run(row(number, rows), **more)

    def run(self, feeds: dict[str, np.ndarray], **more: Any) -> asyncio.Task[Any]:
        task = self.stage.begin(self.lease.run(feeds, **more))
        self.requests.append(task)
        return task

    async def answers(self) -> list[Any]:
        """Frees the thread and returns each request's answers, or its error."""
        await turns(3)
        self.free.set()
        results = await soon(asyncio.gather(*self.requests, return_exceptions=True))
        return [result if isinstance(result, BaseException) else result["y"].tolist() for result in results]

    @property
    def runs(self) -> ModelRuns:
        return self.lease._runs


@asynccontextmanager
async def busy(directory: Path, script: FakeScript | None = None, **more: Any) -> AsyncIterator[Busy]:
    free = threading.Event()
    scripts = {"a": script or rowed(), "other": FakeScript(run_may_end=free)}
    async with Stage(directory, scripts, **({"threads": 1} | more)) as stage:
        async with stage.pool.lease("a") as lease:
            occupied = stage.begin(stage.use("other"))
            await until(scripts["other"].run_started.is_set)
            try:
                yield Busy(stage, lease, free)
            finally:
                free.set()
                await soon(occupied)
        await stage.settled()
        stage.check_at_rest()


def twice(number: float, rows: int = 1) -> list[list[float]]:
    return [[2 * number] * 2] * rows


# --- sharing -----------------------------------------------------------------------------------------


async def test_requests_that_wait_for_a_thread_share_a_run_and_each_has_its_own_rows(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for number, rows in ((1, 1), (2, 3), (3, 1)):
            scene.ask(number, rows)
        assert await scene.answers() == [twice(1), twice(2, 3), twice(3)]
        assert scene.script.sizes == [5]


async def test_nobody_waits_where_a_thread_is_free(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": rowed()}) as stage, stage.pool.lease("a") as lease:
        for number in range(3):
            assert (await soon(lease.run(row(number))))["y"].tolist() == twice(number)
        assert stage.script("a").sizes == [1, 1, 1]


async def test_a_run_that_has_begun_is_not_joined(tmp_path: Path) -> None:
    gate = threading.Event()
    async with Stage(tmp_path, {"a": rowed(run_may_end=gate)}, threads=1) as stage, stage.pool.lease("a") as lease:
        first = stage.begin(lease.run(row(1)))
        await until(stage.script("a").run_started.is_set)
        others = [stage.begin(lease.run(row(number))) for number in (2, 3)]
        await turns(3)
        gate.set()
        await soon(asyncio.gather(first, *others))
        assert stage.script("a").sizes == [1, 2]


async def test_rows_of_other_shapes_do_not_mix(tmp_path: Path) -> None:
    script = rowed(width=-1, run_footprint=footprint())
    async with busy(tmp_path, script) as scene:
        for width in (2, 3, 2, 3, 2):
            scene.run({"x": np.full((1, width), width, np.float32)})
        answers = await scene.answers()
        assert answers == [[[2.0 * width] * width] for width in (2, 3, 2, 3, 2)]
        assert sorted(script.sizes) == [2, 3]


async def test_a_batch_takes_no_more_than_max_rows(tmp_path: Path) -> None:
    async with busy(tmp_path, batching={"max_rows": 4}) as scene:
        for rows in (3, 2, 2, 6, 1):
            scene.ask(rows, rows)
        assert await scene.answers() == [twice(rows, rows) for rows in (3, 2, 2, 6, 1)]
        assert scene.script.sizes == [3, 4, 6, 1]


async def test_inputs_that_are_large_together_do_not_share_a_run(tmp_path: Path) -> None:
    """They would be copied: 4 MB at the most, the first one's own rows among them."""
    script = rowed(width=1 << 18, run_footprint=footprint(row_bytes=8))  # 1 MB a row
    async with busy(tmp_path, script) as scene:
        for rows in (3, 1, 1):
            scene.run({"x": np.ones((rows, 1 << 18), np.float32)})
        await scene.answers()
        assert script.sizes == [4, 1]


async def test_a_batch_takes_no_more_memory_than_its_requests_have_claimed(tmp_path: Path) -> None:
    squared = RunFootprint((Term(1 << 10, ("rows", "rows")),), {"rows": (("x", 0),)}, "rows", True)
    async with busy(tmp_path, rowed(run_footprint=squared)) as scene:
        scene.ask(1)
        scene.ask(2)
        assert await scene.answers() == [twice(1), twice(2)]
        assert scene.script.sizes == [1, 1]


async def test_requests_without_rows_and_inputs_that_disagree_run_alone(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for rows in (0, 1, 0, 1):
            scene.ask(rows, rows)
        assert await scene.answers() == [[], twice(1), [], twice(1)]
        assert sorted(scene.script.sizes) == [0, 0, 2]


async def test_each_gets_the_outputs_that_it_asked_for(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        scene.ask(1, outputs=["y"])
        scene.ask(2)
        assert await scene.answers() == [twice(1), twice(2)]
        assert scene.script.sizes == [2]


async def test_statistics_count_one_execution_and_its_rows(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for rows in (1, 2):
            scene.ask(1, rows)
        await scene.answers()
        scene.free.set()
        await soon(scene.lease.run(row(1)))
        totals = scene.stage.pool.statistics.of(ModelKey("a", "1"))
        assert totals.execution_count == 2
        assert {size: took.count for size, took in totals.batches.items()} == {3: 1, 1: 1}
        assert all(took.infer_ns > 0 for took in totals.batches.values())


# --- waiting for others --------------------------------------------------------------------------------


async def test_with_max_delay_a_request_waits_for_others_and_no_longer(tmp_path: Path) -> None:
    batching = {"max_delay": 0.005}
    async with Stage(tmp_path, {"a": rowed()}, batching=batching) as stage, stage.pool.lease("a") as lease:
        requests = [stage.begin(lease.run(row(number))) for number in range(3)]
        await turns(3)
        assert stage.script("a").runs == 0
        results = await soon(asyncio.gather(*requests))
        assert [result["y"].tolist() for result in results] == [twice(number) for number in range(3)]
        assert stage.script("a").sizes == [3]


async def test_a_full_batch_does_not_wait_for_its_delay(tmp_path: Path) -> None:
    batching = {"max_delay": LONG_S, "max_rows": 2}
    async with Stage(tmp_path, {"a": rowed()}, batching=batching) as stage, stage.pool.lease("a") as lease:
        await soon(asyncio.gather(*(lease.run(row(number)) for number in range(4))))
        await soon(lease.run(row(1, 2)))
        assert stage.script("a").sizes == [2, 2, 2]


async def test_a_batch_that_cannot_take_the_next_request_starts_before_it(tmp_path: Path) -> None:
    batching = {"max_delay": LONG_S, "max_rows": 3}
    scripts = {"a": rowed()}
    async with Stage(tmp_path, scripts, batching=batching, threads=1) as stage, stage.pool.lease("a") as lease:
        requests = [stage.begin(lease.run(row(rows, rows))) for rows in (2, 2, 3)]
        await soon(asyncio.gather(*requests))
        assert scripts["a"].sizes == [2, 2, 3]


async def test_closing_the_pool_runs_a_batch_that_waits_for_its_delay(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": rowed()}, batching={"max_delay": LONG_S}) as stage:
        lease = await stage.pool.acquire("a")
        requests = [stage.begin(lease.run(row(number))) for number in (1, 2)]
        await turns(3)
        assert stage.script("a").runs == 0
        await soon(stage.pool.close())
        results = await soon(asyncio.gather(*requests))
        assert [result["y"].tolist() for result in results] == [twice(1), twice(2)]
        with pytest.raises(HostClosed):
            await lease.run(row(3))
        lease.end()


async def test_a_runner_that_has_closed_ends_what_waited_for_its_delay_with_an_error_for_each(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": rowed()}, batching={"max_delay": 0.001}) as stage:
        lease = await stage.pool.acquire("a")
        requests = [stage.begin(lease.run(row(number))) for number in (1, 2)]
        await turns(3)
        stage.runner.refuse()
        errors = await soon(asyncio.gather(*requests, return_exceptions=True))
        assert [type(error) for error in errors] == [HostClosed, HostClosed]
        assert errors[0] is not errors[1]
        lease.end()
        stage.check_at_rest()


def known_times(rows_ns: dict[int, int]) -> RowTimes:
    times = RowTimes()
    for rows, took_ns in rows_ns.items():
        for _ in range(3):
            times.note(rows, took_ns)
    return times


async def test_who_comes_first_waits_a_moment_for_those_who_were_there_before_where_rows_then_take_much_less(
    tmp_path: Path,
) -> None:
    """Their answers have just been sent, and they come again; a thread is free all the while."""
    async with Stage(tmp_path, {"a": rowed()}, threads=2) as stage, stage.pool.lease("a") as lease:
        times = known_times({1: 9_000_000_000, 2: 10_000_000_000})
        times.crowd(4)
        lease._runs._times[row(1)["x"].shape[1:],] = times
        first = stage.begin(lease.run(row(1)))
        await turns(5)
        assert stage.script("a").runs == 0  # for a quarter of ten seconds, if nobody came
        assert (await soon(lease.run(row(2))))["y"].tolist() == twice(2)  # the other half of the share of one thread
        assert (await soon(first))["y"].tolist() == twice(1)
        assert stage.script("a").sizes == [2]


def test_rows_wait_for_others_only_where_both_are_known_and_it_pays() -> None:
    assert RowTimes().hold_s(1, 2) == 0.0
    assert known_times({1: 8_000_000, 16: 64_000_000}).hold_s(1, 16) == pytest.approx(0.016)  # a quarter of the run
    assert known_times({1: 8_000_000}).hold_s(1, 16) == 0.0
    assert known_times({1: 8_000_000, 16: 120_000_000}).hold_s(1, 16) == 0.0  # a row takes as long beside others
    assert known_times({1: 100_000, 16: 160_000}).hold_s(1, 16) == 0.0  # shorter than a timer


MS = 1_000_000


def pays(times: RowTimes, rows: int, together: int) -> bool:
    return times.pays_up_to(rows, together) >= together


@pytest.mark.parametrize(
    ("known", "rows", "most"),
    [
        ({}, 1, 64),  # nobody knows
        ({1: 3 * MS}, 1, 33),  # until they would take 0.1 s, as far as a row alone can tell
        ({1: 115 * MS}, 1, 2),  # one takes longer than that already
        ({1: 115 * MS, 16: 200 * MS}, 1, 18),  # so do sixteen, and hardly longer than one
        ({1: 3 * MS, 8: 16 * MS, 32: 80 * MS}, 1, 40),
        ({1: 60 * MS, 8: 16 * MS}, 1, 60),  # two take no longer than eight
        ({4: 400 * MS}, 4, 8),
    ],
)
def test_a_shared_run_is_no_longer_than_others_can_wait(known: dict[int, int], rows: int, most: int) -> None:
    times = known_times(known)
    assert max(together for together in range(rows, 65) if together == rows or pays(times, rows, together)) == most


def test_what_took_long_by_chance_is_tried_again() -> None:
    times = known_times({1: 3 * MS, 2: 150 * MS})
    assert [pays(times, 1, 2) for _ in range(64)].count(True) == 1


async def test_requests_whose_rows_take_long_share_no_long_run(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        scene.runs._times[row(1)["x"].shape[1:],] = known_times({1: 60 * MS})
        for number in range(6):
            scene.ask(number)
        assert await scene.answers() == [twice(number) for number in range(6)]
        assert scene.script.sizes == [2, 2, 2]


def test_a_crowd_is_seen_at_once_and_forgotten_slowly() -> None:
    times = RowTimes()
    assert times.crowd(32) == 32
    assert times.crowd(1) == 32
    for _ in range(2000):
        times.crowd(1)
    assert times.crowd(1) == 1


# --- who is wrong, late or gone ------------------------------------------------------------------------


async def test_a_wrong_request_fails_alone(tmp_path: Path) -> None:
    async with busy(tmp_path, rowed(wrong_number=WRONG)) as scene:
        for number in (1, WRONG, 3):
            scene.ask(number)
        first, wrong, third = await scene.answers()
        assert (first, third) == (twice(1), twice(3))
        assert isinstance(wrong, InvalidRequest)
        assert scene.script.sizes == [3, 1, 1, 1]
        assert scene.runs.rule is not None  # nothing was shown to be wrong with the model


async def test_an_answer_that_cannot_be_made_is_one_requests_own_failure(tmp_path: Path) -> None:
    def unmade(arrays: list[np.ndarray]) -> Any:
        raise ZeroDivisionError("zero")

    async with busy(tmp_path) as scene:
        failing = scene.stage.begin(scene.lease.run_checked(row(1), ["y"], unmade))
        scene.ask(2)
        assert await scene.answers() == [twice(2)]
        with pytest.raises(ZeroDivisionError):
            await soon(failing)
        assert scene.script.sizes == [2]


async def test_a_request_that_was_cancelled_while_it_waited_is_not_run(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for number in (1, 2, 3):
            scene.ask(number)
        await turns(3)
        gone = scene.requests.pop(1)
        gone.cancel()
        await asyncio.wait([gone])
        assert await scene.answers() == [twice(1), twice(3)]
        assert scene.script.sizes == [2]


async def test_a_batch_that_everybody_has_left_is_not_run(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for number in (1, 2):
            scene.ask(number)
        await turns(3)
        for request in scene.requests:
            request.cancel()
        await asyncio.wait(scene.requests)
        scene.requests.clear()
        await scene.answers()
        await scene.stage.settled()
        assert scene.script.runs == 0
        assert scene.stage.pool.activations.claimed_bytes == 0


async def test_a_shared_run_stops_when_nobody_wants_it_any_more_and_not_before(tmp_path: Path) -> None:
    gate = threading.Event()
    async with busy(tmp_path, rowed(run_may_end=gate)) as scene:
        for number in (1, 2):
            scene.ask(number)
        await turns(3)
        scene.free.set()
        await until(scene.script.run_started.is_set)
        scene.requests[0].cancel()
        await asyncio.wait([scene.requests[0]])
        assert not gate.is_set()  # which a cancelled run sets
        scene.requests[1].cancel()
        await asyncio.wait(scene.requests)
        assert gate.is_set()
        await scene.stage.settled()
        assert scene.script.sizes == [2]  # and neither was run alone afterwards


async def test_a_deadline_that_passes_in_a_waiting_batch_ends_that_request_alone(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        late = scene.ask(1, deadline=asyncio.get_running_loop().time() + 0.005)
        scene.ask(2)
        with pytest.raises(DeadlineExceeded):
            await soon(late)
        assert not scene.requests[1].done()
        late_answer, answer = await scene.answers()
        assert (type(late_answer), answer) == (DeadlineExceeded, twice(2))
        assert scene.script.sizes == [1]


async def test_the_model_stays_while_any_of_its_shared_run_is_left(tmp_path: Path) -> None:
    gate = threading.Event()
    async with busy(tmp_path, rowed(run_may_end=gate, is_deaf=True)) as scene:
        for number in (1, 2):
            scene.ask(number)
        await turns(3)
        scene.free.set()
        await until(scene.script.run_started.is_set)
        scene.lease.end()
        for request in scene.requests:
            request.cancel()
        await asyncio.wait(scene.requests)
        await scene.stage.memory.attempt_cleanup(everything=True)
        assert scene.script.closes == 0
        gate.set()
        await scene.stage.settled()
        assert scene.stage.info("a").leases == 0


async def test_the_arena_that_refuses_a_batch_takes_its_requests_one_by_one(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        refused: list[int] = []
        model = scene.runs.model
        run = model.run

        def run_refusing(feeds: Any, outputs: Sequence[str], cancel: Any) -> Any:
            if len(feeds["x"]) > 1:
                refused.append(len(feeds["x"]))
                raise ActivationsFull("the arena is full", needed_bytes=2, available_bytes=1)
            return run(feeds, outputs, cancel)

        model.run = run_refusing  # type: ignore[method-assign]
        for number in (1, 2):
            scene.ask(number)
        assert await scene.answers() == [twice(1), twice(2)]
        assert refused == [2]
        assert scene.runs.rule is not None  # memory says nothing about the model's rows


async def test_large_outputs_that_are_kept_hold_their_own_rows_only(tmp_path: Path) -> None:
    async with busy(tmp_path, rowed(width=8192, run_footprint=footprint(row_bytes=64 << 10))) as scene:

        def keep(arrays: list[np.ndarray]) -> Kept[np.ndarray]:
            return Kept(arrays[0], arrays[0].nbytes)

        feeds = {"x": np.ones((1, 8192), np.float32)}
        keeping = scene.stage.begin(scene.lease.run_checked(feeds, ["y"], keep))
        scene.run(feeds)
        await scene.answers()
        with await soon(keeping) as output:
            assert output.base is None  # a view would hold the whole batch
            assert scene.stage.pool.activations.claimed_bytes == output.nbytes
        assert scene.script.sizes == [2]
        assert scene.stage.pool.activations.claimed_bytes == 0


# --- bounds --------------------------------------------------------------------------------------------


async def test_requests_that_joined_a_batch_count_as_waiting(tmp_path: Path) -> None:
    async with busy(tmp_path, max_queue=3) as scene:
        for number in range(4):
            scene.ask(number)
        *answers, refused = await scene.answers()
        assert answers == [twice(number) for number in range(3)]
        assert isinstance(refused, Overloaded)
        assert refused.details() == {"queue": "the queue for inference threads", "waiting": 3, "limit": 3}


async def test_requests_that_wait_for_their_delay_count_as_waiting(tmp_path: Path) -> None:
    batching = {"max_delay": LONG_S}
    async with Stage(tmp_path, {"a": rowed()}, batching=batching, threads=1, max_queue=2) as stage:
        lease = await stage.pool.acquire("a")
        requests = [stage.begin(lease.run(row(number))) for number in range(3)]  # one of them could have a thread
        await turns(3)
        with pytest.raises(Overloaded):
            await soon(lease.run(row(9)))
        lease.end()
        await soon(stage.pool.close())
        await soon(asyncio.gather(*requests))
        assert stage.script("a").sizes == [3]


async def test_what_has_begun_or_ended_counts_no_more(tmp_path: Path) -> None:
    """Many times over, so that a count that drifts by one would show."""
    gate = threading.Event()
    gate.set()
    scripts = {"a": rowed(run_may_end=gate)}
    bounds = {"max_queue": 5, "max_queue_per_model": 4}
    async with Stage(tmp_path, scripts, threads=1, **bounds) as stage, stage.pool.lease("a") as lease:
        for _ in range(30):
            gate.clear()
            stage.script("a").run_started.clear()
            first = stage.begin(lease.run(row(0)))
            await until(stage.script("a").run_started.is_set)
            waiting = [stage.begin(lease.run(row(number))) for number in range(4)]
            await turns(2)
            with pytest.raises(Overloaded):
                await lease.run(row(9))
            stage.script("a").run_started.clear()
            gate.set()
            await soon(asyncio.gather(first, *waiting))
        assert stage.script("a").sizes == [1, 4] * 30


async def test_a_batch_that_waited_for_its_delay_was_admitted_and_is_not_refused(tmp_path: Path) -> None:
    async with busy(tmp_path, max_queue=2, batching={"max_delay": 0.002}) as scene:
        for number in (1, 2):
            scene.ask(number)
        await turns(3)
        await until(lambda: scene.stage.runner.in_flight == 2)  # its delay is over, and the queue is full
        assert await scene.answers() == [twice(1), twice(2)]


# --- what pays, and who may ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("single_ns", "both_ns", "runs", "sizes"),
    [
        (10_000_000, 15_000_000, 3, [2]),
        (10_000_000, 19_000_000, 3, [1, 1]),
        (10_000_000, 40_000_000, 2, [2]),  # not believed yet
    ],
)
async def test_runs_that_do_not_pay_are_not_joined(
    tmp_path: Path, single_ns: int, both_ns: int, runs: int, sizes: list[int]
) -> None:
    async with busy(tmp_path) as scene:
        times = scene.runs._times.setdefault((row(1)["x"].shape[1:],), RowTimes())
        for _ in range(runs):
            times.note(1, single_ns)
            times.note(2, both_ns)
        for number in (1, 2):
            scene.ask(number)
        assert await scene.answers() == [twice(1), twice(2)]
        assert scene.script.sizes == sizes


def test_sizes_that_did_not_pay_are_tried_again_now_and_then_and_believed_when_they_do() -> None:
    times = RowTimes()
    for _ in range(3):
        times.note(1, 10_000_000)
        times.note(8, 80_000_000)
    tries = [pays(times, 1, 8) for _ in range(128)]
    assert tries.count(True) == 2
    times.note(8, 30_000_000)
    assert all(pays(times, 1, 8) for _ in range(10))


@pytest.mark.parametrize("answered", [1, 0])
async def test_a_model_whose_answers_have_other_rows_is_batched_once(tmp_path: Path, answered: int) -> None:
    options = {"options": {"a": {"batching": True}}}
    script = rowed(answered_rows=answered, run_footprint=footprint(independent=None))
    async with busy(tmp_path, script, models=options) as scene:
        for number in (1, 2):
            scene.ask(number)
        assert await scene.answers() == [twice(1)[:answered], twice(2)[:answered]]
        assert script.sizes == [2, 1, 1]
        assert scene.runs.rule is None
        await soon(asyncio.gather(*(scene.lease.run(row(number)) for number in (1, 2))))
        assert script.sizes == [2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("enabled", "said", "independent", "is_shared"),
    [
        (True, None, True, True),
        (True, None, False, False),
        (True, None, None, False),
        (True, True, None, True),
        (True, True, False, True),
        (True, False, True, False),
        (False, None, True, False),
        (False, True, True, False),
    ],
)
async def test_switches(
    tmp_path: Path, enabled: bool, said: bool | None, independent: bool | None, is_shared: bool
) -> None:
    options = {} if said is None else {"options": {"a": {"batching": said}}}
    script = rowed(run_footprint=footprint(independent=independent))
    async with busy(tmp_path, script, models=options, batching={"enabled": enabled}) as scene:
        pool = scene.stage.pool
        assert (pool.batch_rule(*await pool.describe("a")) is not None) is is_shared
        for number in (1, 2):
            scene.ask(number)
        assert await scene.answers() == [twice(1), twice(2)]
        assert script.sizes == ([2] if is_shared else [1, 1])
        scene.lease.end()
        await soon(pool.unload("a"))
        assert (pool.batch_rule(*await pool.describe("a")) is not None) is is_shared


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "FP32", shape)


def shaped(*places: tuple[str, int], independent: bool | None = True) -> RunFootprint:
    return RunFootprint((), {"rows": places} if places else {}, "rows" if places else "", independent)


ROW_OF_X = shaped(("x", 0))


@pytest.mark.parametrize(
    ("inputs", "outputs", "footprint", "said", "expected"),
    [
        ([spec("x", -1, 2)], [spec("y", -1)], ROW_OF_X, None, True),
        ([spec("x", -1, 2)], [spec("y", -1)], ROW_OF_X, False, False),
        ([spec("x", -1, 2)], [spec("y", -1)], None, None, False),
        ([spec("x", -1, 2)], [spec("y", -1)], None, True, True),
        ([spec("x", -1, 2)], [spec("y", -1)], shaped(("x", 0), independent=False), None, False),
        ([spec("x", -1, 2)], [spec("y", -1)], shaped(("x", 0), independent=None), None, False),
        ([spec("x", -1, 2)], [spec("y", -1)], shaped(), None, False),
        ([spec("x", -1, -1)], [spec("y", -1)], shaped(("x", 1)), None, False),
        ([spec("x", -1, -1)], [spec("y", -1)], shaped(("x", 0), ("x", 1)), None, False),
        ([spec("x", -1), spec("w", -1)], [spec("y", -1)], ROW_OF_X, None, False),
        ([spec("x", -1), spec("w", -1)], [spec("y", -1)], shaped(("x", 0), ("w", 0)), None, True),
        ([spec("x", 1, 2)], [spec("y", -1)], ROW_OF_X, True, False),
        ([spec("x", -1, 2)], [spec("y", 1)], ROW_OF_X, True, False),
        ([spec("x", -1, 2)], [spec("y")], ROW_OF_X, True, False),
        ([spec("x")], [spec("y", -1)], ROW_OF_X, True, False),
        ([TensorSpec("x", "FP32", None)], [spec("y", -1)], ROW_OF_X, True, False),
        ([spec("x", -1)], [TensorSpec("y", "FP32", None)], ROW_OF_X, True, False),
        ([spec("x", -1)], [TensorSpec.structured("y")], ROW_OF_X, True, False),
        ([], [spec("y", -1)], shaped(), True, False),
    ],
)
def test_rows_are_independent(
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    footprint: RunFootprint | None,
    said: bool | None,
    expected: bool,
) -> None:
    by_name = ({one.name: one for one in specs} for specs in (inputs, outputs))
    assert rows_are_independent(*by_name, footprint, said) is expected


async def test_requests_that_always_share_a_run_are_known_to_be_short_all_the_same(tmp_path: Path) -> None:
    async with busy(tmp_path) as scene:
        for number in range(4):
            scene.ask(number)
        await scene.answers()
        assert scene.script.sizes == [4]
        alone, shared = (scene.runs.demand.rows_like(row(1), rows) for rows in (1, 4))
        assert alone.runs == 4
        assert alone.run_ns == shared.run_ns


async def test_a_model_that_has_left_does_not_wait_for_a_collection(tmp_path: Path) -> None:
    async with Stage(tmp_path, {"a": rowed()}) as stage:
        async with stage.pool.lease("a") as lease:
            await lease.run(row(1))
            model = weakref.ref(lease._runs.model)
        del lease
        gc.disable()
        try:
            await stage.pool.unload("a")
            await until(lambda: model() is None)
        finally:
            gc.enable()
