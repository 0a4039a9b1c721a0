"""ONNX Runtime set up once in a process: what the host and the child that measures for it have in common.

What a child measures holds in the host because both open sessions with these options, on one arena with
a ceiling. Imports nothing of the host's: it would cost a child as much time as opening a small model.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnxruntime as ort

from modelhost.prepare.manifest import Variant

PROVIDERS: Final = ["CPUExecutionProvider"]

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


def set_up(ceiling_bytes: int, *, intra_op_threads: int = 1) -> None:
    """Registers the arena that all sessions share; before the first session, and once in a process."""
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
    return options


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
