"""Functions and commands under a memory limit: what comes back, what is killed, what is left behind (nothing)."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modelhost.errors import InvalidTensor
from modelhost.testing import LimitReport, cgroup, memory_limit
from modelhost.testing.limit_report import Means
from modelhost.testing.running import read_status

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
_REASON = cgroup.available()
needs_cgroup = [pytest.mark.cgroup, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]
PYTHON = [sys.executable, "-S", "-c"]


def hold(size_mb: int) -> int:
    return len(bytearray(size_mb * MB))


def fail(error: BaseException) -> None:
    raise error


def has_ended(pid: int) -> bool:
    """A process that nobody has waited for yet has ended all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def eventually(condition: Any) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(params=[pytest.param("cgroup", marks=needs_cgroup), "RLIMIT_DATA"])
def means(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_within_the_limit_the_result_comes_back(means: Any, start: Any) -> None:
    limit_bytes = 256 * MB
    if (means, start) == ("RLIMIT_DATA", "fork"):
        limit_bytes += read_status(
            "VmData"
        )  # with which the fork begins; thousands of tests may have run before this one
    report = memory_limit(limit_bytes, means=means, start=start).run(bytes, 20 * MB)
    assert report, report
    assert report.value() == bytes(20 * MB)
    assert (report.exit_code, report.killed, report.timed_out) == (0, False, False)
    assert 20 * MB < report.peak_bytes < limit_bytes
    assert report.effective_limit_bytes == report.limit_bytes == limit_bytes
    assert report.cpu_s > 0
    assert report.means in str(report)


@pytest.mark.cgroup
@pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
@pytest.mark.parametrize("target", [(hold, 128), ([*PYTHON, "x = bytearray(128 << 20)"],)])
def test_beyond_a_groups_limit_the_kernel_kills_and_the_report_says_so(target: Any) -> None:
    report = memory_limit("48MB", means="cgroup").run(*target)
    assert not report
    assert report.killed
    assert (report.exit_code, report.events.oom_kills) == (-signal.SIGKILL, 1)
    assert 47 * MB < report.peak_bytes <= 48 * MB
    assert "killed by the kernel" in str(report)
    with pytest.raises(MemoryError, match=re.escape("limit 48.0 MB by cgroup")):
        report.value()


@pytest.mark.parametrize("kind", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_beyond_an_rlimit_the_allocation_fails(kind: Any) -> None:
    report = memory_limit("1GB", means=kind, start="spawn").run(bytes, 1024 * MB)
    assert (report.exit_code, report.killed, report.means) == (1, False, kind)
    with pytest.raises(MemoryError):
        report.value()
    assert memory_limit("128MB", means=kind).run([*PYTHON, "x = bytearray(128 << 20)"]).exit_code == 1


def test_a_fork_that_begins_above_its_rlimit_is_refused_with_the_figures() -> None:
    with pytest.raises(ValueError, match=r"more than the limit of 1\.0 MB.*start='spawn'"):
        memory_limit("1MB", means="RLIMIT_DATA").run(hold, 0)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        InvalidTensor("x", expected="one row", got="two"),  # its constructor wants other arguments than it keeps
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "what"),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_type_and_has_the_traceback_with_it(error: BaseException) -> None:
    limited = memory_limit("1GB")(fail)
    with pytest.raises(type(error), match=re.escape(str(error))) as caught:
        limited(error)
    assert vars(caught.value).items() >= vars(error).items()
    assert "in fail\n    raise error" in caught.value.__notes__[-1]


def test_a_new_interpreter_says_what_went_wrong_in_it() -> None:
    limit = memory_limit("1GB", start="spawn")
    with pytest.raises(ValueError, match="invalid literal") as caught:
        limit.run(int, "x").value()
    assert "invalid literal" in caught.value.__notes__[-1]
    # Its arguments can be pickled, and not be made again.
    with pytest.raises(TypeError, match="missing 2 required"):
        limit.run(repr, InvalidTensor("x", expected="one row", got="two")).value()


def test_what_cannot_be_sent_is_said() -> None:
    class Local(Exception):
        pass

    limit = memory_limit("1GB")
    with pytest.raises(RuntimeError, match="Local: here"):
        limit.run(fail, Local("here")).value()
    with pytest.raises(TypeError, match=r"what was returned, a TextIOWrapper, cannot be sent back"):
        limit.run(hold_open).value()
    with pytest.raises(ChildProcessError, match="before it returned"):
        limit.run(os._exit, 0).value()
    with pytest.raises(ChildProcessError, match="ended with 3"):
        limit.run(os._exit, 3).value()
    with pytest.raises(TypeError, match="start='fork' takes any"):
        memory_limit("1GB", start="spawn").run(lambda: 1)
    with pytest.raises(TypeError, match="list of words"):
        limit.run("true")


def hold_open() -> Any:
    return sys.__stdout__


def test_a_large_result_comes_back_whole() -> None:
    assert memory_limit("1GB").run(lambda: bytes(range(256)) * (1 << 15)).value() == bytes(range(256)) * (1 << 15)


def test_a_process_with_many_open_files_can_wait() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"takes 2000 descriptors, {hard} are allowed")

    def allowed() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
        for _ in range(1100):
            os.dup(2)
        return memory_limit("8GB", means="RLIMIT_DATA").run(hold, 1).exit_code

    # More than this process has by itself, where a thread's stack, as others leave some, counts with 8 MB.
    assert memory_limit("16GB", means="RLIMIT_AS").run(allowed).value() == 0


