"""A function or a command under a memory limit of the kernel."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Literal, ParamSpec, TypeVar, get_args

from modelhost.memory.cgroup import find_levels
from modelhost.testing.cgroup import MemoryCgroup
from modelhost.testing.guard import Guard
from modelhost.testing.limit_report import LimitReport, Means
from modelhost.testing.limited_child import Answer, start_fork, start_spawn
from modelhost.testing.running import Running, read_status
from modelhost.units import format_bytes, parse_duration, parse_size

P = ParamSpec("P")
T = TypeVar("T")

Wanted = Literal["auto", "cgroup", "RLIMIT_DATA", "RLIMIT_AS"]
Start = Literal["fork", "spawn"]

_RESOURCES: Final = {name: getattr(resource, name) for name in ("RLIMIT_DATA", "RLIMIT_AS") if hasattr(resource, name)}
#: `ulimit` counts in KB.
_ULIMIT: Final = {"RLIMIT_DATA": "d", "RLIMIT_AS": "v"}


class MemoryLimit:
    """What `memory_limit` returns. May be used again, and by several threads, but for the context: that is one's."""

    def __init__(self, limit_bytes: int, *, means: Wanted, start: Start, timeout_s: float | None) -> None:
        for value, accepted in ((means, Wanted), (start, Start)):
            if value not in get_args(accepted):
                raise ValueError(f"expected {' or '.join(map(repr, get_args(accepted)))}, got {value!r}")
        self.limit_bytes, self.means, self.start, self.timeout_s = limit_bytes, means, start, timeout_s
        self._opened: list[Limited] = []

    def run(self, target: Callable[..., Any] | Sequence[str], /, *arguments: Any, **options: Any) -> LimitReport:
        """Runs a function with its arguments, or a command with options of `subprocess.Popen`, and waits for it.

        Returns the report, whatever became of it. Raises OSError where no limit can be set, TypeError where a
        function cannot be taken to a new interpreter.
        """
        with Limited(self) as limited:
            return limited.start(target, *arguments, **options).wait()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Decorates: each call runs in a child process under the limit, and ends as `LimitReport.value` does."""

        @functools.wraps(function)
        def limited(*arguments: P.args, **options: P.kwargs) -> T:
            value: T = self.run(function, *arguments, **options).value()
            return value

        return limited

    def __enter__(self) -> Limited:
        self._opened.append(Limited(self).__enter__())
        return self._opened[-1]

    def __exit__(self, *exc_info: object) -> None:
        self._opened.pop().__exit__(*exc_info)


class Limited:
    """An open limit, in which several things may run at once; what still runs at the end of the context is killed.

    With a control group they share the limit, and its peak and events are those of all; an rlimit each has for
    itself. One thread.
    """

    def __init__(self, wanted: MemoryLimit) -> None:
        self.wanted: Final = wanted
        self.limit_bytes = wanted.limit_bytes
        self.group: MemoryCgroup | None = None
        """The control group; None with an rlimit."""
        self._guard: Guard | None = None
        self._running: list[Running] = []
        self._scope = ExitStack()
        self.means: Means = "RLIMIT_DATA"
        self.effective_limit_bytes, self.limited_by = wanted.limit_bytes, ""

    def __enter__(self) -> Limited:
        try:
            if self.wanted.means in ("auto", "cgroup"):
                self._open_group()
            if self.group is None:
                self._open_rlimit()
        except BaseException:
            self._scope.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            for running in self._running:
                running.kill()
        finally:
            self._scope.close()
        for running in self._running:
            running.reap()

    def _open_group(self) -> None:
        group = MemoryCgroup(self.wanted.limit_bytes)
        try:
            self._scope.enter_context(group)
        except OSError as error:
            if self.wanted.means == "cgroup" or not _RESOURCES or sys.platform == "darwin":
                raise OSError(
                    f"no memory limit of {format_bytes(self.wanted.limit_bytes)} can be set: no control group can be "
                    f"made ({error}); it takes root or a delegated group, as of `systemd-run --user --scope -p "
                    "Delegate=yes`, or a container's `--cgroupns=private` with a writable /sys/fs/cgroup"
                ) from None
            return
        self.group, self._guard = group, group.guard
        self.means = "cgroup v2" if group.version == 2 else "cgroup v1"
        outer = min(find_levels(), key=lambda level: level.limit_bytes, default=None)
        if outer is not None and outer.limit_bytes < self.effective_limit_bytes:
            self.effective_limit_bytes = outer.limit_bytes
            self.limited_by = f"the group above, {outer.path}, which others may also use"

    def _open_rlimit(self) -> None:
        self.means = "RLIMIT_AS" if self.wanted.means == "RLIMIT_AS" or sys.platform != "linux" else "RLIMIT_DATA"
        if self.means not in _RESOURCES:
            raise OSError(f"this system has no {self.means}")
        hard = resource.getrlimit(_RESOURCES[self.means])[1]
        if hard != resource.RLIM_INFINITY and hard < self.effective_limit_bytes:
            self.effective_limit_bytes, self.limited_by = hard, f"the hard {self.means} of this process"
        self._guard = self._scope.enter_context(_guarded())

    def start(self, target: Callable[..., Any] | Sequence[str], /, *arguments: Any, **options: Any) -> Running:
        """Starts a function or a command, as `MemoryLimit.run`, and does not wait for it."""
        assert self._guard is not None, "the context was not entered"
        pgid = self._guard.pgid
        process: subprocess.Popen[bytes] | None = None
        answer: Answer | None = None
        if callable(target):
            what, call = getattr(target, "__qualname__", repr(target)), (target, arguments, options)
            if self.wanted.start == "fork":
                self._check_fork()
                pid, answer = start_fork(call, pgid=pgid, prepare=self._enter)
            else:
                process, answer = start_spawn(call, pgid=pgid, command=self._command)
                pid = process.pid
        else:
            if isinstance(target, str):
                raise TypeError(f"expected a function or a list of words, got the text {target!r}")
            what = " ".join(target)
            process = subprocess.Popen(self._command(target), **{"process_group": pgid, **options})
            pid = process.pid
        running = Running(self, what, pid, process, answer, timeout_s=self.wanted.timeout_s)
        self._running.append(running)
        running.wait_until_inside()
        return running

    def _check_fork(self) -> None:
        """A fork starts with all that this process has, which an rlimit counts."""
        if self.group is None and sys.platform == "linux":
            held = read_status("VmData" if self.means == "RLIMIT_DATA" else "VmSize")
            if held > self.effective_limit_bytes:
                raise ValueError(
                    f"this process has {format_bytes(held)} that {self.means} counts, more than the limit of "
                    f"{format_bytes(self.effective_limit_bytes)}, and a fork starts with them; use start='spawn'"
                )

    def _enter(self) -> None:
        if self.group is not None:
            self.group.enter()
        else:
            resource.setrlimit(_RESOURCES[self.means], (self.effective_limit_bytes,) * 2)

    def _command(self, arguments: Sequence[str]) -> list[str]:
        if self.group is not None:
            return self.group.command(arguments)
        setting = f"ulimit -{_ULIMIT[self.means]} {self.effective_limit_bytes >> 10}"
        return ["/bin/sh", "-c", f'{setting} && exec "$0" "$@"', *arguments]


@contextmanager
def _guarded() -> Iterator[Guard]:
    guard = Guard()
    try:
        yield guard
        guard.end()
    finally:
        guard.leave()


def memory_limit(
    limit: int | str, *, means: Wanted = "auto", start: Start = "fork", timeout_s: float | str | None = None
) -> MemoryLimit:
    """Returns a limit under which functions and commands run, in child processes: `.run(…)`, a decorator, or a context.

    The limit is a memory control group's (v1, v2; no swap) where one can be made, else, or where `means` asks for
    it, an rlimit's; the report says which and what that means. `start="fork"` takes any function and what this
    process has in memory, which is not charged to the group, and only the calling thread: where other threads hold
    locks use `"spawn"`, a new interpreter for a function that can be imported. Whatever runs is killed, with the
    group and all inside, after `timeout_s`, at the end of the context, and where this process ends, however.
    """
    return MemoryLimit(
        parse_size(limit),
        means=means,
        start=start,
        timeout_s=None if timeout_s is None else parse_duration(timeout_s),
    )
