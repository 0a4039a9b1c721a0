"""Properties of the pool: whatever comes in whatever order, the books are right after every step, and nothing is left.

Beside the random events of test_random_events.py, which are about memory: threads and their bounds, runs that share,
that wait for memory and pass each other, deadlines, crashes of workers, files that change. What fails is shrunk.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pool_stage import MB, Stage, soon, turns, until
from sizes import FULL

from modelhost.errors import ModelHostError, RunFailed, WorkerCrashed
from modelhost.pool import Lease
from modelhost.pool.changes import SETTLE_S
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

EXAMPLES = 2000 if FULL else 15
STEPS = 60 if FULL else 30

ROWS = RunFootprint((Term(1 << 10, ("rows",)),), {"rows": (("x", 0),)}, "rows", True)
NAMES = "abcdef"
ISOLATED = "d"


def fixed(megabytes: int) -> RunFootprint:
    return RunFootprint((Term(megabytes * MB),), {})


def scripts() -> dict[str, FakeScript]:
    """Short runs, runs that share, runs that need most of the arena, a worker process, models that fill the memory."""
    return {
        "a": FakeScript(resident_bytes=MB, run_footprint=fixed(1)),
        "b": FakeScript(resident_bytes=MB, run_footprint=ROWS, width=2),
        "c": FakeScript(resident_bytes=MB, run_footprint=fixed(40), run_bytes=40 * MB),
        "d": FakeScript(resident_bytes=20 * MB, run_footprint=fixed(30), run_bytes=8 * MB, is_isolated=True),
        "e": FakeScript(resident_bytes=80 * MB),
        "f": FakeScript(resident_bytes=90 * MB, child_bytes=100 * MB),
    }


@dataclass(frozen=True, slots=True)
class Setting:
    threads: int
    max_queue: int
    per_model: int | None
    cap: int | None
    max_rows: int
    max_delay_s: float


class World:
    """A pool, and what is done to it. Each action takes a number, which chooses among what there is."""

    def __init__(self, stage: Stage, setting: Setting) -> None:
        self.stage, self.setting = stage, setting
        self.leases: list[Lease] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.files = 1

    # --- what may happen --------------------------------------------------------------------------------

    def acquire(self, number: int) -> None:
        async def request() -> None:
            self.leases.append(await self.stage.pool.acquire(NAMES[number % len(NAMES)]))

        self._begin(request())

    def release(self, number: int) -> None:
        if self.leases:
            self.leases.pop(number % len(self.leases)).end()

    def run(self, number: int, *, within_s: float = 60.0) -> None:
        if self.leases:
            self._begin(self._run(self.leases[number % len(self.leases)], float(number), within_s))

    def run_late(self, number: int) -> None:
        self.run(number, within_s=0.0)

    def run_some(self, number: int) -> None:
        for _ in range(number % 9):
            self.run(number // 9)

    async def _run(self, lease: Lease, number: float, within_s: float) -> None:
        has_rows = lease.key.name == "b"
        given = np.full((int(number) % 3 + 1, 2) if has_rows else 2, number, np.float32)
        deadline = asyncio.get_running_loop().time() + within_s
        answers = await lease.run({"x": given}, deadline=deadline)
        assert answers["y"].tolist() == (given * 2).tolist()

    def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)].cancel()

    def hold_runs(self, number: int) -> None:
        """Runs of a model, or of all, do not end from here on."""
        for script in self._scripts(number):
            if script.run_may_end is None:
                script.run_may_end = threading.Event()

    def let_runs_end(self, number: int) -> None:
        for script in self._scripts(number):
            if script.run_may_end is not None:
                script.run_may_end.set()
                script.run_may_end = None

    def fail_runs(self, number: int) -> None:
        script = self._script(number)
        script.run_error = None if script.run_error else RunFailed("for a while")

    def fail_loads(self, number: int) -> None:
        script = self._script(number)
        script.load_error = None if script.load_error else "broken for a while"

    def crash(self, number: int) -> None:
        """The worker process ends, whatever it was at; what it ran fails, until somebody mends that."""
        script, reason = self.stage.script(ISOLATED), f"it ended with signal {number}"
        if script.ended is not None:
            script.run_error = WorkerCrashed(reason)
            script.ended(reason)

    def change_files(self, number: int) -> None:
        self.files += 1
        self._script(number).fingerprint = (self.files,)

    def settle_files(self, number: int) -> None:
        async def look() -> None:
            for _ in range(2):
                await self.stage.pool.catalog.scan()
                self.stage.clock.now += SETTLE_S

        self._begin(look())

    def unload(self, number: int) -> None:
        self._begin(self.stage.pool.unload(NAMES[number % len(NAMES)]))

    def load(self, number: int) -> None:
        self._begin(self.stage.pool.load(NAMES[number % len(NAMES)]))

    def clean_up(self, number: int) -> None:
        self._begin(self.stage.memory.attempt_cleanup(everything=number % 2 == 0))

    def others(self, number: int) -> None:
        """Others in the container take memory."""
        self.stage.machine.other_bytes = (0, 5 * MB, 40 * MB)[number % 3]

    def time(self, number: int) -> None:
        self.stage.clock.now += (0.1, 1.0, 6.0)[number % 3]

    def _script(self, number: int) -> FakeScript:
        return self.stage.script(NAMES[number % len(NAMES)])

    def _scripts(self, number: int) -> list[FakeScript]:
        return [self._script(number)] if number % 2 else list(self.stage.runtime.scripts.values())

    def _begin(self, work: Coroutine[Any, Any, Any]) -> None:
        async def request() -> None:
            try:
                await work
            except ModelHostError as error:
                assert error.details() is not None

        task = self.stage.begin(request())
        self.tasks.append(task)
        task.add_done_callback(self._done)
        task.add_done_callback(lambda _: work.close())  # of one that was cancelled before its first step

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.remove(task)
        if not task.cancelled():
            task.result()

    async def begin(self) -> None:
        """Takes a lease on each of the small models, so that there is something to run."""
        for name in "abcd":
            self.leases.append(await self.stage.pool.acquire(name))

    async def pause(self, count: int) -> None:
        """Turns the loop so often; at the most until only runs that are held are in progress."""
        if count < MOST_TURNS:
            await turns(count)
            return
        try:
            await until(lambda: self._is_still)
        except AssertionError as error:
            lanes = {lane.name: (lane._running, len(lane._jobs)) for lane in self.stage.runner._lanes.values()}
            raise AssertionError(f"{error}: {lanes}, memory changes: {self.stage.memory.is_changing}") from None

    @property
    def _is_still(self) -> bool:
        lanes = self.stage.runner._lanes.values()
        held = {f"{name}:1" for name in NAMES if self.stage.script(name).run_may_end is not None}
        waits = [lane for lane in lanes if lane._jobs and lane.name not in held]
        runs = [lane for lane in lanes if lane._running and lane.name not in held]
        free = sum(lane._running for lane in lanes) < self.stage.runner.threads
        return not runs and not (waits and free) and not self.stage.memory.is_changing

    # --- what has to be so --------------------------------------------------------------------------------

    def check(self) -> None:
        """Asserts what holds after every step."""
        stage, runner, gate = self.stage, self.stage.runner, self.stage.pool.activations
        stage.check()
        lanes = runner._lanes.values()
        assert runner.in_flight == sum(lane.in_flight for lane in lanes)
        assert runner._admitted == sum(lane.admitted for lane in lanes)
        for lane in lanes:
            assert lane.in_flight >= 0
            assert lane.admitted >= 0
            assert 0 <= lane._running <= (lane.max_running or runner.threads)
            assert bool(lane._jobs) == (lane in runner._queue._waiting)
            if self.setting.per_model is not None:
                assert runner._waiting_in(lane) <= self.setting.per_model
        assert runner._waiting <= runner.max_waiting
        assert sum(lane._running for lane in lanes) <= runner.threads + 1  # the spare thread
        most_bytes = gate.ceiling_bytes + gate.ceiling_bytes // 16  # short runs that pass the line
        assert 0 <= gate.claimed_bytes <= most_bytes
        assert 0 <= gate._passing_bytes <= gate.claimed_bytes
        moves = gate._active or stage.memory.is_changing or gate._making_room or stage.runtime.preparing_bytes()
        assert moves or not gate.waiting, "nothing ends that the line for memory waits for"
        for slot in stage.pool._table:
            assert slot.leases >= sum(lease._runs is slot.runs for lease in self.leases if slot.runs is not None)
            assert (slot in stage.pool._table.queue) == (slot.state.value == "queued")
            assert slot.predecessor is None or slot.predecessor.successor is slot
        idle = {candidate.key for candidate in stage.pool._table.candidates()}
        assert idle == {slot.key for slot in stage.pool._table.loaded() if not slot.leases}

    async def finish(self) -> None:
        """Gives everything back; all that waits has to end, every model has to load, and nothing may be left."""
        stage = self.stage
        stage.machine.other_bytes = 0
        self.let_runs_end(0)
        for script in stage.runtime.scripts.values():
            script.run_error = script.load_error = None
        while self.tasks or self.leases:
            while self.leases:
                self.leases.pop().end()
            stage.clock.now += 10
            if self.tasks:
                await asyncio.wait(tuple(self.tasks), timeout=0.01)
            self.check()
        await until(lambda: not stage.pool._restarts._tasks)
        await stage.pool.catalog.scan()
        await stage.settled()
        stage.check_at_rest()
        runner = stage.runner
        assert runner._admitted == sum(count for _, count in runner._begun), "more wait than there are"
        stage.clock.now += 1000
        for name in NAMES:
            feeds = {"x": np.ones((1, 2) if name == "b" else 2, np.float32)}
            async with stage.pool.lease(name) as lease:
                await soon(lease.run(feeds))
        await asyncio.gather(*[stage.pool.unload(name) for name in NAMES])
        await until(lambda: not stage.states())
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.memory.ledger.open_count == 0


ACTIONS: dict[str, Callable[[World, int], None]] = {
    name: action
    for name, action in vars(World).items()
    if not name.startswith("_") and name not in ("begin", "pause", "check", "finish")
}
#: What makes the others meet something comes more often.
OFTEN = ("acquire", "run", "run_some", "hold_runs", "let_runs_end")

SETTINGS = st.builds(
    Setting,
    threads=st.integers(1, 3),
    max_queue=st.sampled_from((3, 16)),
    per_model=st.sampled_from((None, 2)),
    cap=st.sampled_from((None, 1, 2)),
    max_rows=st.sampled_from((3, 64)),
    max_delay_s=st.sampled_from((0.0, 0.001)),
)
MOST_TURNS = 4
STEP = st.tuples(st.sampled_from(sorted(ACTIONS) + 6 * sorted(OFTEN)), st.integers(0, 59), st.integers(0, MOST_TURNS))


async def play(directory: Path, setting: Setting, steps: list[tuple[str, int, int]]) -> None:
    options = {name: {"max_concurrency": setting.cap} for name in NAMES} if setting.cap else {}
    async with Stage(
        directory,
        scripts(),
        sampling=True,
        threads=setting.threads,
        max_queue=setting.max_queue,
        max_queue_per_model=setting.per_model,
        max_waiting=12,
        models={"options": options},
        batching={"max_rows": setting.max_rows, "max_delay": setting.max_delay_s},
        failure_backoff_s=0.01,
        failure_backoff_max_s=0.02,
    ) as stage:
        stage.machine.arena_bytes = stage.pool.activations.ceiling_bytes
        world = World(stage, setting)
        await world.begin()
        try:
            for name, number, count in steps:
                ACTIONS[name](world, number)
                world.check()
                await world.pause(count)
                world.check()
            await world.finish()
        finally:
            world.let_runs_end(0)  # else the end of the pool would wait for them


@pytest.mark.timeout(1800 if FULL else 60)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(setting=SETTINGS, steps=st.lists(STEP, min_size=STEPS // 2, max_size=STEPS))
def test_whatever_comes_in_whatever_order_the_books_are_right(
    setting: Setting, steps: list[tuple[str, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(play(Path(directory), setting, steps))
