"""Long random sequences of everything that can happen to a pool; the seed of a failure is in its name."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_stage import FEEDS, MB, Stage, soon, until
from sizes import FULL

from modelhost.errors import ActivationsFull, ModelHostError
from modelhost.pool import Lease, Timing
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

pytestmark = pytest.mark.anyio

SEEDS = range(100 if FULL else 8)
STEPS = 1200

#: What other users of the memory take at most, unannounced.
OTHERS_BYTES = 50 * MB


class Actor:
    """Does random things to a pool and keeps what it has to give back."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.random = stage, random.Random(seed)
        self.names = sorted(stage.runtime.scripts)
        self.leases: list[Lease] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def step(self) -> None:
        actions = [self.acquire] * 8 + [self.release] * 7 + [self.run, self.run, self.cancel, self.cancel]
        actions += [self.run_some, self.run_in_place]
        actions += [self.unload, self.load, self.clean_up, self.let_fail, self.others, self.time]
        actions += [self.change_files, self.damage, self.scan, self.scan, self.remove]
        self.random.choice(actions)()
        for _ in range(self.random.choice((0, 0, 1, 2, 5, 30))):
            await asyncio.sleep(0)

    def finish(self) -> None:
        """Gives everything back, and lets every model load."""
        while self.leases:
            self.leases.pop().end()
        self.stage.machine.other_bytes = 0
        for script in self.stage.runtime.scripts.values():
            script.load_error = None
            script.unusable_artifacts = 0
        for name in self.names:
            (self.stage.directory / name / "1/model.onnx").write_bytes(b"x")
        self.stage.clock.now += 10

    # --- what may happen --------------------------------------------------------------------------

    def acquire(self) -> None:
        async def request(name: str) -> None:
            self.leases.append(await self.stage.pool.acquire(name))

        self._begin(request(self._name()))

    def release(self) -> None:
        if self.leases:
            self.leases.pop(self.random.randrange(len(self.leases))).end()

    def run(self) -> None:
        async def request(lease: Lease) -> None:
            number = self.random.random()
            deadline = asyncio.get_running_loop().time() + self.random.choice((0.001, 60, 60))
            answers = await lease.run({"x": np.array([number, 1], np.float32)}, deadline=deadline)
            assert answers["y"].tolist() == [np.float32(number) * 2, 2.0]

        if self.leases:
            self._begin(request(self.random.choice(self.leases)))

    def run_some(self) -> None:
        for _ in range(self.random.randrange(5)):
            self.run()

    def run_in_place(self) -> None:
        slot = self.stage.pool.resident((self._name(), None))
        if slot is not None and slot.runs is not None:
            with contextlib.suppress(ActivationsFull):
                if slot.runs.try_in_place(FEEDS, ["y"], Timing(0)) is not None:
                    self.stage.pool.touch(slot)

    def cancel(self) -> None:
        if self.tasks:
            self.random.choice(sorted(self.tasks, key=id)).cancel()

    def unload(self) -> None:
        self._begin(self.stage.pool.unload(self._name()))

    def load(self) -> None:
        self._begin(self.stage.pool.load(self._name()))

    def clean_up(self) -> None:
        self._begin(self.stage.memory.attempt_cleanup(everything=self.random.random() < 0.3))

    def let_fail(self) -> None:
        script = self.stage.script(self._name())
        script.load_error = None if script.load_error else "broken for a while"

    def change_files(self) -> None:
        """New files: a child has to open them first."""
        script = self.stage.script(self._name())
        script.is_prepared, script.fingerprint = False, (self.random.random(),)  # type: ignore[assignment]

    def scan(self) -> None:
        self._begin(self.stage.pool.catalog.scan())

    def remove(self) -> None:
        """Takes a model's files away, or brings them back; half of the time others think that they are half there."""
        file = self.stage.directory / self._name() / "1/model.onnx"
        if file.exists() and self.random.random() < 0.5:
            file.unlink()
        else:
            file.write_bytes(self.random.choice((b"", b"x", b"x")))

    def damage(self) -> None:
        self.stage.script(self._name()).unusable_artifacts = self.random.choice((0, 1))

    def others(self) -> None:
        self.stage.machine.other_bytes = self.random.choice((0, 0, 5 * MB, 25 * MB, OTHERS_BYTES))

    def time(self) -> None:
        self.stage.clock.now += self.random.choice((0.1, 1, 6))

    def _name(self) -> str:
        return self.random.choice(self.names)

    def _begin(self, work: object) -> None:
        async def run() -> None:
            try:
                await work  # type: ignore[misc]
            except ModelHostError as error:
                assert error.details() is not None  # a refusal: one that can be shown

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        # A task cancelled before its first step never awaits what it was given.
        task.add_done_callback(lambda _: work.close())  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happens_the_books_are_right_and_nothing_is_left_behind(tmp_path: Path, seed: int) -> None:
    sizes = random.Random(seed)
    scripts = {}
    for name in "abcdefgh":
        resident = sizes.choice((1, 10, 20) if name == "a" else (1, 10, 20, 40, 80)) * MB  # a may be pinned
        estimate = resident + sizes.choice((0, 0, 5)) * MB
        child = sizes.choice((None, 10, 60))
        child = child and child * MB
        scripts[name] = FakeScript(
            resident_bytes=resident,
            estimate_bytes=estimate,
            peak_bytes=estimate + sizes.choice((0, 10)) * MB,
            child_bytes=child,
            child_estimate_bytes=child and child // sizes.choice((1, 3)),
            run_bytes=sizes.choice((0, 2, 30, 64)) * MB,
        )
        predicted_bytes = scripts[name].run_bytes - sizes.choice((0, 0, 1)) * MB  # seldom too little
        if predicted_bytes > 0:
            scripts[name].run_footprint = RunFootprint((Term(predicted_bytes),), {})
    models: dict[str, Any] = {"pinned": ("a",)} if sizes.random() < 0.3 else {}
    # Of a model without a footprint of rows, its options have to say that its numbers may be rows.
    models["options"] = {name: {"batching": True} for name in "acegh"}
    batching = {"max_rows": sizes.choice((4, 64)), "max_delay": sizes.choice((0, 0, 0.001))}
    threads, max_queue = sizes.choice(((1, 8), (1, 256), (4, 256)))
    ttl = sizes.choice((0, 3))
    async with Stage(
        tmp_path,
        scripts,
        sampling=True,
        max_waiting=40,
        models=models,
        batching=batching,
        threads=threads,
        max_queue=max_queue,
        idle_ttl=ttl,
    ) as stage:
        stage.machine.arena_bytes = stage.pool.activations.ceiling_bytes
        actor = Actor(stage, seed)
        for _ in range(STEPS):
            await actor.step()
            stage.check()
            assert stage.machine.highest_bytes < stage.machine.limit_bytes + OTHERS_BYTES

        # Everything that is given back lets everybody who waits go on.
        actor.finish()
        while actor.tasks:
            await soon(asyncio.wait(set(actor.tasks), return_when=asyncio.FIRST_COMPLETED))
            actor.finish()
        await stage.pool.catalog.scan()
        await stage.settled()
        stage.check_at_rest()

        # Every model can be used, and when all have left nothing is held.
        stage.clock.now += 1000
        for name in scripts:
            await soon(stage.use(name))
        await asyncio.gather(*(stage.pool.unload(name) for name in scripts))
        await until(lambda: not stage.states())
        assert stage.machine.committed_bytes() == stage.machine.baseline_bytes
        assert stage.memory.ledger.open_count == 0
