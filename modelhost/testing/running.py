"""A process under a memory limit, from its start to the report of its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

from modelhost.testing.cgroup import MemoryCgroup
from modelhost.testing.limit_report import LimitEvents, LimitReport, Means
from modelhost.testing.limited_child import Answer

#: Between two looks at a child that is waited for: long against a look (some 50 microseconds).
_LOOK_INTERVAL_S: Final = 0.01
_ENTER_POLL_S: Final = 0.001


class Limit(Protocol):
    """The limit that holds for a process."""

    limit_bytes: int
    effective_limit_bytes: int
    limited_by: str
    means: Means
    group: MemoryCgroup | None


class Running:
    """What `Limited.start` returns. The thread that opened the limit, and while that is open."""

    def __init__(
        self,
        limit: Limit,
        what: str,
        pid: int,
        process: subprocess.Popen[bytes] | None,
        answer: Answer | None,
        *,
        timeout_s: float | None,
    ) -> None:
        self.pid: Final = pid
        self.process: Final = process
        """The command's `Popen`, for its pipes; to wait for its end is left to `wait`."""
        self._limit, self._what, self._answer, self._timeout_s = limit, what, answer, timeout_s
        self._started_s = time.monotonic()
        self._wall_s: float | None = None
        self._exit_code, self._cpu_s, self._timed_out = 0, 0.0, False
        self._peak_usage_bytes = self._peak_rss_bytes = 0
        # A process that becomes a command keeps, as its own peak, that of the process it was forked from.
        self._inherited_rss_bytes = 0 if process is None else read_status("VmHWM")

    def wait(self, timeout_s: float | None = None) -> LimitReport:
        """Waits for the end and returns the report.

        Where it runs on after that time, or else the limit's own, it is killed, and what else is in its group.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.has_ended(_LOOK_INTERVAL_S):
            if deadline_s is not None and time.monotonic() >= deadline_s:
                self._timed_out = True
                self.kill()
                self._take(os.wait4(self.pid, 0))
        return self._report()

    def has_ended(self, wait_s: float = 0.0) -> bool:
        """Waits for the end, at most so long, and says whether it has come."""
        if self._has_ended():
            return True
        self._look()
        poll = select.poll()
        if self._answer is not None and not self._answer.is_complete:
            poll.register(self._answer.descriptor, select.POLLIN)
        with contextlib.ExitStack() as stack:
            if hasattr(os, "pidfd_open"):
                descriptor = os.pidfd_open(self.pid)
                stack.callback(os.close, descriptor)
                poll.register(descriptor, select.POLLIN)
            poll.poll(wait_s * 1000)
        return self._has_ended()

    def wait_until_inside(self) -> None:
        """Waits until it has entered its group, which it does itself, or ended."""
        if self._limit.group is not None:
            while self.pid not in self._limit.group.pids() and not self._has_ended():
                time.sleep(_ENTER_POLL_S)

    def in_use_bytes(self) -> int | None:
        """Reads what the kernel cannot take back from its control group; None where there is none."""
        return None if self._limit.group is None else self._limit.group.read().usage_bytes

    def signal(self, number: int) -> None:
        """Sends a signal where it has not ended."""
        if self._wall_s is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills it where it still runs, and what else is in the control group where there is one."""
        if self._limit.group is not None:
            self._limit.group.kill()
        elif self._wall_s is None:
            os.kill(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Waits for the end of what was killed, and closes the pipe from it."""
        if self._wall_s is None:
            self._take(os.wait4(self.pid, 0))
        if self._answer is not None:
            self._answer.close()

    def _has_ended(self) -> bool:
        if self._wall_s is None:
            self._take(os.wait4(self.pid, os.WNOHANG))
        return self._wall_s is not None

    def _take(self, ended: tuple[int, int, Any]) -> None:
        pid, status, usage = ended
        if pid == 0:
            return
        self._wall_s = time.monotonic() - self._started_s
        self._exit_code = os.waitstatus_to_exitcode(status)
        self._cpu_s = usage.ru_utime + usage.ru_stime
        rss_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if rss_bytes > self._inherited_rss_bytes:
            self._peak_rss_bytes = max(self._peak_rss_bytes, rss_bytes)
        if self.process is not None:
            self.process.returncode = self._exit_code  # else it would look for a process that is gone
        if self._answer is not None:
            self._answer.receive()

    def _look(self) -> None:
        """Takes what has arrived, and the usage of now."""
        if self._answer is not None:
            self._answer.receive()
        if self._limit.group is not None:
            self._peak_usage_bytes = max(self._peak_usage_bytes, self._limit.group.read().usage_bytes)
        else:
            self._peak_rss_bytes = max(self._peak_rss_bytes, read_status("VmHWM", self.pid))

    def _report(self) -> LimitReport:
        assert self._wall_s is not None
        limit = self._limit
        result, error = (None, None) if self._answer is None else self._answer.read()
        if self._answer is not None and self._answer.is_empty and self._exit_code == 0:
            error = ChildProcessError(f"{self._what} ended its process with 0 before it returned")
        figures = None if limit.group is None else limit.group.read()
        return LimitReport(
            what=self._what,
            limit_bytes=limit.limit_bytes,
            effective_limit_bytes=limit.effective_limit_bytes,
            limited_by=limit.limited_by,
            means=limit.means,
            peak_bytes=self._peak_rss_bytes if figures is None else figures.peak_bytes,
            peak_usage_bytes=self._peak_rss_bytes if figures is None else self._peak_usage_bytes,
            events=LimitEvents()
            if figures is None
            else LimitEvents(figures.limit_hits, figures.ooms, figures.oom_kills),
            exit_code=self._exit_code,
            timed_out=self._timed_out,
            wall_s=self._wall_s,
            cpu_s=self._cpu_s,
            result=result,
            error=error,
        )


def read_status(name: str, pid: int | None = None) -> int:
    """Reads a size from a process's `status`, in bytes; 0 where it is not there."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
