"""Real memory cgroups for child processes: the limit, the peak, what the kernel killed. Cleans up.

    with MemoryCgroup(256 << 20) as group:
        child = subprocess.Popen(group.command(["modelhost", "serve"]))
        ...
        print(group.read())

Works on cgroup v1 and on v2 where the memory controller is there to give on: below the process's own
group, else below the nearest ancestor that allows it, and never outside of a limit that holds for the
process itself. `available` says why not where none can be made. Linux only.

Also where this process is killed meanwhile, whatever is inside ends and the group goes (`guard`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelhost.memory.cgroup import Group, find_ancestry, limiting, read_levels
from modelhost.testing.guard import Guard

_MB: Final = 1 << 20
_COUNTER: Final = itertools.count()
_REMOVE_TIMEOUT_S: Final = 10.0

#: Moves itself into the group `$0`, then becomes the command: nothing of it is charged elsewhere.
_ENTER: Final = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True, slots=True)
class CgroupFigures:
    """What the kernel says about a group now, in bytes, and how often what happened."""

    current_bytes: int
    """Everything that is charged, page cache included."""
    file_bytes: int
    """Page cache, which the kernel takes back when it needs it."""
    peak_bytes: int
    """Highest `current_bytes`; stands at the limit as soon as enough files were read."""
    limit_hits: int
    """How often the limit was reached, so that page cache had to go (v1 failcnt, v2 `max`); some recent
    kernels leave it at 0 on v1."""
    oom_kills: int
    """Processes that the kernel has killed."""
    kernel_bytes: int = 0
    """Page tables, mappings, inodes, the index of cached pages: part of `usage_bytes`, nobody's anonymous memory."""
    ooms: int = 0
    """How often nothing could be taken back and a kill was near (v2 `oom`; v1 counts only the kills)."""

    @property
    def usage_bytes(self) -> int:
        """What the kernel cannot take back; the scale of the host's thresholds."""
        return max(0, self.current_bytes - self.file_bytes)


class MemoryCgroup:
    """A memory cgroup of its own with a hard limit and no swap, for the scope of the context."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.path = Path()
        self.version = 0
        self._guard: Guard | None = None

    def __enter__(self) -> MemoryCgroup:
        errors = []
        for parent in _parents():
            try:
                self.path, self.version = _make(parent, self.limit_bytes), parent.version
            except OSError as error:
                errors.append(f"{parent.path}: {error.strerror}")
            else:
                self._set_guard()
                return self
        raise OSError("; ".join(errors) or "no memory cgroup is mounted")

    def _set_guard(self) -> None:
        try:
            self._guard = Guard(self.path)
        except BaseException:
            self.path.rmdir()
            raise

    @property
    def guard(self) -> Guard:
        """What removes the group where this process is gone before the context has ended."""
        assert self._guard is not None, "the context was not entered"
        return self._guard

    def __exit__(self, *exc_info: object) -> None:
        if not self.guard.is_ours:  # a fork of ours leaves the same context
            return
        try:
            self._remove()
            self.guard.end()
        finally:
            self.guard.leave()

    def _remove(self) -> None:
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        while True:
            self.kill()
            for group in reversed(self._tree()):
                with contextlib.suppress(OSError):  # busy for as long as a process is on its way out
                    group.rmdir()
            if not self.path.exists():
                return
            if time.monotonic() > deadline:
                raise OSError(f"{self.path} could not be removed, processes {self.pids()} are in it")
            time.sleep(0.02)

    def kill(self) -> None:
        """Kills whatever is inside; returns before it is gone."""
        try:
            (self.path / "cgroup.kill").write_text("1")  # v2 since Linux 5.14; also those that are forked meanwhile
        except OSError:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _tree(self) -> list[Path]:
        """The group and those that were made inside of it, each after the one that it is in."""
        return [Path(directory) for directory, _, _ in os.walk(self.path)]

    def change_limit(self, limit_bytes: int) -> None:
        """Changes the limit while the group is in use; `limit_bytes` stays what it was made with.

        Raises OSError on v1 where the kernel cannot take back so much; v2 kills then.
        """
        _limit(self.path, self.version, limit_bytes, is_raised=limit_bytes >= self._limit_now())

    def approach_limit(self, wanted_bytes: int) -> bool:
        """Lowers the limit towards `wanted_bytes`; says whether all the way. Try again until it is reached.

        A quarter of it stays above what is in use: whoever is inside has to shed first, which it does when it
        is told so by the limit that it has, and may be in the middle of a load. The kernel would refuse (v1) or
        kill (v2) where it cannot take back enough, and kill where what is left does not do.
        """
        now_bytes = self._limit_now()
        step_bytes = max(wanted_bytes, self.read().usage_bytes + wanted_bytes // 4)
        if step_bytes < now_bytes:
            with contextlib.suppress(OSError):  # it has grown since
                self.change_limit(step_bytes)
        return self._limit_now() <= wanted_bytes

    def _limit_now(self) -> int:
        text = (self.path / ("memory.max" if self.version == 2 else "memory.limit_in_bytes")).read_text().strip()
        return sys.maxsize if text == "max" else int(text)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Returns the command that runs `arguments` inside the group, from its first instruction on."""
        return ["/bin/sh", "-c", _ENTER, str(self.path), *arguments]

    def enter(self, pid: int = 0) -> None:
        """Moves a process inside, 0 the caller; what it was charged before stays where it was. Raises OSError."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """The processes that are inside, those of groups that were made inside of it too."""
        return [pid for group in self._tree() for pid in _pids(group)]

    def read(self) -> CgroupFigures:
        """Reads the kernel's figures; takes some 50 microseconds. Raises OSError where the group is gone."""
        return read_figures(self.path, self.version)