def test_a_commands_end_and_output_are_its_own(means: Any, tmp_path: Path) -> None:
    with (tmp_path / "said").open("w+") as said:
        report = memory_limit("256MB", means=means).run(["/bin/sh", "-c", "pwd; exit 7"], stdout=said, cwd=tmp_path)
        assert (report.exit_code, (tmp_path / "said").read_text()) == (7, f"{tmp_path}\n")
    with pytest.raises(ChildProcessError, match="ended with 7"):
        report.value()


def test_after_its_time_it_is_killed_with_all_that_it_started(means: Any, tmp_path: Path) -> None:
    code = f"sleep 100 & echo $! > {tmp_path}/pid; echo x > {tmp_path}/ready; wait"
    with memory_limit("256MB", means=means) as limited:
        running = limited.start(["/bin/sh", "-c", code])
        assert eventually((tmp_path / "ready").exists)
        report = running.wait(timeout_s=0)
    assert report.timed_out
    assert report.exit_code == -signal.SIGKILL
    with pytest.raises(TimeoutError):
        report.value()
    assert eventually(lambda: has_ended(int((tmp_path / "pid").read_text())))
    if limited.group is not None:
        assert not limited.group.path.exists()


def test_several_share_one_open_limit_and_the_end_ends_them() -> None:
    with memory_limit("1GB") as limited:
        first, second = limited.start(hold, 1), limited.start([*PYTHON, "print()"], stdout=subprocess.DEVNULL)
        left = limited.start(["sleep", "100"])
        assert first.wait().value() == MB
        assert second.wait().exit_code == 0
    assert has_ended(left.pid)


@pytest.mark.cgroup
@pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
def test_inside_a_tighter_group_the_tighter_limit_is_the_one_that_holds() -> None:
    def nested() -> LimitReport:
        return memory_limit("256MB", means="cgroup").run(hold, 128)

    report = memory_limit("96MB", means="cgroup").run(nested).value()
    assert report.killed
    assert (report.limit_bytes, report.effective_limit_bytes) == (256 * MB, 96 * MB)
    assert "the group above" in report.limited_by
    assert "96.0 MB of it hold" in str(report)


@pytest.mark.cgroup
@pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
@pytest.mark.parametrize("is_killed", [False, True])
def test_groups_that_were_made_inside_go_with_it(is_killed: bool, tmp_path: Path) -> None:
    def nested(path: Path) -> None:
        with memory_limit("64MB", means="cgroup") as inner:
            child = inner.start(["sleep", "100"])
            assert inner.group is not None
            (tmp_path / "made").write_text(f"{child.pid} {inner.group.path} {path}")
            (tmp_path / "made").rename(tmp_path / "ready")
            child.wait()

    def outer() -> None:
        with memory_limit("128MB", means="cgroup") as limited:
            assert limited.group is not None
            limited.start(nested, limited.group.path)
            assert eventually((tmp_path / "ready").exists)
            if is_killed:
                os.kill(os.getpid(), signal.SIGKILL)

    with memory_limit("1GB", means="RLIMIT_DATA", start="fork") as forked:
        report = forked.start(outer).wait(timeout_s=60)
        assert report.exit_code == (-signal.SIGKILL if is_killed else 0), report
        pid, inner_path, path = (tmp_path / "ready").read_text().split()
        assert eventually(lambda: not Path(path).exists())
    assert has_ended(int(pid))
    assert not Path(inner_path).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
def test_a_user_who_may_make_no_group_gets_an_rlimit_or_is_told_why() -> None:
    def as_nobody(means: Any) -> Means:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return memory_limit("1GB", means=means).run(hold, 1).means

    everything = memory_limit("4GB", means="RLIMIT_AS")
    assert everything.run(as_nobody, "auto").value() == "RLIMIT_DATA"
    with pytest.raises(OSError, match=r"Permission denied.*delegated"):
        everything.run(as_nobody, "cgroup").value()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_parent_leaves_no_process_and_no_group(means: Any, number: signal.Signals) -> None:
    code = (
        "from modelhost.testing import memory_limit\n"
        f"with memory_limit('256MB', means={means!r}) as limited:\n"
        "    running = limited.start(['/bin/sh', '-c', 'sleep 100 & echo $!; wait'])\n"
        "    print(f'{running.pid} {limited.group.path if limited.group else str()}\\n', end='', flush=True)\n"
        "    running.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        assert parent.stdout is not None
        words = [*parent.stdout.readline().split(), *parent.stdout.readline().split()]
        parent.send_signal(number)
        assert parent.wait() == -number
    pids = [int(word) for word in words if word.isdigit()]
    assert len(pids) == 2
    assert eventually(lambda: all(has_ended(pid) for pid in pids))
    assert eventually(lambda: not any(Path(word).exists() for word in words if word.startswith("/")))


def test_what_is_not_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 'auto' or 'cgroup'"):
        memory_limit("1GB", means="ulimit")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="size such as"):
        memory_limit("much")
