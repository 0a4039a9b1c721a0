"""A scripted runtime and the memory that it pretends to use: for tests, and for measuring overhead.

Models load instantly or on command, have a chosen size, and fail on load or run when told to. The
memory that they hold shows in `FakeMemory`, which stands in for the kernel's figures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modelhost.config import ModelOptions
from modelhost.errors import DeadlineExceeded
from modelhost.memory.probe import LimitSource, Usage
from modelhost.runtime.base import CancelToken, Inspection, LoadError, LoadPlan
from modelhost.tensors import Array, TensorSpec

_MB = 1 << 20


class FakeMemory:
    """A machine with `limit_bytes` of memory; implements MemoryProbe."""

    def __init__(self, limit_bytes: int = 256 * _MB, baseline_bytes: int = 60 * _MB) -> None:
        self.limit_bytes = limit_bytes
        self.limit_source: LimitSource = "cgroup v2"
        self.baseline_bytes = baseline_bytes
        self.other_bytes = 0
        """Usage that no model accounts for; tests set it."""
        self._models_bytes = 0
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Takes (or, negative, gives back) memory."""
        with self._lock:
            self._models_bytes += size_bytes

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
    leaked_bytes: int = 0
    """What an unload leaves behind."""
    load_error: str | None = None
    run_error: Exception | None = None
    load_may_end: threading.Event | None = None
    run_may_end: threading.Event | None = None
    load_started: threading.Event = field(default_factory=threading.Event)
    run_started: threading.Event = field(default_factory=threading.Event)
    loads: int = 0
    closes: int = 0
    runs: int = 0


_SPEC = TensorSpec("x", "FP32", (-1,))


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
        self._name_of = name_of

    def script(self, file: Path) -> FakeScript:
        """The script of the model at `file`; a default one is made where there is none."""
        return self.scripts.setdefault(self._name_of(file), FakeScript())

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Takes the estimate from the script."""
        script = self.script(file)
        estimate = script.resident_bytes if script.estimate_bytes is None else script.estimate_bytes
        return Inspection(
            {"x": _SPEC}, {"y": TensorSpec("y", "FP32", (-1,))}, (LoadPlan(estimate, estimate, "all"),), (1,)
        )

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Never changes."""
        return (1,)

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> FakeModel:
        """Waits for `load_may_end`, then fails or takes the memory."""
        script = self.script(file)
        script.loads += 1
        script.load_started.set()
        _wait(script.load_may_end, cancel)
        if cancel.is_cancelled:
            raise LoadError("cancelled")
        if script.load_error is not None:
            raise LoadError(script.load_error)
        self.memory.add(script.resident_bytes)
        return FakeModel(script, self.memory)

    def trim(self) -> None:
        """Counts."""
        self.trims += 1


class FakeModel:
    """Answers `y = 2 x`."""

    def __init__(self, script: FakeScript, memory: FakeMemory) -> None:
        self._script, self._memory = script, memory
        self.inputs: Mapping[str, TensorSpec] = {"x": _SPEC}
        self.outputs: Mapping[str, TensorSpec] = {"y": TensorSpec("y", "FP32", (-1,))}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken) -> list[Array]:
        """Waits for `run_may_end`, then fails or answers."""
        self._script.runs += 1
        self._script.run_started.set()
        _wait(self._script.run_may_end, cancel)
        if cancel.is_cancelled:
            raise DeadlineExceeded("the run", waited_s=0.0)
        if self._script.run_error is not None:
            raise self._script.run_error
        return [np.asarray(feeds["x"], np.float32) * 2 for _ in outputs]

    def close(self) -> None:
        """Gives the memory back, but for what the script leaks."""
        self._script.closes += 1
        self._memory.add(self._script.leaked_bytes - self._script.resident_bytes)


def _wait(event: threading.Event | None, cancel: CancelToken) -> None:
    """Waits for `event` or the cancellation, whichever is first."""
    if event is not None:
        cancel.bind(event.set)
        if not event.wait(30):
            raise TimeoutError("the script's event was never set")
