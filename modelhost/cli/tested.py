"""The command that `modelhost memtest` runs: under a limit, or as it is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from modelhost.testing.running import Running


class Child(Protocol):
    """The command, limited or not."""

    pid: int

    def has_ended(self, wait_s: float) -> bool:
        """Waits at most so long."""

    def in_use_bytes(self) -> int | None:
        """Reads the control group's usage; None where there is none of its own."""

    def signal(self, number: int) -> None:
        """Passes a signal on."""

    def kill(self) -> None:
        """Ends it, and what it has started."""

    def end(self) -> dict[str, Any]:
        """Returns exit code, time, and the kernel's figures."""


class _Limited:
    """The command under a limit."""

    def __init__(self, running: Running) -> None:
        self._running, self.pid = running, running.pid

    def has_ended(self, wait_s: float) -> bool:
        return self._running.has_ended(wait_s)

    def in_use_bytes(self) -> int | None:
        return self._running.in_use_bytes()

    def signal(self, number: int) -> None:
        self._running.signal(number)

    def kill(self) -> None:
        self._running.kill()

    def end(self) -> dict[str, Any]:
        report = self._running.wait()
        by_group = {"peak_charged_bytes": report.peak_bytes} if report.means.startswith("cgroup") else {}
        return {
            "command_exit_code": report.exit_code,
            "wall_s": report.wall_s,
            "cpu_s": report.cpu_s,
            "means": report.means,
            "effective_limit_bytes": report.effective_limit_bytes,
            "limited_by": report.limited_by,
            **by_group,
            **asdict(report.events),
        }


class _Watched:
    """The command as it is."""

    def __init__(self, command_line: Sequence[str]) -> None:
        self._began_s, self._cpu_s = time.monotonic(), _children_cpu_s()
        self._process = subprocess.Popen(command_line)
        self.pid = self._process.pid

    def has_ended(self, wait_s: float) -> bool:
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def in_use_bytes(self) -> None:
        """It has no group of its own."""

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        from modelhost.testing.watch import reader_here

        children = reader_here().children([self.pid])
        self._process.kill()
        for pid in children:
            _kill(pid)

    def end(self) -> dict[str, Any]:
        code = self._process.wait()
        return {
            "command_exit_code": code,
            "wall_s": time.monotonic() - self._began_s,
            "cpu_s": _children_cpu_s() - self._cpu_s,
        }


def start(stack: contextlib.ExitStack, command_line: Sequence[str], limit_bytes: int | None) -> Child:
    """Starts the command; what there is of a limit ends with `stack`. Raises OSError."""
    if limit_bytes is None:
        return _Watched(command_line)
    if sys.platform == "win32":
        raise OSError("--limit needs Linux, or a system with rlimits; without it the command is watched")
    from modelhost.testing.limiting import memory_limit

    limited = stack.enter_context(memory_limit(limit_bytes))
    # It stays in our process group, so that the terminal's keys are its own.
    return _Limited(limited.start(list(command_line), process_group=None))


@contextlib.contextmanager
def signals(child: Child) -> Iterator[None]:
    """Ctrl-C is the command's, which gets it from the terminal; the second one ends it. SIGTERM is passed on."""
    interrupts = 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            child.kill()

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: lambda number, frame: child.signal(number)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
