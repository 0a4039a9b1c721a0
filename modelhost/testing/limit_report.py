"""What became of a function or a command under a memory limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from modelhost.units import format_bytes, format_duration

Means = Literal["cgroup v2", "cgroup v1", "RLIMIT_DATA", "RLIMIT_AS"]

#: What a limit of each kind counts, and what happens at it.
MEANING: Final[dict[Means, str]] = {
    "cgroup v2": "the kernel counts all processes inside, file pages too, which it drops first; then it kills",
    "cgroup v1": "the kernel counts all processes inside, file pages too, which it drops first; then it kills",
    "RLIMIT_DATA": (
        "the kernel counts each process for itself: private writable mappings, touched or not, without files and "
        "shared memory; at the limit an allocation fails (MemoryError), nothing is killed"
    ),
    "RLIMIT_AS": (
        "the kernel counts each process for itself: its whole address space, libraries, files and untouched "
        "reservations included; at the limit an allocation fails (MemoryError), nothing is killed"
    ),
}


@dataclass(frozen=True, slots=True)
class LimitEvents:
    """What the kernel counted in the group; all 0 where there is none (an rlimit counts nothing)."""

    limit_hits: int = 0
    """How often usage came to the limit and something had to be taken back (v2 `max`, v1 failcnt)."""
    ooms: int = 0
    """How often nothing could be taken back (v2; v1 counts only what was killed)."""
    oom_kills: int = 0
    """Processes that the kernel has killed for it."""


@dataclass(frozen=True, slots=True)
class LimitReport:
    """How a limited function or command ended; true where it ended well, prints as a sentence or more."""

    what: str
    """The function's name or the command."""
    limit_bytes: int
    """What was asked for."""
    effective_limit_bytes: int
    """What holds: the smallest limit on the way up to the root, or the hard rlimit that was there already."""
    limited_by: str
    """Where the effective limit stands where that is not the one that was asked for; empty where it is."""
    means: Means
    peak_bytes: int
    """The most that was charged to the group, file pages included; with an rlimit the highest RSS of the process
    that was started."""
    peak_usage_bytes: int
    """The most that the kernel could not have taken back, in looks every few milliseconds while it was waited for."""
    events: LimitEvents
    exit_code: int
    """0 where a function returned, 1 where it raised; negative: the signal that ended the process."""
    timed_out: bool
    wall_s: float
    cpu_s: float
    """Of the process that was started, and of those of its children that it has waited for."""
    result: Any = None
    """What a function returned."""
    error: BaseException | None = None
    """What a function raised, with the traceback's text as a note."""

    @property
    def killed(self) -> bool:
        """Whether the kernel killed a process for memory."""
        return self.events.oom_kills > 0

    def __bool__(self) -> bool:
        return self.exit_code == 0 and not self.killed and not self.timed_out and self.error is None

    def value(self) -> Any:
        """Returns what the function returned, or raises what it raised.

        Raises MemoryError where the kernel killed a process and it did not end well, TimeoutError where the time was
        over, and ChildProcessError where it ended in another way, each with the report as its text.
        """
        if self.error is not None:
            raise self.error
        if self.timed_out:
            raise TimeoutError(str(self))
        if self.exit_code != 0:
            if self.killed:
                raise MemoryError(str(self))
            raise ChildProcessError(str(self))
        return self.result

    def __str__(self) -> str:
        lines = [
            f"{self.what}: {self._end()} after {format_duration(self.wall_s)} ({format_duration(self.cpu_s)} of CPU)",
            f"  limit {format_bytes(self.limit_bytes)} by {self.means}: {MEANING[self.means]}",
        ]
        if self.limited_by:
            lines.append(f"  {format_bytes(self.effective_limit_bytes)} of it hold, set by {self.limited_by}")
        if self.means.startswith("cgroup"):
            lines.append(
                f"  peak {format_bytes(self.peak_bytes)} with file pages, {format_bytes(self.peak_usage_bytes)} seen "
                f"without; limit reached {self.events.limit_hits} times, out of memory {self.events.ooms} times, "
                f"killed {self.events.oom_kills}"
            )
        else:
            lines.append(f"  peak RSS {format_bytes(self.peak_bytes)}")
        return "\n".join(lines)

    def _end(self) -> str:
        if self.timed_out:
            return "stopped because its time was over"
        if self.killed and self.exit_code < 0:
            return "killed by the kernel, out of memory"
        if self.error is not None:
            return f"raised {type(self.error).__name__}"
        if self.exit_code < 0:
            text = f"ended by signal {-self.exit_code}"
        else:
            text = "ended well" if self.exit_code == 0 else f"ended with {self.exit_code}"
        return f"{text}, a process of it was killed by the kernel" if self.killed else text
