"""A scripted runtime and the memory that it pretends to use: for tests, and for measuring overhead.

Models load instantly or on command, have a chosen size, and fail on load or run when told to. The
memory that they hold shows in `FakeMemory`, which stands in for the kernel's figures.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modelhost.config import ModelOptions
from modelhost.errors import ActivationsFull, DeadlineExceeded, InvalidRequest
from modelhost.memory.probe import LimitSource, Usage
from modelhost.prepare.footprint import RunFootprint
from modelhost.runtime.base import (
    ArtifactUnusable,
    CancelToken,
    Inspection,
    LoadError,
    LoadPlan,
    NeedsMemory,
    Preparation,
)
from modelhost.tensors import Array, TensorSpec

_MB = 1 << 20

#: A test that forgets to set an event fails instead of hanging.
_PATIENCE_S = 30.0


class FakeMemory:
    """A machine with `limit_bytes` of memory; implements MemoryProbe."""

    def __init__(self, limit_bytes: int = 256 * _MB, baseline_bytes: int = 60 * _MB) -> None:
        self.limit_bytes = limit_bytes
        self.limit_source: LimitSource = "cgroup v2"
        self.baseline_bytes = baseline_bytes
        self.other_bytes = 0
        """Usage that no model accounts for; tests set it."""
        self.highest_bytes = baseline_bytes
        """The most that was ever used."""
        self.arena_bytes: int | None = None
        """What all runs together may take; as much as they like where None."""
        self.runs_bytes = 0
        """What runs take now."""
        self._models_bytes = 0
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Takes (or, negative, gives back) memory."""
        with self._lock:
            self._models_bytes += size_bytes
            self.highest_bytes = max(self.highest_bytes, self.committed_bytes())

    @property
    def sees_children(self) -> bool:
        """A fake child's memory is in the figures."""
        return True

    def begin_run(self, size_bytes: int) -> None:
        """Takes memory for a run; what `end_run` gives back. Raises ActivationsFull where the arena has less."""
        with self._lock:
            free_bytes = math.inf if self.arena_bytes is None else self.arena_bytes - self.runs_bytes
            if size_bytes > free_bytes:
                raise ActivationsFull("the arena is full", needed_bytes=size_bytes, available_bytes=int(free_bytes))
            self.runs_bytes += size_bytes
        self.add(size_bytes)

    def end_run(self, size_bytes: int) -> None:
        """Gives back what `begin_run` took."""
        with self._lock:
            self.runs_bytes -= size_bytes
        self.add(-size_bytes)

    def refresh(self) -> None:
        """Nothing: tests set the limit themselves."""

    def configure(self, limit_bytes: int | None) -> None:
        """Sets the limit, where one is given."""
        if limit_bytes is not None:
            self.limit_bytes = limit_bytes

    def usage(self) -> Usage:
        """What is used now."""
        used = self.committed_bytes()
        return Usage(used, {"current_bytes": used})

    def committed_bytes(self) -> int:
        """The same figure: a fake machine runs nothing else."""
        return self.baseline_bytes + self._models_bytes + self.other_bytes


@dataclass
class FakeScript:
    """How one model behaves. Events are set by the test when the work may go on."""

    resident_bytes: int = 20 * _MB
    estimate_bytes: int | None = None
    """What admission is told; the true size where None."""
    peak_bytes: int | None = None
    """What a load takes at its highest, and what admission is told of it; what it holds where None."""
    leaked_bytes: int = 0
    """What an unload leaves behind."""
    child_bytes: int | None = None
    """What a child needs that opens it first; None where its figures are known from the start."""
    child_estimate_bytes: int | None = None
    """What is expected that the child needs; the true size where None."""
    child_least_bytes: int | None = None
    """What is known that the child needs at least; the true size where None."""
    is_prepared: bool = False
    prepare_error: Exception | None = None
    prepare_may_end: threading.Event | None = None
    prepare_started: threading.Event = field(default_factory=threading.Event)
    ceilings: list[int] = field(default_factory=list)
    """What the children were given."""
    learnt: list[int] = field(default_factory=list)
    unusable_artifacts: int = 0
    """Loads that will find the artifact damaged."""
    load_error: str | None = None
    run_error: Exception | None = None
    new_run_error: Exception | None = None
    """What is wrong with runs of those that are loaded from here on."""
    close_error: Exception | None = None
    run_footprint: RunFootprint | None = None
    """What runs are predicted to take."""
    run_bytes: int = 0
    """What a run really takes, until it returns; of the arena, where `FakeMemory` has one."""
    width: int | None = None
    """Numbers in a row of a model that takes any number of rows; None: it takes any number of numbers."""
    wrong_number: float | None = None
    """A run fails where this is among its numbers."""
    answered_rows: int | None = None
    """Rows of an answer, whatever was asked; as many as were asked where None."""
    run_s: float = 0.0
    """What a run takes at least, in seconds, however many its rows are."""
    is_isolated: bool = False
    ended: Callable[[str], None] | None = None
    """What a test calls with a reason to have the loaded model end by itself, as one that is isolated may."""
    is_deaf: bool = False
    """Whether a run, or a load, goes on when it is cancelled."""
    fingerprint: tuple[int, ...] = (1,)
    load_may_end: threading.Event | None = None
    run_may_end: threading.Event | None = None
    close_may_end: threading.Event | None = None
    load_started: threading.Event = field(default_factory=threading.Event)
    run_started: threading.Event = field(default_factory=threading.Event)
    close_started: threading.Event = field(default_factory=threading.Event)
    inspections: int = 0
    loads: int = 0
    """Loads that were begun."""
    copies: int = 0
    """Loading or loaded now."""
    generations: list[tuple[int | str, ...]] = field(default_factory=list)
    """What those were loaded from: what the files were, and the optimisation."""
    closes: int = 0
    runs: int = 0
    sizes: list[int] = field(default_factory=list)
    """First dimension of what each run was given."""
    violations: list[str] = field(default_factory=list)
    """What the pool must never do and did: a second copy of the same files, a run of a closed model, a close
    during a run."""


