"""ONNX Runtime behind the pool: loads, runs, errors.

One arena for the activations of all sessions, with a hard ceiling, and one thread pool: both can be
set once in a process, before the first session, so there is one `OrtRuntime` in a process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelhost.config import ModelOptions
from modelhost.errors import ConfigError
from modelhost.files import digest_of
from modelhost.memory import allocator
from modelhost.prepare import Identity
from modelhost.prepare.failures import is_no_descriptor, is_no_memory
from modelhost.runtime.base import (
    ArtifactUnusable,
    CancelToken,
    Inspection,
    LoadedModel,
    LoadError,
    LoadPlan,
    NoDescriptor,
)
from modelhost.runtime.face import inputs_of, outputs_of
from modelhost.runtime.preparing import Preparer
from modelhost.runtime.run_errors import reason_of, run_error
from modelhost.runtime.structured import StructuredSession
from modelhost.runtime.worker.workers import Workers
from modelhost.tensors import Array, check_shared_dims

allocator.configure()  # before onnxruntime allocates: see the allocator's own words

import onnxruntime as ort  # noqa: E402

from modelhost.runtime.engine import (  # noqa: E402
    Arena,
    NotRunnable,
    open_session,
    runnable,
    session_options,
    set_up,
)

log = logging.getLogger("modelhost")


@dataclass(frozen=True, slots=True)
class _Process:
    """What can be set once in a process."""

    activation_ceiling_bytes: int
    intra_op_threads: int
    custom_op_libraries: tuple[Path, ...]


#: What was set, by the first runtime; a list so that it is filled, not rebound.
_configured: Final[list[_Process]] = []
_configuring: Final = threading.Lock()


class OrtRuntime:
    """Loads and runs models with ONNX Runtime on the CPU."""

    def __init__(
        self,
        *,
        activation_ceiling_bytes: int,
        intra_op_threads: int = 1,
        custom_op_libraries: tuple[Path, ...] = (),
        preparer: Preparer | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Sets ONNX Runtime up, where nothing in this process has. Raises ConfigError.

        Without `workers` no model is isolated.
        """
        self._preparer, self._workers = preparer, workers
        process = _configure_process(_Process(activation_ceiling_bytes, intra_op_threads, custom_op_libraries))
        self.activation_ceiling_bytes = process.activation_ceiling_bytes
        self._intra_op_threads = process.intra_op_threads
        self.arena = Arena(intra_op_threads=process.intra_op_threads)

    @property
    def preparer(self) -> Preparer:
        """What knows the models' figures. Raises RuntimeError in a runtime that was made without one."""
        if self._preparer is None:
            raise RuntimeError("this runtime only runs models that others have opened")
        return self._preparer

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Reads the face of a model without loading it. Raises LoadError."""
        inspection = self.preparer.inspect(file, options)
        return inspection if self._workers is None else self._workers.planned(inspection, options)

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when the file, or what is prepared of it, does; empty where it is gone."""
        return self.preparer.fingerprint(file)

    def stamp(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when a model's files do, prepared or not; empty where they are gone."""
        return self.preparer.stamp(file)

    def prepare(
        self, file: Path, options: ModelOptions, *, ceiling_bytes: int, is_last: bool, cancel: CancelToken
    ) -> None:
        """Has a child open the model first. Raises LoadError and NeedsMemory."""
        self.preparer.prepare(file, options, ceiling_bytes=ceiling_bytes, is_last=is_last, cancel=cancel)

    def preparing_bytes(self) -> int:
        """Returns what that child holds now."""
        return self.preparer.preparing_bytes()

    def learn(self, file: Path, plan: LoadPlan, resident_bytes: int) -> None:
        """Lets the figure of a prepared model grow to what its load held; what a worker adds is no figure of it."""
        if not plan.is_isolated:
            self.preparer.learn(file, plan, resident_bytes)

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> LoadedModel:
        """Loads a model. Raises LoadError with ONNX Runtime's reason, ArtifactUnusable where it is prepared."""
        mapped = () if plan.artifact is None else _weights_beside(plan.artifact)
        if plan.read_ahead:
            for path in mapped:
                _advise(path, "POSIX_FADV_WILLNEED")
        try:
            if plan.is_isolated:
                model: LoadedModel = self._isolated(file, plan, inspection, cancel, mapped)
            else:
                model = OrtModel(self._opened(file, plan, cancel), inspection, self, plan, mapped)
        except LoadError:
            raise
        except Exception as error:
            if is_no_descriptor(error):
                raise NoDescriptor(reason_of(error)) from None
            # A worker that was killed was so for its memory, or by somebody: neither is the artifact's fault.
            if plan.artifact is None or cancel.is_cancelled or is_no_memory(str(error)) or "SIGKILL" in str(error):
                raise LoadError(reason_of(error)) from None
            self.preparer.reject(plan)
            raise ArtifactUnusable(reason_of(error)) from None
        if self._preparer is not None:
            self._preparer.opened(plan)
        return model

    def _opened(self, file: Path, plan: LoadPlan, cancel: CancelToken) -> Any:
        options = session_options(plan.optimization, plan.variant, intra_op_threads=self._intra_op_threads)
        cancel.bind(lambda: options.set_load_cancellation_flag(True))
        if plan.artifact is not None:
            return open_session(plan.artifact, options)
        return open_session(file, options, self._preparer.external_files(file) if self._preparer is not None else ())

    def _isolated(
        self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken, mapped: tuple[Path, ...]
    ) -> LoadedModel:
        assert self._workers is not None  # else nothing is planned to be isolated
        return self._workers.load(
            plan.artifact or file, plan, inspection, cancel, mapped=mapped, closed=lambda: self.closed(plan)
        )

    def closed(self, plan: LoadPlan) -> None:
        """Takes note that a session has been closed."""
        if self._preparer is not None:
            self._preparer.closed(plan)

    def forget(self, file: Path) -> None:
        """Drops the file's pages from the page cache, those of its external data and its artifact too."""
        for path in self.preparer.files_of(file):
            _advise(path, "POSIX_FADV_DONTNEED")

    def trim(self) -> None:
        """Shrinks the shared arena to what is in use, and the workers'."""
        self.arena.trim()
        if self._workers is not None:
            self._workers.trim()

    def warm_up(self) -> None:
        """Starts what workers are forked from. Raises LoadError."""
        if self._workers is not None:
            self._workers.warm_up()

    def workers_bytes(self) -> int:
        """Returns what workers hold."""
        return 0 if self._workers is None else self._workers.held_bytes()

    def booked_bytes(self) -> int:
        """Returns what they held when they had loaded."""
        return 0 if self._workers is None else self._workers.booked_bytes()

    def close(self) -> None:
        """Ends what workers are forked from."""
        if self._workers is not None:
            self._workers.close()


class OrtModel:
    """One session. Any thread may run it."""

    is_isolated = False

    def __init__(
        self, session: Any, inspection: Inspection, runtime: OrtRuntime, plan: LoadPlan, mapped: tuple[Path, ...]
    ) -> None:
        self._runtime = runtime
        self._plan = plan
        self.mapped_files = mapped
        self.run_footprint = plan.run
        self.inputs = inputs_of(session.get_inputs(), inspection.inputs)
        self.outputs = outputs_of(session.get_outputs(), inspection.outputs)
        # Chosen here: the runs of ordinary models do not pay for the others'.
        try:
            self._session = runnable(session)
        except NotRunnable as error:
            raise LoadError(str(error)) from None
        if structured := [spec.name for spec in self.outputs.values() if spec.is_structured]:
            self._session = StructuredSession(self._session, structured)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken | None) -> list[Array]:
        """Returns the named outputs, in that order. See LoadedModel for what it raises."""
        options = None
        if cancel is not None:
            options = cancel.kept
            if options is None:
                options = cancel.kept = ort.RunOptions()
                cancel.bind(_Terminate(options))
        try:
            return self._runtime.arena.run_in_pieces(
                self._session, outputs, feeds, options, self._runtime.activation_ceiling_bytes
            )
        except Exception as error:
            # ONNX Runtime does not hold inputs to a dimension that they share by name, the operators
            # do, in words of their own. Only looked at now: some exporters reuse names carelessly.
            check_shared_dims(self.inputs, feeds)
            raise run_error(error, cancel, self._runtime.activation_ceiling_bytes) from None

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Never calls it: this model ends with the host."""

    def close(self) -> None:
        """Drops the session; nothing else refers to it, since names and shapes were copied."""
        self._session = None
        self._runtime.closed(self._plan)


def _configure_process(wanted: _Process) -> _Process:
    """Sets up ONNX Runtime; returns what is in force, which is the first caller's wish."""
    with _configuring:
        if not _configured:
            set_up(
                wanted.activation_ceiling_bytes,
                intra_op_threads=wanted.intra_op_threads,
                custom_op_libraries=wanted.custom_op_libraries,
            )
            _configured.append(wanted)
        elif _configured[0] != wanted:
            log.warning("ONNX Runtime is already set up in this process: %s stays in force", _configured[0])
        return _configured[0]