def read_figures(path: Path, version: int) -> CgroupFigures:
    """Reads the figures of any memory group. Raises OSError where it is gone."""
    stat = _table(path / "memory.stat")
    if version == 2:
        events = _table(path / "memory.events")
        current = _number(path / "memory.current")
        peak = _number(path / "memory.peak", missing=current)  # since Linux 5.19
        hits, kills, ooms, prefix = events["max"], events["oom_kill"], events["oom"], ""
        kernel = stat.get("kernel", 0)  # since Linux 5.18
    else:
        control = _table(path / "memory.oom_control")
        current, peak = _number(path / "memory.usage_in_bytes"), _number(path / "memory.max_usage_in_bytes")
        # With swap accounting memory and swap are charged first, and it is that counter which fails.
        hits = _number(path / "memory.failcnt") + _number(path / "memory.memsw.failcnt", missing=0)
        kills, prefix = control.get("oom_kill", 0), "total_"
        ooms = kills
        kernel = _number(path / "memory.kmem.usage_in_bytes", missing=0)
    file_bytes = stat[f"{prefix}inactive_file"] + stat[f"{prefix}active_file"]
    return CgroupFigures(current, file_bytes, peak, hits, kills, kernel, ooms)


def _pids(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def available() -> str | None:
    """Returns why no memory cgroup can be made here, None where one can."""
    try:
        with MemoryCgroup(64 * _MB):
            return None
    except OSError as error:
        return f"no memory cgroup can be made here ({error}); it takes root or a delegated group"


def _number(file: Path, *, missing: int | None = None) -> int:
    """Reads one figure; `missing` stands in where this kernel has no such file."""
    if missing is not None and not file.exists():
        return missing
    return int(file.read_text())


def _table(file: Path) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, file.read_text().splitlines())}


def _parents() -> list[Group]:
    """Returns where a group might be made: the own group and those above it, not past a limit that holds for us.

    Those come first that give the controller on already: in others it takes a move (`_give_on`).
    """
    found = []
    for group in find_ancestry():
        found.append(group)
        if read_levels(limiting((group,))):
            break
    return sorted(found, key=lambda group: not _gives_on(group))


def _gives_on(group: Group) -> bool:
    if group.version == 1:
        return True
    try:
        return "memory" in (group.path / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def _make(parent: Group, limit_bytes: int) -> Path:
    """Makes a group with that limit and without swap. Raises OSError, with nothing left behind."""
    path = parent.path / f"modelhost-{os.getpid()}-{next(_COUNTER)}"
    path.mkdir()
    try:
        if parent.version == 2 and not (path / "memory.max").exists():
            _give_on(parent.path)
        _limit(path, parent.version, limit_bytes)
    except BaseException:
        path.rmdir()
        raise
    return path


def _give_on(parent: Path) -> None:
    """Gives v2's memory controller to the groups below `parent`. Raises OSError.

    A group that gives controllers on may have no process itself. A delegated group is where the process is
    that it was delegated to, so that this one moves to a leaf beside the new group, and stays there.
    """
    control = parent / "cgroup.subtree_control"
    try:
        control.write_text("+memory")
    except OSError:
        inside = [int(line) for line in (parent / "cgroup.procs").read_text().split()]
        if inside != [os.getpid()]:  # others are not ours to move
            raise
        leaf = parent / f"modelhost-{os.getpid()}-self"
        leaf.mkdir(exist_ok=True)
        try:
            (leaf / "cgroup.procs").write_text("0")
            control.write_text("+memory")
        except OSError:
            (parent / "cgroup.procs").write_text("0")
            leaf.rmdir()
            raise


def _limit(path: Path, version: int, limit_bytes: int, *, is_raised: bool = False) -> None:
    if version == 2:
        (path / "memory.max").write_text(str(limit_bytes))
        swap, value = path / "memory.swap.max", 0
    else:
        swap, value = path / "memory.memsw.limit_in_bytes", limit_bytes
        if is_raised and swap.exists():  # never below that of memory alone
            swap.write_text(str(value))
        (path / "memory.limit_in_bytes").write_text(str(limit_bytes))
    if swap.exists():  # not where the kernel was built or booted without swap accounting
        swap.write_text(str(value))
