"""ONNX Runtime: the only importer of onnxruntime, and the owner of its process-wide settings.

One arena for the activations of all sessions, with a hard ceiling, and one thread pool: both can be
set once in a process, before the first session, so there is one `OrtRuntime` in a process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelhost.config import ModelOptions
from modelhost.errors import ActivationsFull, DeadlineExceeded, InvalidRequest, NeverFits, RunFailed
from modelhost.memory import allocator
from modelhost.prepare import ArtifactStore, Identity
from modelhost.runtime.base import CancelToken, Inspection, LoadedModel, LoadError, LoadPlan
from modelhost.runtime.estimate import external_files, fingerprint, inspect_file
from modelhost.tensors import DTYPES, Array, TensorSpec, check_shared_dims
from modelhost.units import format_bytes

allocator.configure()  # before onnxruntime allocates: see the allocator's own words

import onnxruntime as ort  # noqa: E402

log = logging.getLogger("modelhost")

_LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

#: `tensor(float)` and so on to V2 datatypes.
_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

#: What BFCArena says when the ceiling is reached.
_ARENA_FULL: Final = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")

#: The smallest model there is, `y = Identity(x)` on one float: running it with the shrink option is
#: the way to shrink the shared arena without a cost on other models' runs. Protocol buffer bytes, by
#: field of onnx.proto: ir_version, graph {node, name, input, output}, opset.
_IDENTITY: Final = bytes.fromhex(
    "08083a33"  # ir_version 8; graph, 51 bytes
    "0a100a01781201792208"
    + b"Identity".hex()  # node x -> y
    + "120174"  # name
    "5a0d0a01781208"
    "0a0608011202"
    "0a00"  # input x: FP32 [?]
    "620d0a01791208"
    "0a0608011202"
    "0a00"  # output y: FP32 [?]
    "42040a001011"  # opset 17
)


@dataclass(frozen=True, slots=True)
class _Process:
    """What can be set once in a process."""

    activation_ceiling_bytes: int
    intra_op_threads: int


#: What was set, by the first runtime; a list so that it is filled, not rebound.
_configured: Final[list[_Process]] = []
_configuring: Final = threading.Lock()


class OrtRuntime:
    """Loads and runs models with ONNX Runtime on the CPU."""

    def __init__(
        self, *, activation_ceiling_bytes: int, intra_op_threads: int = 1, store: ArtifactStore | None = None
    ) -> None:
        self._store = store
        process = _configure_process(_Process(activation_ceiling_bytes, intra_op_threads))
        self.activation_ceiling_bytes = process.activation_ceiling_bytes
        self._intra_op_threads = process.intra_op_threads
        self._lock, self._runs, self._held = threading.Lock(), 0, 0
        self.starts = 0
        """Runs that have been started."""
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._identity = ort.InferenceSession(
            _IDENTITY, _session_options("none", self._intra_op_threads), providers=_PROVIDERS
        )
        self._one = np.zeros(1, np.float32)
        self.trim()  # warms what every run needs, so that the baseline has it

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Reads the face of a model without loading it. Raises LoadError."""
        return inspect_file(file, options, self._store)

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Returns size and modification time; empty where the file is gone."""
        return fingerprint(file, self._store)

    def load(self, file: Path, plan: LoadPlan, inspection: Inspection, cancel: CancelToken) -> LoadedModel:
        """Loads a model. Raises LoadError with ONNX Runtime's reason."""
        options = _session_options("none" if plan.artifact else plan.optimization, self._intra_op_threads)
        if plan.variant == "mapped_unpacked":
            options.add_session_config_entry("session.disable_prepacking", "1")
        cancel.bind(lambda: options.set_load_cancellation_flag(True))
        try:
            session = ort.InferenceSession(
                str(plan.artifact or file),
                options,
                providers=_PROVIDERS,
                disabled_optimizers=None if plan.folds_constants else ["ConstantFolding"],
            )
        except Exception as error:
            if plan.artifact is not None and self._store is not None and not cancel.is_cancelled:
                self._store.reject(plan.artifact.parent.name)
                log.warning("%s is unusable and was removed; the original is served", plan.artifact.parent)
            raise LoadError(_reason(error)) from None
        return OrtModel(session, inspection, self)

    @contextlib.contextmanager
    def run_counted(self) -> Iterator[None]:
        """Counts a run while it is going on."""
        with self._lock:
            self._runs += 1
            self.starts += 1
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1

    @property
    def is_alone(self) -> bool:
        """Whether at most one run is going on, and no outputs of others are kept."""
        return self._runs + self._held <= 1

    @contextlib.contextmanager
    def outputs_held(self) -> Iterator[None]:
        """A scope in which a run's outputs are kept beyond it: they take room from other runs."""
        with self._lock:
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1

    def forget(self, file: Path) -> None:
        """Drops the file's pages from the page cache, those of its external data too."""
        artifact = self._store.find(file) if self._store is not None else None
        prepared = (artifact.directory / name for name in artifact.manifest.files) if artifact is not None else ()
        for path in (file, *(file.parent / name for name in external_files(file)), *prepared):
            with contextlib.suppress(OSError, AttributeError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)

    def trim(self) -> None:
        """Shrinks the shared arena to what is in use."""
        self._identity.run(["y"], {"x": self._one}, self._shrink)


