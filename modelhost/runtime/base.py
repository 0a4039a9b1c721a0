"""What the pool asks of a runtime: look at a model, load it, run it, close it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from modelhost.config import ModelOptions
from modelhost.prepare import Variant
from modelhost.prepare.footprint import RunFootprint
from modelhost.tensors import Array, TensorSpec

Optimization = Literal["all", "extended", "basic", "none"]


class LoadError(Exception):
    """A model's files cannot be loaded; the text is the runtime's reason. The pool adds the model's name."""


class NoDescriptor(LoadError):
    """No file descriptor is left to open a model with: it says nothing about the model."""


class ArtifactUnusable(LoadError):
    """A prepared model could not be opened, and was removed: the model has to be looked at again."""


class NeedsMemory(Exception):
    """A child process met its memory ceiling; the text says which, and how much it wanted."""


class CancelToken:
    """Tells work on another thread to stop. `cancel` may come before the work has begun."""

    __slots__ = ("_action", "is_cancelled", "kept")

    def __init__(self) -> None:
        self._action: Callable[[], object] | None = None
        self.is_cancelled = False
        self.kept: Any = None
        """What a runtime has bound to it and can use again, where work after work has the same token."""

    def bind(self, action: Callable[[], object]) -> None:
        """Names what stops the work; called at once where `cancel` was first."""
        self._action = action
        if self.is_cancelled:
            action()

    def release(self) -> None:
        """Forgets what stops the work, which is over: what is named there may refer to the token."""
        self._action = None

    def cancel(self) -> None:
        """Stops the work; harmless when it is over."""
        self.is_cancelled = True
        action = self._action  # looked at once: the work may end on its thread meanwhile, and release it
        if action is not None:
            action()


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How to load, and what that takes, in bytes: as a child process, or this one, has measured it."""

    resident_bytes: int
    peak_bytes: int
    optimization: Optimization = "all"
    artifact: Path | None = None
    """A prepared model to open instead of the original."""
    variant: Variant = "heap"
    run: RunFootprint | None = None
    """What runs take; None where the child found no input that the model runs on."""
    read_ahead: bool = False
    """Whether to have the weights read at the load, not page by page at the first run."""
    is_isolated: bool = False
    """Whether the session lives in a worker process."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What a child process takes that opens a model for the first time, in bytes.

    Below `least_bytes` it cannot succeed; `likely_bytes` are enough for all but odd models.
    """

    least_bytes: int
    likely_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a model before it is loaded.

    `plan` is None until a child process has opened the model; then `preparation` says what that takes.
    `fingerprint` changes when the files do.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    plan: LoadPlan | None
    fingerprint: tuple[int, ...]
    preparation: Preparation | None = None


class LoadedModel(Protocol):
    """A model that is ready to run. `run` may be called from several threads at once; `close` once, last."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name, in the model's order."""

    @property
    def mapped_files(self) -> tuple[Path, ...]:
        """The files whose pages are its weights; none where they lie on the heap."""

    @property
    def run_footprint(self) -> RunFootprint | None:
        """What its runs take, by the shapes of their inputs; None where nobody has measured that."""

    @property
    def is_isolated(self) -> bool:
        """Whether its runs happen in another process: they cost a way there and back, and it may end by itself."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken | None) -> list[Array]:
        """Returns the named outputs, in that order; blocks. None for `cancel`: nothing will stop it.

        The arrays may lie in memory of the runtime: encode or copy them before the lease ends.
        Raises InvalidRequest where the runtime finds the input wrong, ActivationsFull where activations
        do not fit now and RunTooLarge where they never will, DeadlineExceeded where `cancel` stopped it,
        else RunFailed; of one that is isolated, WorkerCrashed where its process ends meanwhile and
        WorkerRestarting where it has ended before.
        """

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Has `on_end` called, once and on any thread, where the model ends by itself, with the reason.

        It still has to be closed then.
        """

    def close(self) -> None:
        """Gives the model's memory back; blocks."""


class Runtime(Protocol):
    """Loads models. Methods block; the pool calls them on its worker threads."""

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Reads the face of a model without loading it. Raises LoadError."""

    def prepare(
        self, file: Path, options: ModelOptions, *, ceiling_bytes: int, is_last: bool, cancel: CancelToken
    ) -> None:
        """Has a child process open a model and learn its figures; `inspect` has a plan afterwards.

        Raises LoadError where the child could not open it, and NeedsMemory where `ceiling_bytes` are too
        little. `is_last`: no higher ceiling will come, so rather measure only than not at all.
        """

    def preparing_bytes(self) -> int:
        """Returns what the child process of `prepare` holds now; 0 where there is none. Any thread."""

    def learn(self, file: Path, plan: LoadPlan, resident_bytes: int) -> None:
        """Takes note that a load held more than its plan said, for those that come after."""

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> LoadedModel:
        """Loads a model. Raises LoadError, of which ArtifactUnusable asks for another inspection."""

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when the file does; empty where it is gone."""

    def stamp(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when the files of a model do, prepared or not; empty where they are gone."""

    def forget(self, file: Path) -> None:
        """Gives back what the kernel keeps of the model's files: nobody will want them soon."""

    def trim(self) -> None:
        """Gives back what finished runs left in the runtime's arena; takes microseconds where there is nothing."""

    def warm_up(self) -> None:
        """Starts what workers are made from, so that the first isolated model need not. Raises LoadError."""

    def workers_bytes(self) -> int:
        """Returns the memory that worker processes hold, and what is shared with them. Any thread.

        Takes up to a millisecond for each.
        """

    def booked_bytes(self) -> int:
        """Returns what those workers that there are held when they had loaded. Takes microseconds; any thread."""

    def close(self) -> None:
        """Ends what was started besides models, all of which are closed. Harmless when closed."""