def _specs(script: FakeScript) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    shape = (-1,) if script.width is None else (-1, script.width)
    return {"x": TensorSpec("x", "FP32", shape)}, {"y": TensorSpec("y", "FP32", shape)}


class FakeRuntime:
    """Loads what `scripts` describes, by the name of the model's folder."""

    def __init__(
        self,
        memory: FakeMemory,
        scripts: Mapping[str, FakeScript] | None = None,
        *,
        name_of: Callable[[Path], str] = lambda file: file.parent.parent.name,
    ) -> None:
        self.memory = memory
        self.scripts: dict[str, FakeScript] = dict(scripts or {})
        self.trims = 0
        self.forgotten: list[str] = []
        """Models whose pages were given back."""
        self._name_of = name_of
        self._preparing_bytes = 0

    def script(self, file: Path) -> FakeScript:
        """The script of the model at `file`; a default one is made where there is none."""
        return self.scripts.setdefault(self._name_of(file), FakeScript())

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Takes the estimate from the script."""
        script = self.script(file)
        script.inspections += 1
        estimate = script.resident_bytes if script.estimate_bytes is None else script.estimate_bytes
        inputs, outputs = _specs(script)
        if script.child_bytes is not None and not script.is_prepared:
            least_bytes = script.child_bytes if script.child_least_bytes is None else script.child_least_bytes
            child = Preparation(least_bytes, script.child_estimate_bytes or script.child_bytes)
            return Inspection(inputs, outputs, None, script.fingerprint, child)
        peak_bytes = max(estimate, script.peak_bytes or 0)
        plan = LoadPlan(estimate, peak_bytes, options.optimization or "all", run=script.run_footprint)
        return Inspection(inputs, outputs, plan, script.fingerprint)

    def prepare(
        self, file: Path, options: ModelOptions, *, ceiling_bytes: int, is_last: bool, cancel: CancelToken
    ) -> None:
        """Takes the child's memory, waits for `prepare_may_end`, and gives it back; then it is prepared, or fails."""
        script = self.script(file)
        script.ceilings.append(ceiling_bytes)
        needed_bytes = script.child_bytes or 0
        if needed_bytes > ceiling_bytes:
            raise NeedsMemory(f"it needs {needed_bytes} bytes")
        if self._preparing_bytes:
            script.violations.append("two children at once")
        self._preparing_bytes = needed_bytes
        self.memory.add(needed_bytes)
        script.prepare_started.set()
        try:
            _wait(script.prepare_may_end, cancel)
            if cancel.is_cancelled:
                raise LoadError("cancelled")
            if script.prepare_error is not None:
                raise script.prepare_error
            script.is_prepared = True
        finally:
            self._preparing_bytes = 0
            self.memory.add(-needed_bytes)

    def preparing_bytes(self) -> int:
        """What the scripted child holds."""
        return self._preparing_bytes

    def learn(self, file: Path, plan: LoadPlan, resident_bytes: int) -> None:
        """Notes what was learnt."""
        self.script(file).learnt.append(resident_bytes)

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Changes when the test says so."""
        return self.script(file).fingerprint

    def stamp(self, file: Path) -> tuple[int, ...]:
        """Changes with the fingerprint."""
        return self.script(file).fingerprint

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> FakeModel:
        """Waits for `load_may_end`, then fails or takes the memory."""
        script, generation = self.script(file), (*inspection.fingerprint, plan.optimization)
        script.loads += 1
        script.copies += 1
        if generation in script.generations:
            script.violations.append("loaded while another copy was there")
        script.generations.append(generation)
        transient_bytes = script.peak_bytes or 0
        self.memory.add(transient_bytes)
        script.load_started.set()
        try:
            if script.is_deaf:
                cancel = CancelToken()
            _wait(script.load_may_end, cancel)
            if cancel.is_cancelled:
                raise LoadError("cancelled")
            if script.unusable_artifacts:
                script.unusable_artifacts -= 1
                raise ArtifactUnusable("the artifact is damaged")
            if script.load_error is not None:
                raise LoadError(script.load_error)
        except BaseException:
            script.copies -= 1
            script.generations.remove(generation)
            raise
        finally:
            self.memory.add(-transient_bytes)
        self.memory.add(script.resident_bytes)
        return FakeModel(script, self.memory, generation)

    def forget(self, file: Path) -> None:
        """Notes it."""
        self.forgotten.append(self._name_of(file))

    def trim(self) -> None:
        """Counts."""
        self.trims += 1

    def warm_up(self) -> None:
        """Does nothing: scripted workers hold what their script says."""

    def workers_bytes(self) -> int:
        """Nothing: what scripted models hold is in the machine's figures."""
        return 0

    def booked_bytes(self) -> int:
        """As above."""
        return 0

    def close(self) -> None:
        """Does nothing."""


