"""Real memory cgroups for a child process: the limit, the peak, what the kernel killed. Cleans up.

    with MemoryCgroup(256 << 20) as group:
        child = subprocess.Popen(group.command(["modelhost", "serve"]))
        ...
        print(group.read())

Works on cgroup v1 (below the process's own group, else below the mount's root) and on v2 where the
memory controller is delegated. `available` says why it is not where it is not. Linux only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MB: Final = 1 << 20
_COUNTER: Final = itertools.count()

#: Moves itself into the group `$0`, then becomes the command: nothing of it is charged elsewhere.
_ENTER: Final = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """What the kernel says about a group now, in bytes."""

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
    kernel_bytes: int = 0
    """Page tables, mappings, inodes, the index of cached pages: part of `usage_bytes`, nobody's anonymous memory."""

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

    def __enter__(self) -> MemoryCgroup:
        errors = []
        for version, parent in _parents():
            path = parent / f"modelhost-bench-{os.getpid()}-{next(_COUNTER)}"
            try:
                path.mkdir()
            except OSError as error:
                errors.append(f"{parent}: {error.strerror}")
                continue
            try:
                _limit(path, version, self.limit_bytes)
            except OSError as error:
                errors.append(f"{path}: {error.strerror}")
                path.rmdir()
                continue
            self.path, self.version = path, version
            return self
        raise OSError("; ".join(errors) or "no memory cgroup is mounted")

    def __exit__(self, *exc_info: object) -> None:
        deadline = time.monotonic() + 10
        while True:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):  # busy for as long as a process is on its way out
                self.path.rmdir()
            if not self.path.exists():
                return
            if time.monotonic() > deadline:
                raise OSError(f"{self.path} could not be removed, processes {self.pids()} are in it")
            time.sleep(0.02)

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

    def pids(self) -> list[int]:
        """The processes that are inside."""
        try:
            return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def read(self) -> GroupFigures:
        """Reads the kernel's figures; takes some 50 microseconds."""
        if self.version == 2:
            stat, events = self._table("memory.stat"), self._table("memory.events")
            current = self._number("memory.current")
            peak = self._number("memory.peak", missing=current)  # since Linux 5.19
            hits, kills, prefix = events["max"], events["oom_kill"], ""
            kernel = stat.get("kernel", 0)  # since Linux 5.18
        else:
            stat, control = self._table("memory.stat"), self._table("memory.oom_control")
            current, peak = self._number("memory.usage_in_bytes"), self._number("memory.max_usage_in_bytes")
            # With swap accounting memory and swap are charged first, and it is that counter which fails.
            hits = self._number("memory.failcnt") + self._number("memory.memsw.failcnt", missing=0)
            kills, prefix = control.get("oom_kill", 0), "total_"
            kernel = self._number("memory.kmem.usage_in_bytes", missing=0)
        file_bytes = stat[f"{prefix}inactive_file"] + stat[f"{prefix}active_file"]
        return GroupFigures(current, file_bytes, peak, hits, kills, kernel)

    def _number(self, file: str, *, missing: int | None = None) -> int:
        """Reads one figure; `missing` stands in where this kernel has no such file."""
        if missing is not None and not (self.path / file).exists():
            return missing
        return int((self.path / file).read_text())

    def _table(self, file: str) -> dict[str, int]:
        return {key: int(value) for key, value in map(str.split, (self.path / file).read_text().splitlines())}


def available() -> str | None:
    """Returns why no memory cgroup can be made here, None where one can."""
    try:
        with MemoryCgroup(64 * _MB):
            return None
    except OSError as error:
        return f"no memory cgroup can be made here ({error}); it takes root or a delegated group"


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


def _parents() -> Iterator[tuple[int, Path]]:
    """Yields where a group might be made: in the own group, then at the mount; v1 first, as the kernel does."""
    own = {kinds: path for _, kinds, path in _lines(Path("/proc/self/cgroup"))}
    v1 = next((path for kinds, path in own.items() if "memory" in kinds.split(",")), None)
    for version, mount in _mounts():
        path = v1 if version == 1 else own.get("")
        if path is None:
            continue
        for parent in dict.fromkeys((mount / path.lstrip("/"), mount)):
            if parent.is_dir():
                yield version, parent


def _lines(file: Path) -> Iterator[tuple[str, str, str]]:
    try:
        text = file.read_text()
    except OSError:
        return
    for line in text.splitlines():
        number, kinds, path = line.split(":", 2)
        yield number, kinds, path


def _mounts() -> Iterator[tuple[int, Path]]:
    """Yields version and mount point of each hierarchy that may have the memory controller."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return
    found = []
    for line in mounts:
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup" and "memory" in options.split(","):
            found.append((1, Path(point)))
        elif kind == "cgroup2":
            found.append((2, Path(point)))
    yield from sorted(found)
