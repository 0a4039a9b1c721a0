"""What the pool asks of a runtime: look at a model, load it, run it, close it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from modelhost.config import ModelOptions
from modelhost.prepare import Variant
from modelhost.tensors import Array, TensorSpec

Optimization = Literal["all", "extended", "basic", "none"]


class LoadError(Exception):
    """A model's files cannot be loaded; the text is the runtime's reason. The pool adds the model's name."""


class CancelToken:
    """Tells work on another thread to stop. `cancel` may come before the work has begun."""

    __slots__ = ("_action", "is_cancelled")

    def __init__(self) -> None:
        self._action: Callable[[], None] | None = None
        self.is_cancelled = False

    def bind(self, action: Callable[[], None]) -> None:
        """Names what stops the work; called at once where `cancel` was first."""
        self._action = action
        if self.is_cancelled:
            action()

    def cancel(self) -> None:
        """Stops the work; harmless when it is over."""
        self.is_cancelled = True
        if self._action is not None:
            self._action()


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to load, and what that takes: upper bounds in bytes until a load was measured."""

    resident_bytes: int
    peak_bytes: int
    optimization: Optimization
    folds_constants: bool = True
    """False where folding would make constants of a size that nobody foresees; the run makes them then."""
    artifact: Path | None = None
    """A prepared model to open instead of the original."""
    variant: Variant = "heap"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a model before it is loaded.

    `plans` has the preferred way to load first; a later one needs a lower peak.
    `fingerprint` changes when the files do.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    plans: tuple[LoadPlan, ...]
    fingerprint: tuple[int, ...]


class LoadedModel(Protocol):
    """A model that is ready to run. `run` may be called from several threads at once; `close` once, last."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name, in the model's order."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken) -> list[Array]:
        """Returns the named outputs, in that order; blocks.

        The arrays may lie in memory of the runtime: encode or copy them before the lease ends.
        Raises InvalidRequest where the runtime finds the input wrong, InsufficientMemory or NeverFits
        where activations do not fit, DeadlineExceeded where `cancel` stopped it, else RunFailed.
        """

    def close(self) -> None:
        """Gives the model's memory back; blocks."""


class Runtime(Protocol):
    """Loads models. Methods block; the pool calls them on its worker threads."""

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Reads the face of a model without loading it. Raises LoadError."""

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> LoadedModel:
        """Loads a model. Raises LoadError."""

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when the file does; empty where it is gone."""

    def forget(self, file: Path) -> None:
        """Gives back what the kernel keeps of the model's files: nobody will want them soon."""

    def outputs_held(self) -> AbstractContextManager[None]:
        """A scope in which a run's outputs are kept beyond it: they take room from other runs."""

    def trim(self) -> None:
        """Gives back what finished runs left in the runtime's arena; takes microseconds where there is nothing."""
