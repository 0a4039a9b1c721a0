"""ONNX Runtime set up once in a process: what the host and the child that measures for it have in common.

What a child measures holds in the host because both open sessions with these options, on one arena with
a ceiling. Imports nothing of the host's: it would cost a child as much time as opening a small model.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from modelhost.errors import ConfigError
from modelhost.prepare.failures import ARENA_FULL
from modelhost.prepare.manifest import Variant
from modelhost.tensors import BF16, Array

PROVIDERS: Final = ["CPUExecutionProvider"]

#: BF16 as ONNX Runtime names it, and as ONNX numbers it.
BF16_TYPE: Final = "tensor(bfloat16)"
_BF16_NUMBER: Final = 16

_LEVELS: Final = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

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


#: What every session gets, by absolute path: the system would look for a bare name in folders of its own.
_custom_op_libraries: Final[list[str]] = []


def rehearse() -> None:
    """Has made what ONNX Runtime makes at a process's first session, 2 MB: forks of this process share it then.

    Begins no thread. Not where sessions are to have more than one thread: those of a process have a pool in common, of
    which ONNX Runtime has to know before.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    ort.InferenceSession(_IDENTITY, options, providers=PROVIDERS)


def set_up(ceiling_bytes: int, *, intra_op_threads: int = 1, custom_op_libraries: Sequence[Path] = ()) -> None:
    """Registers the arena and the operators that all sessions share; before the first session, and once in a process.

    Raises ConfigError where a library with operators cannot be loaded.
    """
    # Messages of failed loads reach the client and our own log; ONNX Runtime need not print them too.
    ort.set_default_logger_severity(4)
    if intra_op_threads > 1:
        # With one thread there is no pool to share, and a process with a global one has no other
        # sessions: ONNX Runtime refuses those with threads of their own, an embedding program's too.
        ort.set_global_thread_pool_sizes(intra_op_threads, 1)
    memory_info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # kSameAsRequested (1): the arena grows by what is asked, not by powers of two up to the ceiling.
    arena = ort.OrtArenaCfg({"max_mem": ceiling_bytes, "arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory_info, arena)
    for library in custom_op_libraries:
        try:
            ort.SessionOptions().register_custom_ops_library(str(library.resolve()))
        except Exception as error:
            raise ConfigError(f"runtime.custom_op_libraries: {library} cannot be loaded: {error}") from None
    _custom_op_libraries[:] = [str(library.resolve()) for library in custom_op_libraries]


def session_options(optimization: str, variant: Variant = "heap", *, intra_op_threads: int = 1) -> Any:
    """Returns the options of a session: an artifact's graph is as it should be, whatever `optimization` says."""
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization if variant == "heap" else "none"]
    options.add_session_config_entry("session.use_env_allocators", "1")
    if variant == "mapped_unpacked":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if intra_op_threads > 1:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # a pattern pre-allocates for each shape seen, and keeps it
    options.log_severity_level = 4
    for library in _custom_op_libraries:
        options.register_custom_ops_library(library)
    return options


def open_session(file: Path, options: Any, external: Sequence[str] = ()) -> Any:
    """Opens a model whose external data (`external`, as the model names them) are copied, not mapped.

    ONNX Runtime would have the session use their pages as weights, and whoever writes to such a file would
    change them under it, or take them away, which ends the process. Of an artifact they are to be mapped, since
    nobody writes to one: for that no names are given.
    """
    with contextlib.ExitStack() as stack:
        mapped = [stack.enter_context(_pages(file.parent / name)) for name in external]
        # A name for the arrays would outlive the maps that they are of.
        if mapped:
            options.add_external_initializers_from_files_in_memory(
                list(external), [np.frombuffer(pages, np.uint8) for pages in mapped], [len(pages) for pages in mapped]
            )
        return ort.InferenceSession(str(file), options, providers=PROVIDERS)


@contextlib.contextmanager
def _pages(file: Path) -> Iterator[mmap.mmap]:
    """Maps a file for as long as it is read. Raises OSError, and ValueError where it is empty."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        yield pages


class NotRunnable(Exception):
    """ONNX Runtime opens the model, but its Python binding cannot run it; the text says why."""


def runnable(session: Any) -> Any:
    """Returns what runs a session: itself, or for BF16, of which numpy knows nothing, one that wraps it.

    Raises NotRunnable.
    """
    inputs = {arg.name: arg.type for arg in session.get_inputs()}
    outputs = {arg.name: arg.type for arg in session.get_outputs()}
    if BF16_TYPE not in {*inputs.values(), *outputs.values()}:
        return session
    return _BFloat16Session(session, inputs, outputs)


class _BFloat16Session:
    """A session that takes or gives BF16, as arrays of two-byte elements. Any thread.

    Inputs of BF16 go in as values of ONNX Runtime's own. Outputs of it come only where all outputs come as
    such values, which texts cannot go in as, nor sequences and maps come out.
    """

    def __init__(self, session: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self._session = session
        self._inputs = frozenset(name for name, kind in inputs.items() if kind == BF16_TYPE)
        self._outputs = frozenset(name for name, kind in outputs.items() if kind == BF16_TYPE)
        self._names = list(outputs)
        if not self._outputs:
            return
        for what, kinds in (("input", inputs), ("output", outputs)):
            for name, kind in kinds.items():
                if not kind.startswith("tensor(") or (what == "input" and kind == "tensor(string)"):
                    raise NotRunnable(
                        f"output '{min(self._outputs)}' is BF16, beside which ONNX Runtime's Python binding "
                        f"does not carry the {what} '{name}', {kind}"
                    )

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Array], options: Any = None) -> list[Any]:
        """Runs as a session does, all outputs for None."""
        names = self._names if names is None else names
        values = {name: _half_value(array) if name in self._inputs else array for name, array in feeds.items()}
        if self._outputs.isdisjoint(names):
            results: list[Any] = self._session.run(names, values, options)
            return results
        values = {name: value if name in self._inputs else _value(value) for name, value in values.items()}
        return [
            _half_array(value) if name in self._outputs else value.numpy()
            for name, value in zip(names, self._session.run_with_ort_values(names, values, options), strict=True)
        ]


def _value(array: Array) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements=("C", "A")))


def _half_value(array: Array) -> Any:
    # Elements of BF16 may begin anywhere for numpy, numbers of two bytes may not.
    codes = np.require(array.view(np.uint16), requirements=("C", "A"))
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, _BF16_NUMBER)


class _Lent:
    """The memory of an output, as numpy asks for it; an array on it keeps this, and so the output, alive."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self.__array_interface__ = {
            "version": 3,
            "typestr": BF16.str,
            "shape": tuple(value.shape()),
            "data": (value.data_ptr(), True),
        }