class OrtModel:
    """One session. Any thread may run it."""

    def __init__(self, session: Any, inspection: Inspection, runtime: OrtRuntime) -> None:
        self._session = session
        self._runtime = runtime
        self.inputs = _specs(session.get_inputs(), inspection.inputs)
        self.outputs = _specs([arg for arg in session.get_outputs() if arg.type in _DATATYPES], inspection.outputs)
        for spec in self.inputs.values():
            if spec.datatype not in DTYPES:
                raise LoadError(f"input '{spec.name}' is {spec.datatype}, which the V2 protocol cannot carry")

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str], cancel: CancelToken) -> list[Array]:
        """Returns the named outputs, in that order. See LoadedModel for what it raises."""
        options = ort.RunOptions()
        cancel.bind(lambda: setattr(options, "terminate", True))
        try:
            with self._runtime.run_counted():
                return self._run(feeds, outputs, options)
        except Exception as error:
            # ONNX Runtime does not hold inputs to a dimension that they share by name, the operators
            # do, in words of their own. Only looked at now: some exporters reuse names carelessly.
            check_shared_dims(self.inputs, feeds)
            raise _run_error(error, cancel, self._runtime.activation_ceiling_bytes) from None

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str], options: Any) -> list[Array]:
        """Runs; where the arena is full, once more with all of it, if nobody else is using it."""
        try:
            results: list[Array] = self._session.run(list(outputs), feeds, options)
        except Exception as error:
            if not self._runtime.is_alone or not _ARENA_FULL.search(str(error)):
                raise
        else:
            return results
        self._runtime.trim()
        starts = self._runtime.starts
        try:
            results = self._session.run(list(outputs), feeds, options)
        except Exception as error:
            was_alone = self._runtime.is_alone and self._runtime.starts == starts
            if was_alone and (full := _ARENA_FULL.search(str(error))):
                raise _never_fits(int(full[1]), int(full[2]), self._runtime.activation_ceiling_bytes) from None
            raise
        return results

    def close(self) -> None:
        """Drops the session; nothing else refers to it, since names and shapes were copied."""
        self._session = None


_PROVIDERS: Final = ["CPUExecutionProvider"]


def _configure_process(wanted: _Process) -> _Process:
    """Sets up ONNX Runtime; returns what is in force, which is the first caller's wish."""
    with _configuring:
        if not _configured:
            _set_up(wanted)
            _configured.append(wanted)
        elif _configured[0] != wanted:
            log.warning("ONNX Runtime is already set up in this process: %s stays in force", _configured[0])
        return _configured[0]


