"""Refaults, faults and stalls: read from trees of files made here, and the rule that calls them thrashing."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from modelhost.config import MemorySettings
from modelhost.memory import KernelPressure, MemoryManager, PressureGauge, PressureInfo, PressureReading
from modelhost.memory.cgroup import find_group
from modelhost.memory.pressure import MIN_REFAULTED_BYTES, is_thrashing
from modelhost.runtime.fake import FakeMemory

MB = 1 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

V2 = "inactive_file 1000\nactive_file 500\nworkingset_refault_anon 3\nworkingset_refault_file 7\npgmajfault 11\n"
V1 = "inactive_file 1\nactive_file 2\nworkingset_refault_file 3\npgmajfault 4\n" + "".join(
    f"total_{line}\n" for line in V2.splitlines()
)
PSI = "some avg10=12.50 avg60=1.00 avg300=0.10 total=123\nfull avg10=4.25 avg60=0.50 avg300=0.00 total=45\n"


class Machine:
    """A made-up /proc and the one hierarchy of groups that is mounted."""

    def __init__(self, root: Path, kind: str, *, own: str = "/jobs/one") -> None:
        self.proc = root / "proc" / "self"
        self.proc.mkdir(parents=True)
        self.mount = root / "fs"
        self.group = self.mount / own.lstrip("/")
        self.group.mkdir(parents=True)
        (self.proc / "cgroup").write_text(f"0::{own}\n" if kind == "cgroup2" else f"4:memory:{own}\n")
        (self.proc / "mountinfo").write_text(f"30 21 0:26 / {self.mount} rw shared:9 - {kind} cgroup rw,memory\n")

    def stall(self, text: str) -> None:
        """What the machine as a whole says of its stalls."""
        (self.proc.parent / "pressure").mkdir(exist_ok=True)
        (self.proc.parent / "pressure" / "memory").write_text(text)

    def read(self) -> PressureReading:
        """Without the test process's own faults."""
        reading = KernelPressure(proc=self.proc).read()
        assert reading.process_major_faults is not None
        return replace(reading, process_major_faults=None)


# --- reading ----------------------------------------------------------------------------------------


