"""`modelhost memtest` and `modelhost memwatch`, on processes that know nothing of modelhost."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from modelhost.cli.drawing import Redrawn, sparkline
from modelhost.cli.main import main
from modelhost.slope import theil_sen
from modelhost.testing import allocate, cgroup, memory_limit
from modelhost.testing.mappings import ANONYMOUS, FILES, SHARED, read_kinds
from modelhost.testing.watch import Figures, ProcReader, PsutilReader, Watch

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
MODELHOST = [sys.executable, "-c", "from modelhost.cli.main import main; main()"]
PYTHON = [sys.executable, "-S", "-c"]
_REASON = cgroup.available()


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return Ended(int(ended.value.code or 0), *capfd.readouterr())

    return run


@pytest.fixture
def growing() -> Iterator[int]:
    """The PID of a process that keeps 256 KB more every 10 ms, in mappings of their own."""
    code = "import mmap, time\nkept = []\nwhile len(kept) < 4000:\n    kept.append(mmap.mmap(-1, 1 << 18, 2))\n"
    code += "    for at in range(0, 1 << 18, 4096): kept[-1][at] = 1\n    print(flush=True)\n    time.sleep(0.01)"
    with subprocess.Popen([*PYTHON, code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


# --- memtest --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["memtest", "memwatch"])
def test_help_teaches_by_examples_and_imports_no_runtime(command: str) -> None:
    code = (
        "import sys\nfrom modelhost.cli.main import main\n"
        f"try: main([{command!r}, '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'onnxruntime', 'fastapi', 'uvicorn', 'pydantic'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.endswith("[]\n")
    assert f"Usage: modelhost {command} [OPTIONS]" in said
    assert said.count(f"  modelhost {command} ") >= 3
    assert all(len(line) <= 120 for line in said.splitlines())


def test_input_output_and_exit_code_are_the_commands_own(run: Run) -> None:
    ended = run("memtest", "--", "/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (ended.status, ended.out) == (7, "out\n")
    assert ended.err.startswith("err\n")
    assert "ended with 7" in ended.err
    assert run("memtest", "--quiet", "sh", "-c", "exit 3") == (3, "", "")
    assert run("memtest", "--", "/bin/sh", "-c", "kill -TERM $$").status == 128 + signal.SIGTERM


def test_what_cannot_be_run_is_said(run: Run, tmp_path: Path) -> None:
    assert run("memtest", "--", "no-such-command").status == 127
    (tmp_path / "text").write_text("")
    assert run("memtest", "--", str(tmp_path / "text")).status == 127
    assert "size such as" in run("memtest", "--limit", "much", "--", "true").err
    assert "--fail-over" in run("memtest", "--no-kill", "--", "true").err
    assert "10 ms" in run("memtest", "--interval", "1ms", "--", "true").err


def test_the_peak_is_found_with_its_time_and_all_looks_are_written(run: Run, tmp_path: Path) -> None:
    code = "import time; time.sleep(.1); x = bytearray(40 << 20); time.sleep(.3)"
    ended = run("memtest", "--json", str(tmp_path / "out"), "--interval", "20ms", "--", *PYTHON, code)
    *looks, summary = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert ended.status == summary["exit_code"] == 0
    assert 40 * MB < summary["peak_in_use_bytes"] < 60 * MB
    assert 0 < summary["peak_in_use_at_s"] < summary["wall_s"]
    assert summary["peak_in_use_bytes"] == max(look["committed_bytes"] for look in looks)
    assert len(looks) == summary["looks"]


def test_what_the_command_has_started_counts_too(run: Run, tmp_path: Path) -> None:
    held = f'{sys.executable} -S -c "import time; x = bytearray(20 << 20); time.sleep(.5)"'
    run("memtest", "--json", str(tmp_path / "out"), "--", "/bin/sh", "-c", f"{held} & {held} & wait")
    summary = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert summary["processes"] == 3
    assert 40 * MB < summary["peak_committed_bytes"] < 80 * MB


@pytest.mark.cgroup
@pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
def test_under_a_limit_the_kernel_kills_and_that_has_a_code_of_its_own(run: Run, tmp_path: Path) -> None:
    flags = ["memtest", "--limit", "48MB", "--json", str(tmp_path / "out"), "--", *PYTHON]
    assert run(*flags, "x = bytearray(20 << 20)").status == 0
    ended = run(*flags, "x = bytearray(96 << 20)")
    summary = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert ended.status == summary["exit_code"] == 120
    assert (summary["command_exit_code"], summary["oom_kills"]) == (-9, 1)
    assert 47 * MB < summary["peak_charged_bytes"] <= 48 * MB
    assert "killed by the kernel" in ended.err
    assert "48.0 MB by cgroup" in ended.err


def test_a_bound_that_is_passed_stops_it_or_fails_at_its_end(run: Run) -> None:
    code = "import time; x = bytearray(40 << 20); time.sleep({})"
    ended = run("memtest", "--fail-over", "30MB", "--", *PYTHON, code.format(60))
    assert ended.status == 121
    assert "ended by signal 9" in ended.err
    assert "more than the 30.0 MB" in ended.err
    ended = run("memtest", "--fail-over", "30MB", "--no-kill", "--interval", "50ms", "--", *PYTHON, code.format(0.3))
    assert ended.status == 121
    assert "ended with 0" in ended.err
    assert run("memtest", "--fail-over", "1GB", "--", "true").status == 0


@pytest.mark.parametrize("flags", [(), ("--limit", "1GB")])
def test_after_its_time_it_is_stopped(run: Run, flags: tuple[str, ...]) -> None:
    ended = run("memtest", *flags, "--timeout", "50ms", "--", "/bin/sh", "-c", "sleep 60 & wait")
    assert ended.status == 124
    assert "its time was over" in ended.err


def test_keys_of_the_terminal_are_the_commands_and_progress_is_drawn() -> None:
    terminal, inside = pty.openpty()
    code = "trap 'exit 5' INT; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(
        [*MODELHOST, "memtest", "--limit", "1GB", "--", "/bin/sh", "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=inside,
        start_new_session=True,
    ) as process:
        try:
            os.close(inside)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            drawn = b""
            while b"in use, peak" not in drawn:
                drawn += os.read(terminal, 4096)
            os.killpg(process.pid, signal.SIGINT)
            while True:
                try:
                    drawn += os.read(terminal, 4096)
                except OSError:  # nobody has the other side any more
                    break
            assert process.wait() == 5
        finally:
            process.kill()
    os.close(terminal)
    assert b"\x1b[J" in drawn
    assert b"ended with 5" in drawn


@pytest.mark.parametrize(("columns", "shown"), [(10, b"123456789"), (0, b"1234567890abcdef")])
def test_what_is_drawn_again_does_not_wrap(columns: int, shown: bytes) -> None:
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (5, columns))
    with os.fdopen(inside, "w") as stream:
        redrawn = Redrawn(stream)
        redrawn.draw("1234567890abcdef\nsecond")
        redrawn.draw("again")
        drawn = b""
        while b"again" not in drawn:  # which may come in two parts
            drawn += os.read(terminal, 4096)
        assert drawn.replace(b"\r\n", b"\n") == b"\r\x1b[J" + shown + b"\nsecond\r\x1b[1A\x1b[Jagain"
    os.close(terminal)


# --- memwatch -------------------------------------------------------------------------------------------------


def test_growth_is_found_with_its_bounds_and_its_place(run: Run, growing: int) -> None:
    ended = run("memwatch", str(growing), "--interval", "20ms", "--count", "20", "--json")
    *looks, summary = [json.loads(line) for line in ended.out.splitlines()]
    assert (ended.status, summary["end"], summary["looks"]) == (0, "all looks were taken", len(looks))
    growth = summary["growth_bytes_per_s"]
    assert 0 < growth["low"] <= growth["value"] <= growth["high"]
    by_kind = {kind: slope["value"] for kind, slope in summary["growth_by_kind_bytes_per_s"].items()}
    assert max(by_kind, key=lambda kind: by_kind[kind]) == ANONYMOUS
    assert by_kind[ANONYMOUS] > 0.8 * growth["value"]
    assert looks[0]["pss_bytes"] > 0


def test_each_look_is_a_line_and_the_end_is_a_summary(run: Run) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        ended = run("memwatch", str(process.pid), "--interval", "5ms", "--count", "8", "--children")
        process.kill()
    assert ended.out.count(" s: committed ") == 8
    assert "watched until all looks were taken" in ended.out
    assert "steady (0.0 KB/s to 0.0 KB/s)" in ended.out
    assert f"{ANONYMOUS} " in ended.out


def test_it_ends_with_the_process_and_by_ctrl_c(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        watching = subprocess.Popen(
            [*MODELHOST, "memwatch", str(process.pid), "--interval", "5ms"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        with watching:
            watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            said = watching.stdout.read()
        assert watching.returncode == 0
        assert "watched until Ctrl-C" in said
        process.kill()
        process.wait()
    with subprocess.Popen([*PYTHON, "import time; time.sleep(.3)"]) as process:
        assert "watched until it ended" in run("memwatch", str(process.pid), "--interval", "5ms").out
        assert "the time was over" in run("memwatch", str(os.getpid()), "--for", "1ms", "--interval", "1ms").out


def test_no_such_process_is_said(run: Run) -> None:
    ended = run("memwatch", "4194305")
    assert (ended.status, ended.out) == (1, "")
    assert "there is no process 4194305; `ps -e`" in ended.err


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")
def test_of_another_user_is_told_what_everybody_may_see(capfd: pytest.CaptureFixture[str]) -> None:
    def as_nobody(pid: int) -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        main(["memwatch", str(pid), "--count", "1"])

    with pytest.raises(SystemExit) as ended:
        memory_limit("4GB", means="RLIMIT_AS").run(as_nobody, os.getpid()).value()
    assert not ended.value.code
    said = capfd.readouterr()
    assert "for its owner and root" in said.err
    assert "RSS " in said.out
    assert ANONYMOUS not in said.out


# --- what they are made of --------------------------------------------------------------------------------------


def test_kinds_of_mappings_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * MB))
    before = read_kinds(os.getpid())
    with (
        allocate("8MB", "shared"),
        allocate("6MB", "anonymous"),
        (tmp_path / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        assert sum(mapped[:: mmap.PAGESIZE]) == 0
        after = read_kinds(os.getpid())
    grown = {kind: after[kind] - before[kind] for kind in after}
    for kind, size_mb in ((SHARED, 8), (ANONYMOUS, 6), (FILES, 4)):
        assert abs(grown[kind] - size_mb * MB) < MB, grown


def test_elsewhere_psutil_tells_the_same() -> None:
    proc, psutil = ProcReader(), PsutilReader()
    with subprocess.Popen(["/bin/sh", "-c", "echo; sleep 60 & wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while not (children := proc.children([process.pid])):
            pass
        assert psutil.children([process.pid]) == children
        found, expected = psutil.read(process.pid, kinds=False), proc.read(process.pid, kinds=False)
        assert (found.rss_bytes, found.pss_bytes, found.threads) == (
            expected.rss_bytes,
            expected.pss_bytes,
            expected.threads,
        )
        assert psutil.started(process.pid) == psutil.started(process.pid)
        os.kill(children[0], signal.SIGKILL)
    for reader in (proc, psutil):
        with pytest.raises(ProcessLookupError):
            reader.read(4194305, kinds=False)
        with pytest.raises(ProcessLookupError):
            reader.started(4194305)


class Scripted:
    """Answers what it is told to."""

    def __init__(self) -> None:
        self.committed_bytes, self.since = 0, 1

    def read(self, pid: int, *, kinds: bool) -> Figures:
        self.committed_bytes += 1000
        return Figures(self.committed_bytes, 0, None, 1, None)

    def started(self, pid: int) -> Any:
        return self.since

    def children(self, pids: Any) -> list[int]:
        return []


def test_a_long_watch_keeps_looks_evenly_and_a_new_process_is_not_the_old_one() -> None:
    watch = Watch(1, reader=Scripted())
    for _ in range(5000):
        watch.look()
    kept = [look.committed_bytes for look in watch.looks]
    assert 1000 <= len(kept) <= 2000
    assert len({later - earlier for earlier, later in itertools.pairwise(kept)}) == 1
    assert watch.growth_by_kind() == {}
    watch.reader.since = 2  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError, match="given again"):
        watch.look()


def test_a_slope_over_uneven_moments_is_per_second() -> None:
    at = [step * 0.5 + 0.01 * (step % 3) for step in range(40)]
    slope = theil_sen([200 * moment for moment in at], at=at)
    assert (slope.low, slope.value, slope.high) == pytest.approx((200, 200, 200))


@pytest.mark.parametrize(
    ("values", "encoding", "curve"),
    [
        ([], "utf-8", ""),
        ([0, 0], "utf-8", "▁▁"),
        ([0, 7, 3.5, 7], "utf-8", "▁█▅█"),
        ([0, 7], "ascii", "_#"),
        ([0, 9, 0, 0, 0, 0], "utf-8", "█▁▁"),
    ],
)
def test_a_curve_shows_the_maximum_of_each_column(values: list[float], encoding: str, curve: str) -> None:
    assert sparkline(values, width=3 if len(values) > 4 else 60, encoding=encoding) == curve
