"""The memory toolkit: planted faults are told apart, clean operations are not accused."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
from sizes import FULL

from modelhost.errors import InsufficientMemory
from modelhost.slope import theil_sen
from modelhost.testing import (
    Leak,
    LeakDetector,
    LeakReport,
    Place,
    allocate,
    cgroup,
    compare,
    memory_limit,
    take_snapshot,
)
from modelhost.testing.census import take_census
from modelhost.testing.plugin_fixtures import MemoryOfTest

MB = 1 << 20
NO_CGROUP = cgroup.available()
ROOT = Path(__file__).resolve().parents[2]
#: The full size, 20 runs of each fault and 100 clean ones, is in portions: each ends within minutes on a busy machine
#: too, and what was cut off can be asked for by itself (`--last-failed`, `-k`).
PORTIONS = range(4 if FULL else 1)
RUNS, LEAK_RUNS, LEAK_ITERATIONS = (5, 5, 120) if FULL else (2, 1, 40)
CLEAN_RUNS = 5  # the first in a process, whose allocator still fills its stores, is the hardest
patient = pytest.mark.timeout(1300 if FULL else 120)

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
libc.free.argtypes, libc.free.restype = (ctypes.c_void_p,), None


def run(code: str, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_importing_it_imports_no_server_and_no_runtime() -> None:
    code = (
        "import sys; from modelhost.testing import *\n"
        "print(sorted({'fastapi', 'uvicorn', 'onnxruntime', 'pydantic', 'numpy', 'asyncio'} & set(sys.modules)))"
    )
    assert run(code).stdout == "[]\n"


def run_faults(call: str) -> str:
    ended = run(f"import sys; sys.path.insert(0, 'tests/testing'); import faults; faults.{call}", 1200 if FULL else 100)
    assert (ended.returncode, ended.stderr) == (0, ""), f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@patient
@pytest.mark.parametrize("portion", PORTIONS)
@pytest.mark.parametrize("fault", faults.PLACES)
def test_planted_faults_are_named(fault: str, portion: int) -> None:
    assert f"named rightly {RUNS} of {RUNS}" in run_faults(f"main({fault!r}, {RUNS})")


@patient
@pytest.mark.parametrize("portion", PORTIONS)
@pytest.mark.parametrize("fault", faults.LEAKS)
def test_planted_leaks_are_named_with_where(fault: str, portion: int) -> None:
    told = run_faults(f"leak({fault!r}, {LEAK_RUNS}, {LEAK_ITERATIONS})")
    assert f"named rightly {LEAK_RUNS} of {LEAK_RUNS}" in told


def look(operation: Callable[[], object]) -> LeakReport:
    """Has a process of its own look, which a fork begins with one thread: in this one another test's host may run."""
    found = memory_limit("64GB", means="RLIMIT_AS").run(lambda: LeakDetector(100).run(operation)).value()
    assert isinstance(found, LeakReport)
    return found


def test_a_native_leak_of_a_kilobyte_is_found() -> None:
    leaked: list[int] = []
    report = look(lambda: leaked.append(libc.malloc(1024)))
    assert 900 < report.native_bytes < 1200, report
    assert "native memory" in str(report)


def test_growth_that_slows_down_is_given_the_time_to_end() -> None:
    kept: list[bytes] = []
    counts = (int(64 * 3 ** -(index / 100)) for index in itertools.count())
    report = look(lambda: kept.extend(bytes(200) for _ in range(next(counts))))
    assert not report, report


def test_objects_that_are_only_replaced_take_no_part_in_a_leak() -> None:
    leaked: list[int] = []
    cache = dict.fromkeys(range(16), b"")
    numbers = itertools.count()

    def work() -> None:
        cache[next(numbers) % 16] = bytes(1000)
        leaked.append(libc.malloc(1024))

    report = look(work)
    assert report.kinds == {Leak.NATIVE}, report
    assert 900 < report.native_bytes < 1200, report


def test_a_python_leak_of_a_kilobyte_is_found_with_its_line() -> None:
    kept: list[object] = []
    report = look(lambda: kept.append([bytes(90) for _ in range(8)]))
    assert 900 < report.python_bytes < 1400, report
    assert any("test_toolkit.py" in line for line in report.where), report


@patient
@pytest.mark.parametrize("portion", range(20 if FULL else 1))
def test_clean_operations_are_no_leaks(portion: int) -> None:
    assert f"clean {CLEAN_RUNS} of {CLEAN_RUNS}" in run_faults(f"clean({CLEAN_RUNS}, {portion})")


def test_memory_comes_back_and_what_does_not_is_said(memory_snapshot: MemoryOfTest) -> None:
    held = allocate("8MB", step="2MB")
    found = memory_snapshot.verify_recovered()
    assert not found
    assert "did not recover" in str(found)
    held.release()
    assert memory_snapshot.verify_recovered(), found


def test_more_than_the_machine_leaves_is_refused() -> None:
    with pytest.raises(InsufficientMemory, match="allow_kill"):
        allocate(1 << 50)


@pytest.mark.cgroup
@pytest.mark.skipif(NO_CGROUP is not None, reason=str(NO_CGROUP))
@pytest.mark.limit_memory("96MB")
def test_more_than_the_limit_leaves_is_refused() -> None:
    with pytest.raises(InsufficientMemory, match="allow_kill"):
        allocate("128MB")


def test_steps_are_told() -> None:
    told: list[int] = []
    with allocate("4MB", "shared", step="1MB", on_step=told.append):
        assert told == [MB, 2 * MB, 3 * MB, 4 * MB]


def test_a_single_step_is_no_slope() -> None:
    assert theil_sen([0] * 50 + [1000] * 50).low <= 0
    assert theil_sen([100 * step for step in range(50)]).low == 100


def test_snapshots_of_two_processes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="one process"):
        compare(take_snapshot(), take_snapshot(1))


def test_another_process_can_be_looked_at() -> None:
    found = take_snapshot(os.getppid())
    assert found.rss_bytes > 0
    assert found.heap is None
    assert Place.PYTHON.value == "live Python objects"


def test_a_census_disturbs_no_thread_that_fills_a_tuple() -> None:
    """CPython refuses to resize a tuple that somebody else refers to, and a list of all objects does."""
    refused, over, keep = list[SystemError](), threading.Event(), [[index] for index in range(100_000)]

    def fill() -> None:
        while not over.is_set():
            try:
                tuple(number for number in range(50) if number)
            except SystemError as error:
                refused.append(error)

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=fill)
    thread.start()
    try:
        sys.setswitchinterval(0.0005)
        for _ in range(3):
            take_census()
    finally:
        sys.setswitchinterval(interval_s)
        over.set()
        thread.join()
    assert not refused
    assert len(keep) == 100_000
