"""Pressure on this process and, from outside, on control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from modelhost.config import MemorySettings
from modelhost.errors import InsufficientMemory
from modelhost.memory.thresholds import resolve
from modelhost.testing import Limited, cgroup, memory_limit, pressure
from modelhost.testing.plugin_fixtures import MemoryOfTest

MB = 1 << 20
_REASON = cgroup.available()
HELD = "held = bytearray(20 << 20); print(); input()"


def test_pressure_reaches_its_level_and_gives_everything_back(memory_snapshot: MemoryOfTest) -> None:
    level = memory_snapshot.before.committed_bytes + 24 * MB
    with pressure(level) as held:
        assert abs(held.reached_bytes - level) < MB
    assert memory_snapshot.verify_recovered()


def test_pressure_above_the_limit_or_below_what_is_there_is_an_error() -> None:
    with pytest.raises(InsufficientMemory, match="above the limit"):
        pressure("2GB", limit="1GB")
    with pytest.raises(InsufficientMemory, match="allow_kill"), pressure(1 << 50):
        pass
    with pytest.raises(ValueError, match="already has"), pressure(MB):
        pass


@pytest.fixture
def limited() -> Iterator[Limited]:
    """A limit of 192 MB, in which a process holds some 25 MB."""
    with memory_limit("192MB", means="cgroup") as limited:
        code = [sys.executable, "-S", "-c", HELD]
        running = limited.start(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert running.process is not None
        assert running.process.stdin is not None
        assert running.process.stdout is not None
        with running.process.stdin, running.process.stdout:
            running.process.stdout.readline()
            yield limited


@pytest.mark.cgroup
@pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
class TestGroup:
    @pytest.mark.parametrize("level", ["warning", "critical", "60%", "+30MB", 100 * MB])
    def test_a_level_is_reached_within_1_mb_and_everything_comes_back(self, limited: Limited, level: str | int) -> None:
        assert limited.group is not None
        before = limited.group.read().usage_bytes
        with pressure(level, on=limited) as held:
            assert abs(held.reached_bytes - held.level_bytes) < MB
            assert abs(limited.group.read().usage_bytes - held.level_bytes) < MB
            assert len(limited.group.pids()) == 2
        assert limited.group.read().usage_bytes - before < MB
        assert len(limited.group.pids()) == 1
        assert limited.group.read().oom_kills == 0

    def test_the_names_are_the_hosts_own_thresholds(self, limited: Limited) -> None:
        host = resolve(MemorySettings(), limit_bytes=192 * MB, baseline_bytes=50 * MB)
        assert pressure("warning", on=limited).level_bytes == host.warning_bytes
        assert pressure("critical", on=limited).level_bytes == host.critical_bytes

    def test_a_group_is_found_by_its_directory_and_by_a_pid_inside(self, limited: Limited) -> None:
        assert limited.group is not None
        for on in (limited.group, limited.group.path, str(limited.group.path), limited.group.pids()[0]):
            with pressure("+5MB", on=on) as held:
                assert abs(limited.group.read().usage_bytes - held.level_bytes) < MB

    def test_more_than_the_limit_leaves_is_refused_with_the_figures(self, limited: Limited) -> None:
        assert limited.group is not None
        with pytest.raises(InsufficientMemory, match=r"level of 200\.0 MB is above the limit of 192\.0 MB"):
            pressure("200MB", on=limited)
        outer = limited.group

        def tighter() -> None:
            with memory_limit("512MB", means="cgroup") as inner, pressure("+180MB", on=inner, limit="512MB"):
                pass

        with pytest.raises(InsufficientMemory, match=rf"180\.0 MB more .* limit of 192\.0 MB of {outer.path} leaves"):
            limited.start(tighter).wait().value()
        assert outer.read().oom_kills == 0
        with pytest.raises(ValueError, match="already has"), pressure("1MB", on=limited):
            pass

    def test_a_kill_happens_where_it_is_wanted(self, limited: Limited) -> None:
        assert limited.group is not None
        with pressure("300MB", on=limited, allow_kill=True) as held:
            assert held.ballast_killed
        assert limited.group.read().oom_kills == 1
        assert len(limited.group.pids()) == 1

    def test_what_has_left_is_added_again(self, limited: Limited) -> None:
        assert limited.group is not None
        with pressure("120MB", on=limited) as held:
            os.kill(limited.group.pids()[0], 9)
            while len(limited.group.pids()) > 1:
                pass
            assert held.reached_bytes < 105 * MB
            assert abs(held.top_up() - 120 * MB) < MB


def test_what_is_no_group_is_refused(tmp_path: object) -> None:
    with pytest.raises(ProcessLookupError, match="no process 4194305"):
        pressure("10MB", on=4194305)
    with pytest.raises(ValueError, match="directory of a memory control group"):
        pressure("10MB", on=str(tmp_path))
    with memory_limit("1GB", means="RLIMIT_DATA") as limited, pytest.raises(ValueError, match="RLIMIT_DATA"):
        pressure("10MB", on=limited)