def _weights_beside(artifact: Path) -> tuple[Path, ...]:
    """The file that a prepared model's weights are mapped from; models without large ones have none."""
    weights = artifact.with_name("model.bin")
    return (weights,) if weights.exists() else ()


def _advise(path: Path, advice: str) -> None:
    """Tells the kernel what will become of a file's pages, where it can be told."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, getattr(os, advice))
        finally:
            os.close(descriptor)


class _Terminate:
    """Stops the run that has these options, at its next node."""

    __slots__ = ("_options",)

    def __init__(self, options: Any) -> None:
        self._options = options

    def __call__(self) -> None:
        self._options.terminate = True


def identity(custom_op_libraries: Sequence[Path] = ()) -> Identity:
    """Returns what artifacts depend on here: ONNX Runtime's version, the CPU's kind and features, added operators.

    Raises ConfigError where the libraries of those cannot be read.
    """
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    try:
        operators = "\n".join(digest_of(library) for library in custom_op_libraries)
    except OSError as error:
        raise ConfigError(f"runtime.custom_op_libraries: cannot read {error.filename}: {error.strerror}") from None
    return Identity(
        runtime=f"onnxruntime {ort.__version__}",
        cpu=f"{platform.machine()} {features}",
        options=operators,
        custom_op_libraries=tuple(library.resolve() for library in custom_op_libraries),
    )
