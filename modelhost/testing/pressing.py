"""Bringing the process to a level of committed memory, and letting go."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from modelhost.errors import InsufficientMemory
from modelhost.memory.probe import Probe
from modelhost.testing.allocation import Allocation, check_room
from modelhost.units import format_bytes, parse_size

#: How near the level has to be; pages, page tables and counters leave no more exactness than this.
_NEAR_BYTES: Final = 256 << 10
_ATTEMPTS: Final = 8


class Pressure:
    """The context that `pressure` returns. One thread."""

    def __init__(self, level_bytes: int, *, allow_kill: bool) -> None:
        self.level_bytes: Final = level_bytes
        self._allow_kill = allow_kill
        self._held = Allocation("anonymous")

    def __enter__(self) -> Pressure:
        missing = self.level_bytes - self.reached_bytes
        if missing < -_NEAR_BYTES:
            raise ValueError(
                f"the process already has {format_bytes(self.reached_bytes)} committed, "
                f"expected less than the level of {format_bytes(self.level_bytes)}"
            )
        if not self._allow_kill:
            check_room(max(0, missing))
        try:
            for _ in range(_ATTEMPTS):
                missing = self.level_bytes - self.reached_bytes
                if missing < _NEAR_BYTES:
                    break
                self._held.grow(missing)
        except BaseException:
            self._held.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.release()

    @property
    def reached_bytes(self) -> int:
        """What the process has committed now, read exactly."""
        return Probe().committed_bytes()


def pressure(level: int | str, *, limit: int | str | None = None, allow_kill: bool = False) -> Pressure:
    """Returns a context in which this process has `level` committed: bytes, a size, "warning" or "critical".

    The two names stand for 60 % and 75 % of `limit`, or of the control group's limit where none is given.
    Entering raises InsufficientMemory where the limit leaves less, unless a kill by the kernel is what is
    wanted, and ValueError where the process is over the level already.
    """
    shares = {"warning": 0.6, "critical": 0.75}
    if isinstance(level, str) and level in shares:
        probe = Probe(None if limit is None else parse_size(limit))
        if probe.limit_source == "machine":
            raise ValueError(f"level {level!r} is a share of a limit: expected limit=, or a control group with one")
        return Pressure(int(probe.limit_bytes * shares[level]), allow_kill=allow_kill)
    level_bytes = parse_size(level)
    if limit is not None and level_bytes > parse_size(limit) and not allow_kill:
        raise InsufficientMemory(
            f"the level of {format_bytes(level_bytes)} is above the limit of {format_bytes(parse_size(limit))}",
            needed_bytes=level_bytes,
            available_bytes=parse_size(limit),
        )
    return Pressure(level_bytes, allow_kill=allow_kill)