def _set_up(wanted: _Process) -> None:
    # Messages of failed loads reach the client and our own log; ONNX Runtime need not print them too.
    ort.set_default_logger_severity(4)
    if wanted.intra_op_threads > 1:
        # With one thread there is no pool to share, and a process with a global one has no other
        # sessions: ONNX Runtime refuses those with threads of their own, an embedding program's too.
        ort.set_global_thread_pool_sizes(wanted.intra_op_threads, 1)
    memory_info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # kSameAsRequested (1): the arena grows by what is asked, not by powers of two up to the ceiling.
    arena = ort.OrtArenaCfg({"max_mem": wanted.activation_ceiling_bytes, "arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory_info, arena)


def _session_options(optimization: str, intra_op_threads: int) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    options.add_session_config_entry("session.use_env_allocators", "1")
    if intra_op_threads > 1:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a pattern pre-allocates for each shape seen, and keeps it
    options.log_severity_level = 4
    return options


def _specs(arguments: Sequence[Any], declared: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Copies names and shapes out of NodeArgs, each of which would keep the session alive."""
    return {arg.name: _spec(arg.name, arg.type, arg.shape, declared.get(arg.name)) for arg in arguments}


def _spec(name: str, kind: str, dims: Sequence[int | str | None], declared: TensorSpec | None) -> TensorSpec:
    datatype = _DATATYPES.get(kind, kind)
    if not dims and declared is not None and declared.shape is None:
        return TensorSpec(name, datatype, None)  # [] here means "scalar" and "rank not stated" alike
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in dims)
    return TensorSpec(name, datatype, shape, tuple(dim if isinstance(dim, str) else "" for dim in dims))


def _reason(error: Exception) -> str:
    """ONNX Runtime's own words, without its prefix and its build machine's paths."""
    text = str(error).strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+?:\d+ (?:[\w:*&<>~ ]+\([^)]*\)(?: const)? )?", "", text)
    return text or type(error).__name__


def _never_fits(available_bytes: int, needed_bytes: int, ceiling_bytes: int) -> NeverFits:
    return NeverFits(
        _activation_text(available_bytes, needed_bytes, ceiling_bytes)
        + ", with nobody else running; send fewer rows at once",
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
    )


def _activation_text(available_bytes: int, needed_bytes: int, ceiling_bytes: int) -> str:
    return (
        f"one step of this run needs {format_bytes(needed_bytes)} for activations, {format_bytes(available_bytes)} "
        f"of {format_bytes(ceiling_bytes)} (memory.activation_ceiling) are free"
    )


def _run_error(error: Exception, cancel: CancelToken, ceiling_bytes: int) -> Exception:
    if isinstance(error, NeverFits):
        return error
    if cancel.is_cancelled:
        return DeadlineExceeded("the run", waited_s=0.0)
    text = _reason(error)
    if full := _ARENA_FULL.search(text):
        available_bytes, needed_bytes = int(full[1]), int(full[2])
        if needed_bytes > ceiling_bytes:
            return _never_fits(available_bytes, needed_bytes, ceiling_bytes)
        return ActivationsFull(
            _activation_text(available_bytes, needed_bytes, ceiling_bytes) + ", others' runs hold the rest",
            needed_bytes=needed_bytes,
            available_bytes=available_bytes,
        )
    if type(error).__name__ == "InvalidArgument" or isinstance(error, (ValueError, TypeError)):
        return InvalidRequest(f"ONNX Runtime refuses the input: {text}")
    return RunFailed(f"the run failed: {text}")


def identity() -> Identity:
    """Returns what artifacts depend on here: ONNX Runtime's version, and the CPU's kind and features."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return Identity(runtime=f"onnxruntime {ort.__version__}", cpu=f"{platform.machine()} {features}")