class FakeModel:
    """Answers `y = 2 x`."""

    def __init__(self, script: FakeScript, memory: FakeMemory, generation: tuple[int | str, ...]) -> None:
        self._script, self._memory, self._generation = script, memory, generation
        self._resident_bytes, self._run_error = script.resident_bytes, script.new_run_error
        self._running = 0
        self._is_closed = False
        self.is_isolated = script.is_isolated
        script.ended = None
        self._lock = threading.Lock()
        self.mapped_files: tuple[Path, ...] = ()
        self.run_footprint = script.run_footprint
        self.inputs: Mapping[str, TensorSpec]
        self.outputs: Mapping[str, TensorSpec]
        self.inputs, self.outputs = _specs(script)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken | None) -> list[Array]:
        """Takes `run_bytes`, waits for `run_may_end`, then fails or answers."""
        run_bytes = self._script.run_bytes
        self._memory.begin_run(run_bytes)
        try:
            return self._run(feeds, outputs, cancel or CancelToken())
        finally:
            self._memory.end_run(run_bytes)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken) -> list[Array]:
        with self._lock:
            self._running += 1
            self._script.runs += 1
            self._script.sizes.append(len(feeds["x"]))
            if self._is_closed:
                self._script.violations.append("run after it was closed")
        try:
            self._script.run_started.set()
            if self._script.is_deaf:
                cancel = CancelToken()
            _wait(self._script.run_may_end, cancel)
            if cancel.is_cancelled:
                raise DeadlineExceeded("the run", waited_s=0.0)
            time.sleep(self._script.run_s)
            error = self._run_error or self._script.run_error
            if error is not None:
                raise error
            if self._script.wrong_number is not None and self._script.wrong_number in feeds["x"]:
                raise InvalidRequest(f"{self._script.wrong_number} is among the numbers")
            answered = np.asarray(feeds["x"], np.float32)[: self._script.answered_rows] * 2
            return [answered for _ in outputs]
        finally:
            with self._lock:
                self._running -= 1

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Has the script's `ended` call it."""
        self._script.ended = on_end

    def close(self) -> None:
        """Waits for `close_may_end`, then gives the memory back, but for what the script leaks, or fails."""
        script = self._script
        with self._lock:
            if self._running:
                script.violations.append("closed while it ran")
            if self._is_closed:
                script.violations.append("closed twice")
            self._is_closed = True
        script.close_started.set()
        if script.close_may_end is not None and not script.close_may_end.wait(_PATIENCE_S):
            raise TimeoutError("the script's event was never set")
        script.closes += 1
        script.copies -= 1
        script.generations.remove(self._generation)
        self._memory.add(script.leaked_bytes - self._resident_bytes)
        if script.close_error is not None:
            raise script.close_error


def _wait(event: threading.Event | None, cancel: CancelToken) -> None:
    """Waits for `event` or the cancellation, whichever is first."""
    if event is not None:
        cancel.bind(event.set)
        if not event.wait(_PATIENCE_S):
            raise TimeoutError("the script's event was never set")