def test_v2_has_the_groups_own_figures(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup2")
    (machine.group / "memory.stat").write_text(V2)
    (machine.group / "memory.pressure").write_text(PSI)
    machine.stall(PSI.replace("12.50", "99.00"))
    assert machine.read() == PressureReading(7 * PAGE_BYTES, 1500, 11, None, 12.5, 4.25, False)


def test_v1_counts_the_groups_below_and_has_the_machines_stalls(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup")
    (machine.group / "memory.stat").write_text(V1)
    (machine.group / "memory.pressure").write_text(PSI.replace("12.50", "99.00"))  # no such file in v1
    machine.stall(PSI)
    assert machine.read() == PressureReading(7 * PAGE_BYTES, 1500, 11, None, 12.5, 4.25, True)


def test_v2_without_the_controller_in_its_own_group_is_counted_by_the_one_above(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup2")
    (machine.group.parent / "memory.stat").write_text(V2)
    found = find_group(machine.proc)
    assert found is not None
    assert (found.path, found.version) == (machine.group.parent, 2)
    assert machine.read().refaulted_bytes == 7 * PAGE_BYTES


def test_an_old_kernels_name_of_refaults_is_known(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup2")
    (machine.group / "memory.stat").write_text("workingset_refault 5\n")
    reading = machine.read()
    assert (reading.refaulted_bytes, reading.cache_bytes) == (5 * PAGE_BYTES, None)


@pytest.mark.parametrize("text", [None, "", "nonsense", "some avg10\n", "some avg10=x\n"])
def test_a_group_without_stalls_has_the_machines_and_a_machine_without_has_none(
    tmp_path: Path, text: str | None
) -> None:
    machine = Machine(tmp_path, "cgroup2")
    (machine.group / "memory.stat").write_text(V2)
    if text is not None:
        (machine.group / "memory.pressure").write_text(text)
    reading = machine.read()
    assert (reading.psi_some_avg10, reading.psi_full_avg10, reading.psi_is_machines) == (None, None, False)
    machine.stall(PSI)
    reading = machine.read()
    assert (reading.psi_some_avg10, reading.psi_full_avg10, reading.psi_is_machines) == (12.5, 4.25, True)


def test_a_kernel_that_counts_no_full_stalls_has_the_other_figure(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup2")
    (machine.group / "memory.stat").write_text(V2)
    (machine.group / "memory.pressure").write_text(PSI.splitlines()[0])
    assert (machine.read().psi_some_avg10, machine.read().psi_full_avg10) == (12.5, None)


@pytest.mark.parametrize("stat", [None, "", "no numbers\n", "inactive_file\n"])
def test_missing_files_are_no_error_and_no_figures(tmp_path: Path, stat: str | None) -> None:
    machine = Machine(tmp_path, "cgroup")
    if stat is not None:
        (machine.group / "memory.stat").write_text(stat)
    reading = machine.read()
    assert (reading.refaulted_bytes, reading.cache_bytes, reading.psi_full_avg10) == (None, None, None)
    assert reading.major_faults is not None  # the process's own


def test_a_group_that_goes_while_it_is_read_is_no_error(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cgroup")
    (machine.group / "memory.stat").write_text(V1)
    pressure = KernelPressure(proc=machine.proc)
    (machine.group / "memory.stat").unlink()
    assert pressure.read().refaulted_bytes is None


def test_without_any_group_only_the_processs_own_faults_are_known(tmp_path: Path) -> None:
    reading = KernelPressure(proc=tmp_path / "nowhere" / "self").read()
    assert reading == PressureReading(major_faults=reading.major_faults, process_major_faults=reading.major_faults)
    assert reading.major_faults is not None


def test_here_and_now_it_can_be_read() -> None:
    gauge = PressureGauge(KernelPressure())
    assert gauge.look().as_dict().keys() == PressureInfo(PressureReading()).as_dict().keys()


# --- the rule ---------------------------------------------------------------------------------------


def info(
    refaulted_mb: float | None = None,
    *,
    cache_mb: int | None = 200,
    window_s: float = 10.0,
    full: float | None = None,
    psi_is_machines: bool = False,
) -> PressureInfo:
    return PressureInfo(
        PressureReading(psi_full_avg10=full, psi_is_machines=psi_is_machines),
        window_s,
        None if cache_mb is None else cache_mb * MB,
        None if refaulted_mb is None else refaulted_mb * MB / window_s,
    )


@pytest.mark.parametrize(
    ("found", "begins", "goes_on"),
    [
        (info(), False, False),
        (info(0), False, False),
        (info(99), False, False),
        (info(101), False, True),
        (info(199), False, True),
        (info(201), True, True),
        (info(201, window_s=2), True, True),  # sooner than in 10 s: need not wait for the rest of them
        (info(201, window_s=40), False, False),  # that is 50 MB in 10 s
        (info(801, window_s=40), True, True),
        (info(201, cache_mb=None), False, False),
        (info(15, cache_mb=1), False, True),  # less than any disk notices
        (info(17, cache_mb=1), True, True),
        (info(7, cache_mb=1), False, False),
        (info(0, full=4.9), False, False),
        (info(0, full=5.0), False, True),
        (info(0, full=9.9), False, True),
        (info(0, full=10.0), True, True),
        (info(None, full=10.0), True, True),
        (info(0, full=90.0, psi_is_machines=True), False, False),  # somebody else's
        (info(None, full=90.0, psi_is_machines=True), False, False),
        (info(1, full=10.0, psi_is_machines=True), True, True),
    ],
)
def test_the_rule(found: PressureInfo, begins: bool, goes_on: bool) -> None:
    assert is_thrashing(found, was_thrashing=False) is begins
    assert is_thrashing(found, was_thrashing=True) is goes_on


# --- over time --------------------------------------------------------------------------------------


class Script:
    """A kernel whose counters grow as told, and the clock beside it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reading = PressureReading(refaulted_bytes=500 * MB, cache_bytes=200 * MB, major_faults=0)
        self.reads = 0

    def read(self) -> PressureReading:
        self.reads += 1
        return self.reading

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float, *, refaulted_bytes: int = 0, faults: int = 0) -> None:
        self.now += seconds
        before = self.reading
        assert before.refaulted_bytes is not None
        assert before.major_faults is not None
        self.reading = replace(
            before,
            refaulted_bytes=before.refaulted_bytes + refaulted_bytes,
            major_faults=before.major_faults + faults,
        )


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def gauge(script: Script) -> PressureGauge:
    return PressureGauge(script, clock=script.clock)


def test_rates_are_over_the_last_ten_seconds(script: Script, gauge: PressureGauge) -> None:
    assert gauge.look().refaulted_bytes_per_s is None
    for _ in range(5):
        script.pass_time(1, refaulted_bytes=2 * MB, faults=4)
        seen = gauge.look()
    assert (seen.refaulted_bytes_per_s, seen.major_faults_per_s, seen.window_s) == (2 * MB, 4, 5)
    for _ in range(20):
        script.pass_time(1, refaulted_bytes=6 * MB)
        seen = gauge.look()
    assert (seen.refaulted_bytes_per_s, seen.major_faults_per_s, seen.window_s) == (6 * MB, 0, 10)
    assert seen.reading.refaulted_bytes == (500 + 10 + 120) * MB


def test_it_reads_once_a_second_however_often_it_is_asked(script: Script, gauge: PressureGauge) -> None:
    for _ in range(40):
        gauge.look()
        script.pass_time(0.25)
    assert script.reads == 10


def test_without_figures_there_are_no_rates_and_no_verdict(script: Script, gauge: PressureGauge) -> None:
    script.reading = PressureReading()
    for _ in range(3):
        seen = gauge.look()
        script.now += 1
    assert seen == PressureInfo(PressureReading(), 2)
    assert PressureGauge(None).look() == PressureInfo(PressureReading())


def test_a_counter_that_starts_anew_is_no_negative_rate(script: Script, gauge: PressureGauge) -> None:
    gauge.look()
    script.reading = replace(script.reading, refaulted_bytes=0)
    script.now += 1
    assert gauge.look().refaulted_bytes_per_s == 0


def test_the_first_reading_is_no_rate_since_the_group_was_made(script: Script, gauge: PressureGauge) -> None:
    script.reading = replace(script.reading, refaulted_bytes=1 << 50)
    gauge.look()
    script.pass_time(1)
    assert not gauge.look().is_thrashing


def test_what_the_cache_held_at_its_fullest_counts(script: Script, gauge: PressureGauge) -> None:
    gauge.look()
    script.reading = replace(script.reading, cache_bytes=1 * MB)  # somebody has dropped it
    script.pass_time(1, refaulted_bytes=MIN_REFAULTED_BYTES * 2)
    assert not gauge.look().is_thrashing


def test_figures_that_sway_are_one_event(script: Script, gauge: PressureGauge) -> None:
    gauge.look()
    verdicts = []
    for mb_per_s in [25] * 10 + [15, 22] * 10 + [5] * 15:
        script.pass_time(1, refaulted_bytes=mb_per_s * MB)
        verdicts.append(gauge.look().is_thrashing)
    begun, ended = verdicts.index(True), len(verdicts) - verdicts[::-1].index(True)
    assert begun == 7  # eight seconds of 25 MB are the 200 that the cache held
    assert all(verdicts[begun:ended])
    assert 30 < ended < 40


# --- in the manager ---------------------------------------------------------------------------------


def test_the_manager_notes_begin_and_end_once_and_says_what_to_do(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    memory = MemoryManager(MemorySettings(), probe=FakeMemory(), clock=script.clock)
    memory.gauge.source = script
    memory.set_baseline()
    with caplog.at_level(logging.INFO, logger="modelhost"):
        memory.pressure()
        for _ in range(5):
            script.pass_time(1, refaulted_bytes=150 * MB, faults=30)
            memory.pressure()
        for _ in range(15):
            script.pass_time(1)
            memory.pressure()
    begun, over = memory.history.snapshot()
    assert (begun.kind, over.kind) == ("thrashing", "thrashing_over")
    assert begun.details["refaulted_bytes_per_s"] == 150 * MB
    assert begun.details["major_faults_per_s"] == 30
    assert begun.details["cache_bytes"] == 200 * MB
    assert over.details["lasted_s"] == pytest.approx(12, abs=1)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    for advice in ("fewer models at once", "memory limit", "faster disk", "150.0 MB/s", "200.0 MB"):
        assert advice in caplog.records[0].getMessage()
    assert memory.history.counts == {"thrashing": 1, "thrashing_over": 1}


@pytest.mark.anyio
async def test_the_sampler_notes_it_without_being_asked(script: Script) -> None:
    memory = MemoryManager(MemorySettings(sample_interval_s=0.001), probe=FakeMemory(), clock=script.clock)
    memory.gauge.source = script
    sampled = asyncio.Event()
    memory.on_change(sampled.set)
    async with memory:
        for _ in range(5):
            script.pass_time(1, refaulted_bytes=150 * MB)
            sampled.clear()
            await asyncio.wait_for(sampled.wait(), 10)
    assert memory.history.counts == {"thrashing": 1}