def _half_array(value: Any) -> Array:
    shape = tuple(value.shape())
    return np.asarray(_Lent(value)) if 0 not in shape else np.empty(shape, BF16)


class Arena:
    """The arena of a process that is set up. Any thread."""

    def __init__(self, *, intra_op_threads: int = 1) -> None:
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        options = session_options("none", intra_op_threads=intra_op_threads)
        self._identity = ort.InferenceSession(_IDENTITY, options, providers=PROVIDERS)
        self._one = np.zeros(1, np.float32)
        self.trim()  # warms what every run needs, so that the baseline has it

    def trim(self) -> None:
        """Shrinks it to what is in use; takes microseconds where there is nothing to give back."""
        self._identity.run(["y"], {"x": self._one}, self._shrink)

    def run_in_pieces(
        self, session: Any, names: Sequence[str], feeds: Mapping[str, Array], options: Any, ceiling_bytes: int
    ) -> list[Any]:
        """Runs a session; where the arena is full, once more without what earlier runs left in it, in pieces."""
        try:
            results: list[Any] = session.run(list(names), feeds, options)
        except Exception as error:
            full = ARENA_FULL.search(str(error))
            if full is None or int(full[2]) > ceiling_bytes:
                raise
        else:
            return results
        self.trim()
        again: list[Any] = session.run(list(names), feeds, options)
        return again
