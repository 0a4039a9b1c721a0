"""A probe that always has an answer: the last good one, on the safe side, where the kernel's files cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from modelhost.memory.probe import LimitSource, MemoryProbe, Usage

#: What reading a file that has gone, that holds something else, or for which no descriptor is left raises.
_UNREADABLE: Final = (OSError, ValueError, LookupError)


class SteadyProbe:
    """Stands before another probe. The owner's thread, but for `committed_bytes`.

    `resident_bytes` is what loaded models are booked at: while usage cannot be read, it is taken to have grown
    by what was loaded since, and never to have fallen. What runs and requests may take besides is kept free
    above critical anyway. `on_change` is told when reading stops to work, with the reason, and when it
    works again, with None.
    """

    def __init__(
        self,
        probe: MemoryProbe,
        *,
        resident_bytes: Callable[[], int] = lambda: 0,
        on_change: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self._probe = probe
        self._resident_bytes, self._on_change = resident_bytes, on_change
        self.limit_bytes = probe.limit_bytes
        self.limit_source: LimitSource = probe.limit_source
        self.failures = 0
        """Readings that did not work, of every kind; where it changes, what was measured meanwhile is not exact."""
        self._last: Usage | None = None
        self._last_resident_bytes = 0
        self._last_committed_bytes = 0
        self._unread_limit = ""
        self._is_unreadable = False

    @property
    def sees_children(self) -> bool:
        """Whether usage has the memory of child processes in it."""
        return self._probe.sees_children

    def refresh(self) -> None:
        """Reads the limit anew, as far as it can be read; raises nothing."""
        try:
            self._probe.refresh()
        except _UNREADABLE as error:
            self.failures += 1
            self._unread_limit = _reason(error)
            self._tell(self._unread_limit)
            return
        self._unread_limit = ""
        self.limit_bytes, self.limit_source = self._probe.limit_bytes, self._probe.limit_source

    def usage(self) -> Usage:
        """Reads usage. Raises what the other one does as long as it has never worked."""
        resident_bytes = self._resident_bytes()
        try:
            found = self._probe.usage()
        except _UNREADABLE as error:
            if self._last is None:
                raise
            self.failures += 1
            self._tell(_reason(error))
            grown_bytes = max(0, resident_bytes - self._last_resident_bytes)
            return replace(self._last, usage_bytes=self._last.usage_bytes + grown_bytes)
        self._last, self._last_resident_bytes = found, resident_bytes
        self._tell(self._unread_limit or None)
        return found

    def committed_bytes(self) -> int:
        """Reads the process's own memory; the last figure where that does not work. Any thread."""
        try:
            self._last_committed_bytes = self._probe.committed_bytes()
        except _UNREADABLE:
            self.failures += 1
        return self._last_committed_bytes

    def _tell(self, reason: str | None) -> None:
        if (reason is not None) != self._is_unreadable:
            self._is_unreadable = reason is not None
            self._on_change(reason)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename).rpartition('/')[2]}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
