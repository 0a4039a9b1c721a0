"""The child as a process: its limits, what the kernel says of it, and the forks that its steps run in.

Each step runs in a fork of a process that is set up as the host is and has opened no model: what it
measures is what the host will see, since no free heap page of an earlier step hides a byte of it, and
a step that crashes costs only what it had not said yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


class StepFailed(Exception):
    """A step cannot go on; the text says why."""


@dataclass(slots=True)
class Outcome:
    """What a step said, in order, and why it ended before its end; empty where it did not."""

    said: list[Any] = field(default_factory=list)
    failure: str = ""

    def first(self, kind: type[T]) -> T | None:
        """Returns the first value of a kind that the step said."""
        return next((value for value in self.said if isinstance(value, kind)), None)

    def all(self, kind: type[T]) -> list[T]:
        """Returns all values of a kind that the step said."""
        return [value for value in self.said if isinstance(value, kind)]


def apart(step: Callable[[], Iterator[Any]]) -> Outcome:
    """Runs a step in a fork; what it yields is kept whatever becomes of it later."""
    reader, writer = os.pipe()
    parent = os.getpid()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            end_with_parent(parent)
            with open(writer, "wb") as stream:
                _say_all(step, stream)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    outcome = Outcome()
    # The stream's end, or what a crash has cut short.
    with open(reader, "rb") as stream, contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            value = pickle.load(stream)
            if isinstance(value, StepFailed):
                outcome.failure = str(value)
            else:
                outcome.said.append(value)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        outcome.failure = f"it was ended by {_signal_text(-code)}"
    elif code > 0:
        outcome.failure = "it ended without a word"
    return outcome


def _say_all(step: Callable[[], Iterator[Any]], stream: Any) -> None:
    try:
        for value in step():
            pickle.dump(value, stream)
            stream.flush()
    except Exception as error:
        pickle.dump(StepFailed(reason(error)), stream)


def reason(error: Exception) -> str:
    """One line, with the kind of error where it is not ONNX Runtime's or ours."""
    text = " ".join(str(error).split())
    # Without its code, and its build machine's paths.
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+?:\d+ (?:[\w:*&<>~ ]+\([^)]*\)(?: const)? )?", "", text)[:500]
    is_plain = isinstance(error, StepFailed) or type(error).__module__.startswith("onnxruntime")
    return text if is_plain and text else f"{type(error).__name__}: {text}"


def is_killed(failure: str) -> bool:
    """Says whether a step was ended as the kernel does where memory runs out."""
    return signal.SIGKILL.name in failure


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    return f"signal {number} ({name})"


# --- the process ---------------------------------------------------------------------------------------


def end_with_parent(parent: int) -> None:
    """Has the kernel end this process when its parent's thread ends, however that ends."""
    if sys.platform != "linux":
        return
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we said so
        os._exit(1)


#: Than the host's thread that has started this process, which lets others go first already: a tenth of their share.
_NICER: Final = 5


def stand_back() -> None:
    """Lets everybody else go first: at the CPU, and when the kernel looks for whom to kill."""
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICER)


def limit_memory(ceiling_bytes: int) -> None:
    """Has the kernel refuse this process, and each fork, more memory of its own than the ceiling."""
    # It counts address space here, of which a good part is never touched: that is not held against us.
    untouched_bytes = max(0, status_bytes("VmData") - status_bytes("RssAnon"))
    _set_data_limit(ceiling_bytes + untouched_bytes)


def allow_pages(file: Path) -> None:
    """Leaves the pages of a file out of the limit, which ONNX Runtime maps so that they look like memory."""
    with contextlib.suppress(OSError):  # small models have no such file
        _set_data_limit(resource.getrlimit(resource.RLIMIT_DATA)[0] + file.stat().st_size)


def _set_data_limit(size_bytes: int) -> None:
    hard_bytes = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard_bytes != resource.RLIM_INFINITY:
        size_bytes = min(size_bytes, hard_bytes)
    resource.setrlimit(resource.RLIMIT_DATA, (size_bytes, hard_bytes))


def status_bytes(field: str) -> int:
    """Returns a figure of /proc/self/status, 0 where it has no such field."""
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return 0


def committed_bytes() -> int:
    """Returns the process's anonymous memory, exactly where the kernel has smaps_rollup."""
    with contextlib.suppress(OSError), open("/proc/self/smaps_rollup") as stream:
        for line in stream:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    return status_bytes("RssAnon")


def reset_peak() -> None:
    """Has VmHWM begin again at what is resident now."""
    with contextlib.suppress(OSError):  # without it a fork's peak is that of its life: an upper bound
        Path("/proc/self/clear_refs").write_text("5")


def trim_heap() -> None:
    """Gives free heap pages back. The launcher sets the allocator up through the environment."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
