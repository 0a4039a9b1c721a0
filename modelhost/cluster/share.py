"""A process's own share of memory, where its control group is not its own.

Replicas of one machine are processes of one group, together with what runs them: the group's usage says nothing of any
of them. Each has a limit of its own, and what counts against it is what the process itself has committed. The group's
limit holds beside that: where it leaves less room than the share, that is the room there is.
"""

from __future__ import annotations

from modelhost.config import MemorySettings
from modelhost.errors import ConfigError
from modelhost.memory.probe import LimitSource, Probe, Usage


class ShareProbe:
    """What counts against one process's share; implements MemoryProbe. Any thread, but for `refresh`."""

    limit_source: LimitSource = "setting"
    sees_children = False
    """Usage is the process's own: what children hold is counted beside it."""

    def __init__(self, share_bytes: int, *, around: Probe | None = None) -> None:
        """`around` reads what all processes of the group, or of the machine, have together."""
        self._share_bytes = share_bytes
        self._around = around or Probe()
        self.limit_bytes = 0
        self._take()

    def _take(self) -> None:
        self.limit_bytes = min(self._share_bytes, self._around.limit_bytes)

    def refresh(self) -> None:
        """Reads the limits around anew. Raises OSError or ValueError where they cannot be read."""
        self._around.refresh()
        self._take()

    def configure(self, limit_bytes: int | None) -> None:
        """Changes the share, from the next `refresh` on. Raises ConfigError where there would be none."""
        if limit_bytes is None:
            raise ConfigError("memory.limit: a replica has a share of its own, which has to be said")
        self._share_bytes = limit_bytes

    def usage(self) -> Usage:
        """Reads what the process has committed, or what leaves as little room as all others leave it."""
        own_bytes, around = self._around.own_usage(), self._around.usage()
        room_bytes = self._around.limit_bytes - around.usage_bytes
        return Usage(
            max(own_bytes.usage_bytes, self.limit_bytes - room_bytes),
            {**own_bytes.raw, "around_bytes": around.usage_bytes, "around_limit_bytes": self._around.limit_bytes},
        )

    def committed_bytes(self) -> int:
        """Reads the process's own anonymous memory exactly."""
        return self._around.committed_bytes()


def share_of(memory: MemorySettings) -> ShareProbe:
    """Returns the probe of a share that the settings name. Raises ConfigError where they name none."""
    if memory.limit is None:
        raise ConfigError("memory.limit is not set: a replica has to know its share of the machine")
    return ShareProbe(memory.limit)
