"""The child process that opens models for the first time: how it is started, talked to and ended."""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from modelhost.prepare.failures import Kind, PrepareFailed, is_no_descriptor, is_no_memory
from modelhost.prepare.processes import anonymous_bytes, anonymous_bytes_at_most, child_environment, family
from modelhost.units import format_bytes

#: The module that a child runs; it imports ONNX Runtime, which this one does not.
_BUILDER: Final = "modelhost.runtime.build"

#: A report has a few kilobytes; of what a child complains about, the end says why it ended.
_REPORT_BYTES: Final = 4 << 20
_LOG_BYTES: Final = 16 << 10
_CHUNK_BYTES: Final = 1 << 16

#: What a child holds is looked at so often, where somebody asks, and for no more than so much of the time.
_LOOK_EVERY_S: Final = 0.02
_LOOK_SHARE: Final = 0.05

#: Windows: nobody could end a child with all that it has started.
_NO_GROUPS: Final = (
    f"nobody has opened it yet, which a child process does and {sys.platform} has no groups of processes for; "
    "a model that was prepared elsewhere (modelhost prepare) is served here"
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may take."""

    memory_bytes: int
    seconds: float


class Child:
    """A handle on the child of one call after another. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._held_bytes = 0
        self._is_asked = False
        self.is_killed = False

    def kill(self) -> None:
        """Ends the child with its forks, and every call that still follows: those raise PrepareFailed."""
        with self._lock:
            self.is_killed = True
            self._end()

    def committed_bytes(self) -> int:
        """Returns the memory of the child and its forks, 0 where there is none.

        To tell apart what forks share takes milliseconds, and hundreds of them where the child maps memory meanwhile:
        the thread that talks to it does that, and this returns what it found last: next to nothing (but not 0) at the
        first call, and never more than they can have now.
        """
        process, self._is_asked = self._process, True
        if process is None:
            return 0
        return min(max(1, self._held_bytes), sum(map(anonymous_bytes_at_most, family(process.pid))))

    def look(self) -> None:
        """Looks at what it holds, where somebody has asked since the last time."""
        process = self._process
        if process is not None and self._is_asked:
            self._is_asked = False
            self._held_bytes = sum(map(anonymous_bytes, family(process.pid)))

    def report(self, job: bytes, bounds: Bounds) -> bytes:
        """Runs a child on a job and returns what it reports; blocks. Raises PrepareFailed."""
        if not hasattr(os, "killpg"):
            raise PrepareFailed(_NO_GROUPS, "crash")
        with self._lock:
            if self.is_killed:
                raise PrepareFailed("preparing was cancelled", "cancelled")
            try:
                self._process = process = _start()
            except OSError as error:
                kind: Kind = "memory" if error.errno in (errno.ENOMEM, errno.EAGAIN) else "crash"
                text = f"no child process can be started: {error.strerror}"
                raise PrepareFailed(text, "descriptors" if is_no_descriptor(error) else kind) from None
        try:
            talk = _Talk(process, job, self.look)
            is_in_time = talk.until(time.monotonic() + bounds.seconds)
        except OSError as error:
            text = f"the child process cannot be talked to: {error.strerror}"
            raise PrepareFailed(text, "descriptors" if is_no_descriptor(error) else "crash") from None
        finally:
            with self._lock:
                self._end()
                self._process, self._held_bytes = None, 0
            status = process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if self.is_killed:
            raise PrepareFailed("preparing was cancelled", "cancelled")
        if not is_in_time:
            raise PrepareFailed(f"it took longer than {bounds.seconds:g} s", "time")
        return talk.report if status == 0 and talk.report else _raise_reason(status, talk.complaints, bounds)

    def _end(self) -> None:
        """Ends the whole group that the child leads: a fork may have outlived it by a moment."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _raise_reason(status: int, complaints: str, bounds: Bounds) -> bytes:
    said = complaints.strip().splitlines()
    last = said[-1][:600] if said else "it said nothing"
    if any(map(is_no_memory, said)):
        raise no_memory(last, bounds)
    if status == -signal.SIGKILL:
        text = f"it was ended by signal {signal.SIGKILL:d}, as the kernel does where memory runs out: {last}"
        raise PrepareFailed(text, "memory")
    if status < 0:
        raise PrepareFailed(f"it was ended by signal {-status}: {last}", "crash")
    raise PrepareFailed(last, "crash")


def no_memory(reason: str, bounds: Bounds) -> PrepareFailed:
    """Returns the failure of a child that met its memory ceiling."""
    return PrepareFailed(f"it needs more than its {format_bytes(bounds.memory_bytes)} of memory: {reason}", "memory")


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # -P: what lies in the directory that this was started in is no module of ours.
        [sys.executable, "-P", "-m", _BUILDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=child_environment(),
        # Ctrl-C is for us, and we end it. No session of its own: to each of them the scheduler may give an equal share
        # of the CPU (`sched_autogroup`), however far what is in it stands back.
        process_group=0,
    )


class _Talk:
    """Writes the job and reads report and complaints, whichever comes; keeps only so much of either. Now and then it
    calls `look`, which may take a while."""

    def __init__(self, process: subprocess.Popen[bytes], job: bytes, look: Callable[[], None]) -> None:
        self._look, self._look_at = look, 0.0
        self.report = b""
        self._log = b""
        self._job = memoryview(job)
        self._selector = selectors.DefaultSelector()
        assert process.stdin is not None
        self._stdin = process.stdin
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, events, act in (
            (process.stdin, selectors.EVENT_WRITE, self._write),
            (process.stdout, selectors.EVENT_READ, self._read_report),
            (process.stderr, selectors.EVENT_READ, self._read_log),
        ):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream.fileno(), events, act)

    @property
    def complaints(self) -> str:
        """The end of what was written to standard error."""
        return self._log.decode(errors="replace")

    def until(self, deadline: float) -> bool:
        """Talks until the other side has ended; returns False where the deadline was first."""
        with self._selector:
            while self._selector.get_map():
                now = time.monotonic()
                if now >= deadline:
                    return False
                if now >= self._look_at:
                    self._look()
                    looked = time.monotonic()
                    self._look_at = looked + max(_LOOK_EVERY_S, (looked - now) / _LOOK_SHARE)
                for key, _ in self._selector.select(max(0.0, min(deadline, self._look_at) - time.monotonic())):
                    if not key.data(key.fd):
                        self._selector.unregister(key.fd)
                        if key.data == self._write:  # the job is whole only at its end
                            self._stdin.close()
        return True

    def _write(self, descriptor: int) -> bool:
        """Writes a part of the job; returns whether there is more."""
        try:
            self._job = self._job[os.write(descriptor, self._job[:_CHUNK_BYTES]) :]
        except BrokenPipeError:
            return False
        return bool(self._job)

    def _read_report(self, descriptor: int) -> bool:
        part = os.read(descriptor, _CHUNK_BYTES)
        if len(self.report) <= _REPORT_BYTES:
            self.report += part
        return bool(part)

    def _read_log(self, descriptor: int) -> bool:
        part = os.read(descriptor, _CHUNK_BYTES)
        self._log = (self._log + part)[-_LOG_BYTES:]
        return bool(part)
