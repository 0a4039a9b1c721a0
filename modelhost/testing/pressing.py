"""Bringing a process, or a control group from outside, to a level of memory that is in use, and letting go."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Final, Protocol

from modelhost.errors import InsufficientMemory
from modelhost.levels import default_critical_bytes, default_warning_bytes
from modelhost.memory.probe import Probe
from modelhost.testing.allocation import Allocation, check_room
from modelhost.testing.ballast import GroupTarget
from modelhost.testing.cgroup import MemoryCgroup
from modelhost.testing.limiting import Limited
from modelhost.units import ThresholdSpec, format_bytes, parse_size

#: How near the level has to be; pages, page tables and counters leave no more exactness than this.
_NEAR_BYTES: Final = 256 << 10
_ATTEMPTS: Final = 8


class Target(Protocol):
    """What is brought to a level."""

    name: str

    def limit_bytes(self) -> int | None:
        """Returns the kernel's limit on it, None where there is none."""

    def usage_bytes(self) -> int:
        """Reads what counts for the level."""

    def check_room(self, size_bytes: int) -> None:
        """Raises InsufficientMemory where the limit leaves less."""

    def open(self) -> None:
        """Makes it ready to grow."""

    def grow(self, size_bytes: int) -> None:
        """Adds that much, touched. Raises InsufficientMemory where that had to fail."""

    def release(self) -> None:
        """Gives back all that was added; may be called again."""


class OwnProcess:
    """This process, by its committed memory; a fork, by what it has beside the `inherited_bytes` that it began with."""

    name = "the process"

    def __init__(self, inherited_bytes: int = 0) -> None:
        self._inherited_bytes = inherited_bytes
        self._held = Allocation("anonymous")
        self.grow, self.release, self.check_room = self._held.grow, self._held.release, check_room

    def limit_bytes(self) -> int | None:
        """Returns the control group's limit."""
        probe = Probe()
        return None if probe.limit_source == "machine" else probe.limit_bytes

    def usage_bytes(self) -> int:
        """Reads committed memory exactly."""
        return max(0, Probe().committed_bytes() - self._inherited_bytes)

    def open(self) -> None:
        """It is ready."""


class Pressure:
    """The context that `pressure` returns. One thread."""

    def __init__(self, target: Target, level_bytes: int, *, allow_kill: bool) -> None:
        self.level_bytes: Final = level_bytes
        self.ballast_killed = False
        """Whether the kernel ended the ballast, where that was allowed."""
        self._target, self._allow_kill = target, allow_kill

    def __enter__(self) -> Pressure:
        missing = self.level_bytes - self.reached_bytes
        if missing < -_NEAR_BYTES:
            raise ValueError(
                f"{self._target.name} already has {format_bytes(self.reached_bytes)} in use, "
                f"expected less than the level of {format_bytes(self.level_bytes)}"
            )
        if not self._allow_kill:
            self._target.check_room(max(0, missing))
        try:
            self._target.open()
            self.top_up()
        except BaseException:
            self._target.release()
            raise
        return self

    def top_up(self) -> int:
        """Adds what has left since, if anything did; returns what is in use then. Raises InsufficientMemory."""
        for _ in range(_ATTEMPTS):
            missing = self.level_bytes - self.reached_bytes
            if missing < _NEAR_BYTES:
                break
            try:
                self._target.grow(missing - _NEAR_BYTES // 2)
            except InsufficientMemory:
                if not self._allow_kill:
                    raise
                self.ballast_killed = True
                break
        return self.reached_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._target.release()

    @property
    def reached_bytes(self) -> int:
        """What is in use now: what the process has committed, or what the kernel cannot take back from the group."""
        return self._target.usage_bytes()


def pressure(
    level: int | str,
    *,
    on: MemoryCgroup | Limited | Path | str | int | None = None,
    limit: int | str | None = None,
    allow_kill: bool = False,
    inherited_bytes: int = 0,
) -> Pressure:
    """Returns a context in which `level` is in use: bytes, a size, "80%" of the limit, "+50MB" more than now, or
    "warning" or "critical", where a host's thresholds stand by default (172 and 192 MB of 256 MB).

    Without `on` it is this process's committed memory that is brought there, less `inherited_bytes`: what a fork began
    with is not charged to its group. `on` is a control group (what
    `memory_limit` and `MemoryCgroup` give, or the group's directory) or the PID of a process, of which the
    group is meant: there a process of ballast is put into the group, and the level is what the kernel cannot
    take back from it, the scale of the host's thresholds. Shares are of `limit`, or else of the smallest
    limit of the kernel on the way up.

    Entering raises InsufficientMemory where the limit leaves less, unless a kill by the kernel is what is wanted
    (whom it kills is its choice), ValueError where more is in use already, and PermissionError where the group may
    not be entered. Raises ProcessLookupError where there is no such process.
    """
    target: Target = OwnProcess(inherited_bytes) if on is None else _group(on)
    limit_bytes = target.limit_bytes() if limit is None else parse_size(limit)
    level_bytes = _level_bytes(level, limit_bytes, target)
    if limit_bytes is not None and level_bytes > limit_bytes and not allow_kill:
        raise InsufficientMemory(
            f"the level of {format_bytes(level_bytes)} is above the limit of {format_bytes(limit_bytes)}",
            needed_bytes=level_bytes,
            available_bytes=limit_bytes,
        )
    return Pressure(target, level_bytes, allow_kill=allow_kill)


def _group(on: MemoryCgroup | Limited | Path | str | int) -> GroupTarget:
    if isinstance(on, Limited):
        if on.group is None:
            raise ValueError(f"expected a limit by a control group, got one by {on.means}, which has none")
        on = on.group
    if isinstance(on, MemoryCgroup):
        on = on.path
    return GroupTarget.of_process(on) if isinstance(on, int) else GroupTarget.at(Path(on))


def _level_bytes(level: int | str, limit_bytes: int | None, target: Target) -> int:
    spec = None if level in ("warning", "critical") else ThresholdSpec.parse(level)
    if spec is not None and spec.kind == "bytes":
        return int(spec.value)
    if spec is not None and spec.kind == "offset":
        return target.usage_bytes() + int(spec.value)
    if limit_bytes is None:
        raise ValueError(f"level {level!r} is a share of a limit: expected limit=, or a control group with one")
    critical_bytes = default_critical_bytes(limit_bytes)
    if spec is None:
        is_critical = level == "critical"
        return critical_bytes if is_critical else default_warning_bytes(limit_bytes, critical_bytes=critical_bytes)
    if spec.kind != "share":
        raise ValueError(f'expected "warning", "critical", a size, a share or an offset, got {level!r}')
    return int(limit_bytes * spec.value)
