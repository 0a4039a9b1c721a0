"""Where the kernel's memory limits for this process stand, for cgroup v2 and v1.

The limit in force is the smallest one on the way from the process's own group to the root; what is
left is the smallest room on that way, since an ancestor also counts the groups beside ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from modelhost.memory.figures import figure, read_file

#: v1 writes "no limit" as the largest multiple of the page size below 2**63.
_NO_LIMIT_FROM: Final = 1 << 60

#: In memory.stat, by version: v1 counts the groups below under names of their own, and so does the limit.
_STAT_NAMES: Final = {
    1: (b"total_inactive_file", b"total_active_file", b"total_shmem"),
    2: (b"inactive_file", b"active_file", b"shmem"),
}


@dataclass(frozen=True, slots=True)
class Level:
    """One group on the way to the root that has a limit of its own."""

    path: Path
    version: int
    limit_bytes: int
    is_own: bool = True
    """Whether it is the process's own group, not an ancestor's."""

    def read(self) -> LevelUsage:
        """Reads what the group uses now. Raises OSError where the group is gone."""
        return read_usage(self.path, self.version)[0]


@dataclass(frozen=True, slots=True)
class LevelUsage:
    """Raw figures of one group, in bytes."""

    current_bytes: int
    inactive_file_bytes: int
    active_file_bytes: int

    @property
    def reclaimable_bytes(self) -> int:
        """File pages, which the kernel takes back when it needs them."""
        return self.inactive_file_bytes + self.active_file_bytes

    @property
    def unreclaimable_bytes(self) -> int:
        """What the kernel cannot take back: all but file pages (shmem and kernel memory stay in)."""
        return max(0, self.current_bytes - self.reclaimable_bytes)

    def as_dict(self) -> dict[str, int]:
        """Returns the figures by name."""
        return {
            "current_bytes": self.current_bytes,
            "inactive_file_bytes": self.inactive_file_bytes,
            "active_file_bytes": self.active_file_bytes,
        }


def read_usage(path: Path, version: int) -> tuple[LevelUsage, int]:
    """Reads what a group uses now, and the bytes of it that are shared memory and files in memory.

    Raises OSError where it is gone.
    """
    current = int(read_file(f"{path}/{'memory.current' if version == 2 else 'memory.usage_in_bytes'}"))
    stat = read_file(f"{path}/memory.stat")
    inactive, active, shmem = (figure(stat, name) or 0 for name in _STAT_NAMES[version])
    return LevelUsage(current, inactive, active), shmem


@dataclass(frozen=True, slots=True)
class Group:
    """A memory group that this process is in, directly or below it."""

    path: Path
    version: int
    is_own: bool = True
    """Whether it is the process's own group, not an ancestor's."""


def find_levels(proc: Path = Path("/proc/self")) -> tuple[Level, ...]:
    """Returns the groups with a limit, the process's own first; empty where no limit is set.

    `proc` is a directory with `cgroup` and `mountinfo` in it. Mount points in `mountinfo` are used
    as they stand there.
    """
    return read_levels(find_limiting(proc))


def find_limiting(proc: Path = Path("/proc/self")) -> tuple[Group, ...]:
    """Returns the groups that may set a limit, the process's own first. `proc` is as for `find_levels`."""
    return limiting(find_ancestry(proc))


