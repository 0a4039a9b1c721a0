"""The child that prepares, killed at any moment or not startable: nothing is left behind, and the next one does it."""

from __future__ import annotations

import errno
import os
import random
import selectors
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import models_for_tests as build
import pytest

from modelhost.prepare import ArtifactStore, Identity
from modelhost.prepare.child import Bounds, Child
from modelhost.prepare.launcher import PrepareFailed, prepare
from modelhost.prepare.processes import family

_MB = 1 << 20
BOUNDS = Bounds(1024 * _MB, 60.0)


class Stage:
    def __init__(self, directory: Path) -> None:
        models = directory / "models"
        self.file = build.save(build.heavy(2, layers=2), models, "a")
        self.store = ArtifactStore(models / ".modelhost", models, Identity("a runtime", "a cpu"))

    def prepare(self, child: Child | None = None) -> None:
        prepare(self.store, self.file, (), BOUNDS, child=child)

    @property
    def aside(self) -> list[Path]:
        return list(self.store.cache.glob("tmp-*"))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def kill_soon(child: Child, seconds: float) -> None:
    """Kills the child, or one of its forks, from outside, as the kernel does."""
    end = time.monotonic() + 10
    while child._process is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    process = child._process
    time.sleep(seconds)  # the moment is what is tried
    for pid in list(family(process.pid)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_child_that_is_killed_at_any_moment_leaves_nothing_and_the_next_one_prepares(stage: Stage) -> None:
    moments, ended = random.Random(1), []
    for _ in range(4):
        child = Child()
        killer = threading.Thread(target=kill_soon, args=(child, moments.uniform(0, 0.4)))
        killer.start()
        try:
            stage.prepare(child)
        except PrepareFailed as error:
            ended.append(error.kind)
        killer.join()
        assert stage.aside == []
    assert ended, "none was killed in time"
    assert set(ended) <= {"memory", "crash"}, "to us it looks as if memory had run out"
    stage.prepare()
    assert stage.store.find(stage.file) is not None


@pytest.mark.parametrize("at", ["start", "talk"])
def test_without_a_descriptor_left_no_child_stays_and_the_next_one_prepares(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def start(*arguments: Any, **more: Any) -> Any:
        started.append(popen(*arguments, **more))
        return started[-1]

    with monkeypatch.context() as patched:
        if at == "start":
            patched.setattr(subprocess, "Popen", refuse)
        else:
            patched.setattr(subprocess, "Popen", start)
            patched.setattr(selectors, "DefaultSelector", refuse)
        with pytest.raises(PrepareFailed, match=r"child process can.* Too many open files") as raised:
            stage.prepare()
    assert raised.value.kind == "descriptors"
    assert [process.poll() for process in started] == [-signal.SIGKILL] * len(started)
    assert stage.aside == []
    stage.prepare()
    assert stage.store.find(stage.file) is not None


def test_a_child_may_end_while_its_memory_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests look at it before large runs: what they would be told is an error of ours."""
    child, listdir = Child(), os.listdir
    child._process = process = subprocess.Popen(["sleep", "60"])

    def end_and_list(path: str) -> list[str]:
        process.kill()
        process.wait()
        return listdir(path)

    assert child.committed_bytes() == 1, "there is one, and nobody has looked at it yet"
    child.look()
    assert child.committed_bytes() > 1
    monkeypatch.setattr(os, "listdir", end_and_list)
    child.committed_bytes()  # what it had a moment ago
    assert child.committed_bytes() == 0
    assert list(family(process.pid)) == [process.pid]


def test_a_child_has_a_group_of_its_own_in_the_hosts_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that shares the CPU out by session would give a session of its own as much as all requests get."""
    seen: list[tuple[bool, bool]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **more: Any) -> Any:
        process = popen(*arguments, **more)
        seen.append((os.getsid(process.pid) == os.getsid(0), os.getpgid(process.pid) == process.pid))
        process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(PrepareFailed):
        stage.prepare()
    assert seen == [(True, True)]
