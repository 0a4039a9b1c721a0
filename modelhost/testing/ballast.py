"""A process inside a control group that holds as much memory as it is told to."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path
from typing import Final

from modelhost.errors import InsufficientMemory
from modelhost.memory.cgroup import Group, Level, find_ancestry, limiting, read_levels
from modelhost.testing.allocation import Allocation, check_left
from modelhost.testing.cgroup import read_figures
from modelhost.units import format_bytes

_WORD_BYTES: Final = 8
#: Of what is asked for; the page tables for it, which count too, are a 512th.
_PAGE_TABLES: Final = 1 / 500


class GroupTarget:
    """A control group that is brought to a level from outside, by what the kernel cannot take back from it."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._group, self._groups = groups[0], groups
        self.name = f"the group {self._group.path}"
        self._ballast: Ballast | None = None

    @classmethod
    def at(cls, path: Path) -> GroupTarget:
        """Takes the group in that directory. Raises ValueError where it is no memory group."""
        version = 2 if (path / "cgroup.controllers").is_file() else 1
        groups = tuple(
            Group(directory, version, directory == path)
            for directory in (path, *path.parents)
            if (directory / "cgroup.procs").is_file()
        )
        if not groups or not (path / "memory.stat").is_file():
            raise ValueError(f"expected the directory of a memory control group, got {path}")
        return cls(groups)

    @classmethod
    def of_process(cls, pid: int) -> GroupTarget:
        """Takes the group of a process. Raises ProcessLookupError, ValueError where it is in none."""
        proc = Path(f"/proc/{pid}")
        if not proc.is_dir():
            raise ProcessLookupError(f"there is no process {pid}")
        groups = find_ancestry(proc, seen_from=Path("/proc/self"))
        while groups and not (groups[0].path / "memory.stat").is_file():
            groups = groups[1:]  # v2: the nearest above that has the controller counts for it
        if not groups:
            raise ValueError(f"process {pid} is in no memory control group that can be seen from here")
        return cls(groups)

    def limit_bytes(self) -> int | None:
        """Returns the smallest limit on the way up."""
        return min((level.limit_bytes for level in self._levels()), default=None)

    def _levels(self) -> tuple[Level, ...]:
        return read_levels(limiting(self._groups))

    def usage_bytes(self) -> int:
        """Reads what the kernel cannot take back."""
        return read_figures(self._group.path, self._group.version).usage_bytes

    def check_room(self, size_bytes: int) -> None:
        """Raises InsufficientMemory, with the figures, where a limit on the way up leaves less."""
        for level in self._levels():
            left_bytes = level.limit_bytes - level.read().unreclaimable_bytes
            limit = f"the limit of {format_bytes(level.limit_bytes)} of {level.path}"
            check_left(size_bytes, left_bytes, "more were", limit)

    def open(self) -> None:
        """Puts the ballast inside. Raises PermissionError."""
        self._ballast = Ballast(self._group.path)
        self._ballast.grow(1)  # what it takes itself to work is there before the first look

    def grow(self, size_bytes: int) -> None:
        """Adds that much. Raises InsufficientMemory where the ballast is killed for it, or cannot have it."""
        assert self._ballast is not None
        if not self._ballast.grow(int(size_bytes * (1 - _PAGE_TABLES))):
            raise InsufficientMemory(
                f"the ballast in {self.name} was ended when it grew by {format_bytes(size_bytes)}; "
                f"{format_bytes(self.usage_bytes())} are in use without it",
                needed_bytes=size_bytes,
                available_bytes=0,
            )

    def release(self) -> None:
        """Ends the ballast and waits for its end."""
        if self._ballast is not None:
            self._ballast.end()
            self._ballast = None


class Ballast:
    """A fork of this process in a control group; it ends with whoever told it to hold something."""

    def __init__(self, group: Path) -> None:
        told, self._tell = os.pipe()
        self._hear, say = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads: nothing of theirs is used
            self.pid: Final = os.fork()
        if self.pid == 0:
            try:
                os.close(self._tell)
                _hold(told, say)
            finally:
                os._exit(0)
        os.close(told)
        os.close(say)
        try:
            (group / "cgroup.procs").write_text(str(self.pid))
        except OSError as error:
            self.end()
            raise PermissionError(
                f"no process can be put into {group} ({error.strerror}): it takes root, or the owner of a delegated "
                "group in which there are processes and no groups"
            ) from None

    def grow(self, size_bytes: int) -> bool:
        """Waits until that much more is held; says whether it is, or the ballast ended instead."""
        try:
            os.write(self._tell, size_bytes.to_bytes(_WORD_BYTES, "little"))
        except BrokenPipeError:
            return False
        return bool(os.read(self._hear, 1))

    def end(self) -> None:
        """Kills it and waits for its end."""
        os.close(self._tell)
        os.close(self._hear)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _hold(told: int, say: int) -> None:
    held = Allocation("anonymous")
    while word := os.read(told, _WORD_BYTES):
        held.grow(int.from_bytes(word, "little"))
        os.write(say, b".")