def limiting(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Returns those of the groups that may set a limit: all but the root of v2, and v2's without the controller."""
    return tuple(group for group in groups if _has_limit(group))


def find_ancestry(proc: Path = Path("/proc/self"), *, seen_from: Path | None = None) -> tuple[Group, ...]:
    """Returns the process's own group and all above it that can be seen. `proc` is as for `find_levels`.

    Another process may live where other things are mounted: `seen_from` is the one whose mounts count.
    """
    membership = _membership(proc, proc if seen_from is None else seen_from)
    if membership is None:
        return ()
    mount, path, version = membership
    return tuple(Group(group, version, depth == 0) for depth, group in enumerate(_to_root(mount, path)))


def read_levels(groups: tuple[Group, ...]) -> tuple[Level, ...]:
    """Returns those of the groups that set a limit now. Raises OSError or ValueError where one cannot be read."""
    found = ((group, _limit_bytes(group)) for group in groups)
    return tuple(Level(group.path, group.version, size, group.is_own) for group, size in found if size is not None)


def find_group(proc: Path = Path("/proc/self"), *, seen_from: Path | None = None) -> Group | None:
    """Returns the process's own memory group, None where there is none.

    In v2 it is the nearest one on the way to the root that has the memory controller: where the own
    group lacks it, that one counts for it. The arguments are as for `find_ancestry`.
    """
    return next(
        (group for group in find_ancestry(proc, seen_from=seen_from) if (group.path / "memory.stat").is_file()), None
    )


def _membership(proc: Path, seen_from: Path) -> tuple[_Mount, str, int] | None:
    """Finds the hierarchy that counts memory, the process's path in it, and its version."""
    try:
        memberships = (proc / "cgroup").read_text().splitlines()
        mounts = list(_mounts((seen_from / "mountinfo").read_text()))
    except OSError:
        return None
    v1 = [line.split(":", 2)[2] for line in memberships if "memory" in line.split(":", 2)[1].split(",")]
    v2 = [line.split(":", 2)[2] for line in memberships if line.startswith("0::")]
    # A `0::` line is also there where v1 holds the memory controller: v1 is asked first, and a v2
    # group without memory files yields nothing.
    for version, paths, kind in ((1, v1, "cgroup"), (2, v2, "cgroup2")):
        for path in paths:
            for mount in mounts:
                if mount.kind == kind and (version == 2 or "memory" in mount.options):
                    return mount, path, version
    return None


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    point: Path
    kind: str
    options: frozenset[str]


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """Reads the lines of proc(5) `mountinfo`: `… root point … - kind source super-options`."""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(), right.split()
        if separator and len(fields) >= 5 and len(tail) >= 3 and tail[0] in ("cgroup", "cgroup2"):
            root, point = _unescaped(fields[3]), _unescaped(fields[4])
            yield _Mount(root, Path(point), tail[0], frozenset(tail[2].split(",")))


def _unescaped(field: str) -> str:
    """Blanks, tabs, newlines and backslashes are written in octal: `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _has_limit(group: Group) -> bool:
    """The root group of v2 has no such file."""
    try:
        read_file(f"{group.path}/{_limit_files(group)[0]}")
    except OSError:
        return False
    return True


def _limit_files(group: Group) -> tuple[str, ...]:
    """v2 slows a group down above `memory.high` until hardly anything moves: that is a limit too."""
    return ("memory.max", "memory.high") if group.version == 2 else ("memory.limit_in_bytes",)


def _limit_bytes(group: Group) -> int | None:
    """Returns a group's limit; None where it has none. Raises OSError, ValueError."""
    limits = []
    for name in _limit_files(group):
        try:
            text = read_file(f"{group.path}/{name}").strip()
        except FileNotFoundError:
            if name == "memory.high":
                continue
            raise
        if text != b"max" and int(text) < _NO_LIMIT_FROM:
            limits.append(int(text))
    return min(limits, default=None)


def _to_root(mount: _Mount, path: str) -> Iterator[Path]:
    """Yields the process's group and its ancestors as they are seen under the mount point.

    Inside a v1 container, and in v2 with the host's namespace, `path` is the name on the host and
    only the part below the mount's root is there; in a cgroup namespace `path` may even start with
    `/..`. Whatever cannot be found below the mount point is the mount point itself.
    """
    relative = PurePosixPath(path)
    root = PurePosixPath(mount.root)
    below = relative.relative_to(root) if relative.is_relative_to(root) else PurePosixPath()
    if ".." in below.parts:
        below = PurePosixPath()
    below = PurePosixPath(*(part for part in below.parts if part != "/"))
    group = mount.point / below
    if not group.is_dir():
        group = mount.point
    while True:
        yield group
        if group == mount.point:
            return
        group = group.parent
