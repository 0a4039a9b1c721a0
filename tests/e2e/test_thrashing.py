"""The page cache under a limit of the kernel: a real process in a real cgroup, and the host's rule on it.

Each round of reading counts as a second of the gauge's clock, so that the outcome does not hang on
the speed of the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelhost.testing import cgroup
from modelhost.testing.cgroup import MemoryCgroup

_MB = 1 << 20
LIMIT_BYTES = 128 * _MB
TOO_MUCH_BYTES, LITTLE_BYTES = 192 * _MB, 32 * _MB
ROUNDS = 4

_REASON = cgroup.available()
pytestmark = [pytest.mark.cgroup, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]

#: Reads one byte of each page of the file, again and again, and says what the host would make of it.
_READER = """
import json, mmap, sys
from pathlib import Path
from modelhost.memory import KernelPressure, PressureGauge
from modelhost.memory.page_cache import look_up

file, rounds = Path(sys.argv[1]), int(sys.argv[2])
now = 0.0
gauge = PressureGauge(KernelPressure(), clock=lambda: now)
with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    for _ in range(rounds):
        read = len(mapped[:: mmap.PAGESIZE])
        now += 1
        seen = gauge.look()
    pages = look_up(file)
print(json.dumps(seen.as_dict() | {"cached_bytes": pages.cached_bytes}))
"""


def lies_in_memory(directory: Path) -> bool:
    mounts = (line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines())
    above = [(point, kind) for point, kind in mounts if directory.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1] in ("tmpfs", "ramfs")


def read_round_and_round(directory: Path, size_bytes: int) -> dict[str, Any]:
    """Returns what the gauge says in a group of LIMIT_BYTES after reading so much, ROUNDS times."""
    if lies_in_memory(directory):
        pytest.skip("the temporary directory lies in memory: its files are never read again")
    file = directory / "weights.bin"
    with file.open("wb") as stream:
        for _ in range(size_bytes // _MB):
            stream.write(os.urandom(_MB))
        os.fsync(stream.fileno())
        # Pages belong to the group that read them first, which has to be the one that is measured.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with MemoryCgroup(LIMIT_BYTES) as group:
        ended = subprocess.run(
            group.command([sys.executable, "-c", _READER, str(file), str(ROUNDS)]),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert group.read().oom_kills == 0
    said: dict[str, Any] = json.loads(ended.stdout)
    if said["refaulted_bytes_total"] is None:
        pytest.skip("this kernel does not count the refaults of a group")
    return said


def test_more_than_fits_read_round_and_round_is_thrashing(tmp_path: Path) -> None:
    said = read_round_and_round(tmp_path, TOO_MUCH_BYTES)
    # Of each round at least what did not fit came from disk once more.
    assert said["refaulted_bytes_per_s"] > TOO_MUCH_BYTES - LIMIT_BYTES
    assert said["major_faults_per_s"] > 0
    assert said["is_thrashing"] is True
    assert 0 < said["cached_bytes"] < LIMIT_BYTES


def test_what_fits_is_not(tmp_path: Path) -> None:
    said = read_round_and_round(tmp_path, LITTLE_BYTES)
    assert said["refaulted_bytes_per_s"] < _MB
    assert said["is_thrashing"] is False
    assert said["cached_bytes"] == LITTLE_BYTES
