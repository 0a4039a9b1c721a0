"""A pool on a scripted runtime and scripted memory, in a real repository of files that nobody reads.

256 MB, of which the host itself holds 60: warning at 172 MB, critical at 192 MB. Five models of 20 MB fit
below warning.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from modelhost.config import BatchingSettings, MemorySettings, ModelsSettings, PoolSettings
from modelhost.memory import MemoryManager
from modelhost.memory.board import Siblings
from modelhost.pool import ModelInfo, Pool, Runner
from modelhost.pool.guard import RunGuard
from modelhost.pool.runs import ModelRuns
from modelhost.repository import Repository
from modelhost.runtime.fake import FakeMemory, FakeRuntime, FakeScript

MB = 1 << 20
_UNGRANTED = ("queued", "preparing", "loading", "unloading")
FEEDS = {"x": np.ones(2, np.float32)}


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class StopWatch:
    """A runner's clock: whatever is timed has taken `took_ns`, however busy the machine is."""

    def __init__(self, took_ns: int = 1000) -> None:
        self.took_ns = took_ns
        self._now_ns = 0

    def __call__(self) -> int:
        self._now_ns += self.took_ns
        return self._now_ns


class ByHand(RunGuard):
    """A guard without a thread: it looks when a test has it look."""

    def _start(self) -> None:
        pass


def put_models(directory: Path, names: Iterable[str], version: str = "1") -> Path:
    """Writes `<name>/<version>/model.onnx` of one byte for each name."""
    for name in names:
        file = directory / name / version / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return directory


def know(runs: ModelRuns, feeds: dict[str, np.ndarray] = FEEDS, *, run_ns: int = 1000, output_bytes: int = 8) -> None:
    """Has a run's figures known, as two runs on a thread would have left them."""
    for _ in range(2):
        runs.demand.look(feeds).note(run_ns, output_bytes)


async def until(condition: Callable[[], object], *, seconds: float = 10) -> None:
    """Turns the loop until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came to hold"
        await asyncio.sleep(0)


async def turns(count: int) -> None:
    """Lets everybody else have `count` turns of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def soon(awaitable: Awaitable[Any], *, seconds: float = 10) -> Any:
    """Awaits what has to come; a hang fails the test that it happens in."""
    return await asyncio.wait_for(awaitable, seconds)


class Stage:
    """The pool, with everything that it stands on. `sampling` looks at memory every millisecond."""

    def __init__(
        self,
        directory: Path,
        scripts: dict[str, FakeScript] | None = None,
        *,
        names: Iterable[str] = (),
        limit_bytes: int = 256 * MB,
        machine: FakeMemory | None = None,
        threads: int = 4,
        max_queue: int = 256,
        max_queue_per_model: int | None = None,
        ceiling_bytes: int = 64 * MB,
        sampling: bool = False,
        siblings: Siblings | None = None,
        memory: dict[str, Any] | None = None,
        models: dict[str, Any] | None = None,
        runner: dict[str, Any] | None = None,
        batching: dict[str, Any] | None = None,
        **pool: Any,
    ) -> None:
        self.clock = Clock()
        self.machine = machine or FakeMemory(limit_bytes)
        self.runtime = FakeRuntime(self.machine, scripts)
        for name in names:
            self.runtime.scripts.setdefault(name, FakeScript())
        self.directory = put_models(directory, self.runtime.scripts)
        self.memory = MemoryManager(
            MemorySettings(sample_interval_s=0.001, **memory or {}), probe=self.machine, siblings=siblings
        )
        self.runner = Runner(
            threads=threads, max_waiting=max_queue, max_waiting_per_model=max_queue_per_model, **runner or {}
        )
        self.pool = Pool(
            repository=Repository(directory),
            runtime=self.runtime,
            memory=self.memory,
            runner=self.runner,
            activation_ceiling_bytes=ceiling_bytes,
            settings=PoolSettings(**pool),
            models=ModelsSettings(directory=directory, **models or {}),
            batching=BatchingSettings(**batching or {}),
            clock=self.clock,
        )
        self._sampling = sampling

    async def __aenter__(self) -> Stage:
        await self.pool.catalog.scan()
        self.memory.set_baseline()
        if self._sampling:
            self.memory.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.pool.close()
        await self.memory.close()
        assert self.violations == []

    # --- doing ------------------------------------------------------------------------------------

    def script(self, name: str) -> FakeScript:
        return self.runtime.scripts[name]

    async def use(self, *names: str) -> None:
        """Loads and uses models one after another; they are idle afterwards, the last one used last."""
        for name in names:
            async with self.pool.lease(name) as lease:
                await lease.run(FEEDS)

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a request."""
        return asyncio.get_running_loop().create_task(work)

    async def settled(self) -> None:
        """Waits until nothing is under way: no run, load, unload or trim, and no one waits."""
        await until(lambda: self.is_settled)
        await turns(5)
        await until(lambda: self.is_settled)  # the sampler may have begun a clean-up in these turns

    # --- looking ----------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        found = self.pool.snapshot()
        return (
            not found.waiting
            and not found.in_flight
            and not self.memory.is_changing
            and all(model.state == "ready" for model in found.models)
        )

    @property
    def loaded(self) -> list[str]:
        """The names of the ready models, sorted."""
        return sorted(model.name for model in self.pool.snapshot().models if model.state == "ready")

    def states(self) -> dict[str, str]:
        return {model.name: model.state for model in self.pool.snapshot().models}

    def info(self, name: str) -> ModelInfo:
        return next(model for model in self.pool.snapshot().models if model.name == name)

    @property
    def violations(self) -> list[str]:
        """What the pool did and must never do."""
        return [f"{name}: {text}" for name, script in self.runtime.scripts.items() for text in script.violations]

    def check(self) -> None:
        """Asserts what holds at every moment."""
        found, ledger = self.pool.snapshot(), self.memory.ledger
        assert ledger.totals == ledger.reconcile()
        assert self.violations == []
        holding = [model for model in found.models if model.state not in ("queued", "gone")]
        assert ledger.open_count == len(holding) == found.reservations
        assert all(model.leases >= 0 for model in found.models)
        assert all(model.leases == 0 for model in found.models if model.state in _UNGRANTED)
        totals = ledger.totals
        booked = totals.loading_bytes + totals.resident_bytes + totals.leaving_bytes
        assert booked == sum(model.committed_bytes for model in holding)

    def check_at_rest(self) -> None:
        """Asserts what holds when every request has ended: nobody waits, and only loaded models hold anything."""
        self.check()
        found = self.pool.snapshot()
        assert found.waiting == 0
        assert found.in_flight == 0
        assert (self.pool.activations.claimed_bytes, self.pool.activations.waiting) == (0, 0)
        unsettled = [model for model in found.models if model.leases or model.waiting or model.state != "ready"]
        assert unsettled == [], unsettled
        assert self.memory.ledger.open_count == len(found.models)
        assert self.machine.committed_bytes() - self.machine.baseline_bytes - self.machine.other_bytes == sum(
            script.resident_bytes * script.copies + script.leaked_bytes * script.closes
            for script in self.runtime.scripts.values()
        )
