"""Limits and usage are found in every arrangement of control groups, on trees of files made here."""

from __future__ import annotations

import mmap
import os
import statistics
import sys
from pathlib import Path

import pytest

from modelhost.memory import Probe
from modelhost.memory.cgroup import find_levels

MB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
NO_LIMIT_V1 = "9223372036854771712"


class Machine:
    """A made-up /proc/self and the control groups that it speaks of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir()
        self._mounts = ["21 1 8:1 / / rw - ext4 /dev/vda1 rw", "no mount at all"]
        self.belong("")

    def belong(self, text: str) -> None:
        """What /proc/self/cgroup says."""
        (self.proc / "cgroup").write_text(text)
        self._write()

    def mount(self, kind: str, point: Path, *, root: str = "/", options: str = "rw", name: str | None = None) -> Path:
        point.mkdir(parents=True, exist_ok=True)
        shown = name or str(point)
        self._mounts.append(f"30 21 0:26 {root} {shown} rw,nosuid shared:9 - {kind} cgroup {options}")
        self._write()
        return point

    def v2(self, *, root: str = "/") -> Path:
        return self.mount("cgroup2", self.root / "fs", root=root, options="rw,nsdelegate")

    def v1(self, *, root: str = "/") -> Path:
        self.mount("cgroup", self.root / "fs" / "cpu", options="rw,cpu,cpuacct")
        return self.mount("cgroup", self.root / "fs" / "memory", root=root, options="rw,memory")

    def _write(self) -> None:
        (self.proc / "mountinfo").write_text("\n".join(self._mounts) + "\n")

    @property
    def found(self) -> list[tuple[Path, int, int]]:
        """Each limit on the way to the root: group, version, megabytes."""
        return [(level.path, level.version, level.limit_bytes // MB) for level in find_levels(self.proc)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def group_v2(path: Path, limit: str | None, *, current: int = 0, inactive: int = 0, active: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if limit is not None:
        (path / "memory.max").write_text(limit + "\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file {active}\nshmem 7\n")
    return path


def group_v1(path: Path, limit: str, *, current: int = 0, inactive: int = 0, active: int = 0) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.limit_in_bytes").write_text(limit + "\n")
    (path / "memory.usage_in_bytes").write_text(f"{current}\n")
    (path / "memory.stat").write_text(
        f"inactive_file 1\nactive_file 2\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
    )
    return path


# --- v2 ---------------------------------------------------------------------------------------------


def test_v2_the_limits_on_the_way_to_the_root_are_found_the_own_first(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/system.slice/host.service\n")
    own = group_v2(fs / "system.slice" / "host.service", str(512 * MB))
    above = group_v2(fs / "system.slice", str(256 * MB))
    group_v2(fs, None)
    assert machine.found == [(own, 2, 512), (above, 2, 256)]
    assert Probe(proc=machine.proc).limit_bytes == 256 * MB
    assert Probe(proc=machine.proc).limit_source == "cgroup v2"


def test_v2_in_a_namespace_of_its_own_the_mount_point_is_the_group(machine: Machine) -> None:
    fs = group_v2(machine.v2(), str(256 * MB))
    machine.belong("0::/\n")
    assert machine.found == [(fs, 2, 256)]


def test_v2_a_group_outside_the_namespace_is_seen_as_the_mount_point(machine: Machine) -> None:
    fs = group_v2(machine.v2(root="/../.."), str(256 * MB))
    machine.belong("0::/../../other\n")
    assert machine.found == [(fs, 2, 256)]
    machine.belong("0::/..\n")
    assert machine.found == [(fs, 2, 256)]


def test_v2_the_word_max_is_no_limit(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/a/b\n")
    group_v2(fs / "a" / "b", "max")
    assert machine.found == []
    group_v2(fs / "a", str(64 * MB))
    assert machine.found == [(fs / "a", 2, 64)]


def test_v2_with_the_hosts_names_only_the_part_below_the_mounts_root_is_there(machine: Machine) -> None:
    fs = machine.v2(root="/docker/abc")
    machine.belong("0::/docker/abc/inner\n")
    group_v2(fs, str(128 * MB))
    inner = group_v2(fs / "inner", str(64 * MB))
    assert machine.found == [(inner, 2, 64), (fs, 2, 128)]


# --- v1 ---------------------------------------------------------------------------------------------


def test_v1_the_memory_controllers_path_counts_where_it_exists(machine: Machine) -> None:
    fs = machine.v1()
    machine.belong("5:cpu,cpuacct:/other\n4:memory:/jobs/one\n1:name=systemd:/x\n")
    own = group_v1(fs / "jobs" / "one", str(256 * MB))
    group_v1(fs / "jobs", NO_LIMIT_V1)
    group_v1(fs, NO_LIMIT_V1)
    assert machine.found == [(own, 1, 256)]
    assert Probe(proc=machine.proc).limit_source == "cgroup v1"


@pytest.mark.parametrize("number", [NO_LIMIT_V1, str(2**63 - 1), str(2**63 - 65536), str(2**60)])
def test_v1_numbers_near_two_to_the_63_are_no_limit(machine: Machine, number: str) -> None:
    fs = machine.v1()
    machine.belong("4:memory:/\n")
    group_v1(fs, number)
    assert machine.found == []


def test_v1_in_a_container_the_path_is_the_hosts_and_is_resolved_by_the_mounts_root(machine: Machine) -> None:
    fs = machine.v1(root="/docker/0123abcd")
    machine.belong("4:memory:/docker/0123abcd\n")
    group_v1(fs, str(256 * MB))
    assert machine.found == [(fs, 1, 256)]


def test_v1_in_a_container_with_groups_of_its_own_they_are_found_below_the_mount(machine: Machine) -> None:
    fs = machine.v1(root="/docker/0123abcd")
    machine.belong("4:memory:/docker/0123abcd/worker\n")
    group_v1(fs, str(256 * MB))
    worker = group_v1(fs / "worker", str(128 * MB))
    assert machine.found == [(worker, 1, 128), (fs, 1, 256)]


@pytest.mark.parametrize("root", ["/", "/docker/0123abcd/deeper", "/elsewhere"])
def test_v1_a_path_that_is_not_there_falls_back_to_the_mount_point(machine: Machine, root: str) -> None:
    fs = machine.v1(root=root)
    machine.belong("4:memory:/docker/0123abcd\n")
    group_v1(fs, str(256 * MB))
    assert machine.found == [(fs, 1, 256)]


def test_v1_holds_the_memory_controller_where_a_v2_line_is_present_too(machine: Machine) -> None:
    fs = machine.v1()
    unified = machine.mount("cgroup2", machine.root / "fs" / "unified")
    machine.belong("0::/one\n4:memory:/one\n")
    (unified / "one").mkdir()
    own = group_v1(fs / "one", str(256 * MB))
    assert machine.found == [(own, 1, 256)]


def test_v2_is_asked_where_v1_has_other_controllers_only(machine: Machine) -> None:
    unified = machine.mount("cgroup2", machine.root / "fs" / "unified")
    machine.mount("cgroup", machine.root / "fs" / "systemd", options="rw,name=systemd")
    machine.belong("1:name=systemd:/one\n0::/one\n")
    own = group_v2(unified / "one", str(256 * MB))
    assert machine.found == [(own, 2, 256)]


# --- oddities ---------------------------------------------------------------------------------------


def test_blanks_in_mount_points_are_read_as_the_kernel_writes_them(machine: Machine) -> None:
    point = machine.root / "control groups"
    machine.mount("cgroup2", point, name=str(point).replace(" ", "\\040"))
    machine.belong("0::/\n")
    group_v2(point, str(256 * MB))
    assert machine.found == [(point, 2, 256)]


def test_without_files_to_read_there_is_no_limit(tmp_path: Path, machine: Machine) -> None:
    assert find_levels(tmp_path / "nowhere") == ()
    machine.belong("0::/a\n")
    assert machine.found == []  # nothing is mounted
    machine.v2()
    assert machine.found == []  # the group has no memory files


def test_without_any_limit_the_machine_is_one(machine: Machine) -> None:
    probe = Probe(proc=machine.proc)
    assert probe.limit_source == "machine"
    assert 0 < probe.usage().usage_bytes < probe.limit_bytes


def test_a_group_may_not_lift_the_limit_above_the_machines_memory(machine: Machine) -> None:
    group_v2(machine.v2(), str(1 << 50))
    machine.belong("0::/\n")
    assert Probe(proc=machine.proc).limit_source == "machine"


def test_a_setting_lowers_the_limit_and_never_lifts_it(machine: Machine) -> None:
    group_v2(machine.v2(), str(256 * MB), current=50 * MB)
    machine.belong("0::/\n")
    lower, higher = Probe(100 * MB, proc=machine.proc), Probe(300 * MB, proc=machine.proc)
    assert (lower.limit_bytes, lower.limit_source) == (100 * MB, "setting")
    assert (higher.limit_bytes, higher.limit_source) == (256 * MB, "cgroup v2")
    assert lower.usage().usage_bytes == higher.usage().usage_bytes == 50 * MB


# --- usage ------------------------------------------------------------------------------------------


def test_v2_usage_is_what_the_kernel_cannot_take_back(machine: Machine) -> None:
    group_v2(machine.v2(), str(256 * MB), current=200 * MB, inactive=90 * MB, active=30 * MB)
    machine.belong("0::/\n")
    usage = Probe(proc=machine.proc).usage()
    assert usage.usage_bytes == 80 * MB
    assert usage.raw == {
        "level_limit_bytes": 256 * MB,
        "current_bytes": 200 * MB,
        "inactive_file_bytes": 90 * MB,
        "active_file_bytes": 30 * MB,
    }


def test_v1_usage_counts_the_groups_below_as_the_limit_does(machine: Machine) -> None:
    fs = machine.v1()
    group_v1(fs, str(256 * MB), current=200 * MB, inactive=90 * MB, active=30 * MB)
    machine.belong("4:memory:/\n")
    assert Probe(proc=machine.proc).usage().usage_bytes == 80 * MB


def test_usage_is_never_below_zero(machine: Machine) -> None:
    group_v2(machine.v2(), str(256 * MB), current=10 * MB, inactive=9 * MB, active=2 * MB)
    machine.belong("0::/\n")
    assert Probe(proc=machine.proc).usage().usage_bytes == 0


def test_an_ancestor_with_less_room_than_the_own_group_decides(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/slice/host\n")
    group_v2(fs / "slice" / "host", str(256 * MB), current=60 * MB)
    group_v2(fs / "slice", str(1024 * MB), current=900 * MB, inactive=26 * MB)  # those beside us take the rest
    usage = Probe(proc=machine.proc).usage()
    assert usage.usage_bytes == (256 - 150) * MB  # as if 150 MB were left under our own limit
    assert usage.raw["level_limit_bytes"] == 1024 * MB


def test_under_a_setting_an_ancestor_counts_only_where_it_leaves_less_room_than_that(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/slice/host\n")
    group_v2(fs / "slice" / "host", str(512 * MB), current=60 * MB)
    group_v2(fs / "slice", str(1024 * MB), current=700 * MB)  # 324 MB are left, more than we may take
    probe = Probe(256 * MB, proc=machine.proc)
    assert (probe.limit_bytes, probe.limit_source) == (256 * MB, "setting")
    assert probe.usage().usage_bytes == 60 * MB
    group_v2(fs / "slice", str(1024 * MB), current=924 * MB)
    assert probe.usage().usage_bytes == (256 - 100) * MB


def test_under_a_setting_a_group_without_a_limit_is_counted_by_the_processs_own_memory(machine: Machine) -> None:
    fs = machine.v2()
    machine.belong("0::/slice/host\n")
    group_v2(fs / "slice" / "host", "max", current=60 * MB)
    group_v2(fs / "slice", str(1024 * MB), current=700 * MB)
    (machine.proc / "statm").write_text("9000 5000 1000 1 0 4000 0\n")
    assert Probe(256 * MB, proc=machine.proc).usage().usage_bytes == 4000 * PAGE_BYTES


def test_a_group_that_has_gone_is_an_os_error(machine: Machine) -> None:
    fs = group_v2(machine.v2(), str(256 * MB))
    machine.belong("0::/\n")
    probe = Probe(proc=machine.proc)
    (fs / "memory.current").unlink()
    with pytest.raises(OSError, match=r"memory\.current"):
        probe.usage()


def test_committed_memory_is_the_processs_own(tmp_path: Path) -> None:
    probe = Probe()
    before = probe.committed_bytes()
    with mmap.mmap(-1, 32 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        block.write(b"x" * (32 * MB))
        assert probe.committed_bytes() - before == pytest.approx(32 * MB, abs=4 * MB)


@pytest.mark.skipif(sys.platform != "linux", reason="figures of Linux")
@pytest.mark.parametrize("counts_each_page", [True, False])
def test_committed_memory_is_exact_to_the_page_wherever_it_is_read(counts_each_page: bool) -> None:
    probe = Probe()
    if counts_each_page and not probe._counts_each_page:
        pytest.skip("this kernel's statm is not exact")
    probe._counts_each_page = counts_each_page
    with mmap.mmap(-1, 8 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        probe.committed_bytes()  # has allocated what it takes

        def grown(page: int) -> int:
            before = probe.committed_bytes()
            block[page * PAGE_BYTES] = 1
            return probe.committed_bytes() - before

        # What other threads of the test's process do shows too, now and then.
        assert statistics.median(map(grown, range(8))) == PAGE_BYTES


def test_committed_memory_without_smaps_rollup_comes_from_statm(machine: Machine) -> None:
    (machine.proc / "statm").write_text("9000 5000 1000 1 0 4000 0\n")
    assert Probe(proc=machine.proc).committed_bytes() == 4000 * PAGE_BYTES
    (machine.proc / "smaps_rollup").write_text("00-ff ---p 0 0:0 0 [rollup]\nRss: 9 kB\nAnonymous:       64 kB\n")
    assert Probe(proc=machine.proc).committed_bytes() == 64 << 10


def test_a_setting_without_a_group_counts_the_processs_own_memory(machine: Machine) -> None:
    (machine.proc / "statm").write_text("9000 5000 1000 1 0 4000 0\n")
    usage = Probe(100 * MB, proc=machine.proc).usage()
    assert usage.usage_bytes == 4000 * PAGE_BYTES
