"""Coroutine tests are marked `pytest.mark.anyio`; they run on asyncio, the loop that the host runs on."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from built_package import Package, built_in
from host_process import MODELS, HostProcess, running_host
from hypothesis import settings
from probes import commands
from sizes import FULL

# A busy machine is no reason to fail; pytest-timeout stops what hangs.
settings.register_profile("modelhost", deadline=None, max_examples=100 if FULL else 30)
settings.load_profile("modelhost")


# What a shell runs in the background ignores Ctrl-C, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where a mark is asked for, the files that do not have it need not be imported, which is most of the time that
    a few tests take."""
    asked = re.fullmatch(r"\(?(\w+(?: or \w+)*)\)?(?: and not \w+)*", config.option.markexpr)
    if asked is None or asked[1] == "not":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    marks = [f"mark.{name}" for name in asked[1].split(" or ")]
    return None if any(mark in text for file in files if (text := file.read_text()) for mark in marks) else True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that may take minutes begin first, so that no worker is left with one at the end."""

    def patience_s(item: pytest.Item) -> float:
        mark = item.get_closest_marker("timeout")
        return float(mark.args[0]) if mark is not None else 0.0

    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(longest.get(item.path, 0.0), patience_s(item))
    items.sort(key=lambda item: -longest[item.path])


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import stay: the collection with which each host opens (0.1 s of it for
    them) need not look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What paths put into the interpreter's table of names, as it happens: see `modelhost.files`."""
    names: list[str] = []
    intern = sys.intern

    def recorded(name: str, /) -> str:
        names.append(name)
        return intern(name)

    monkeypatch.setattr(sys, "intern", recorded)
    return names


@pytest.fixture(scope="session")
def modelhost_command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., CompletedProcess[str]]]:
    """Runs `modelhost` until it ends: see `probes.commands`."""
    with commands(tmp_path_factory.mktemp("commands")) as run:
        yield run


@pytest.fixture(scope="session")
def host_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """The shipped models behind a real process of 400 MB, for all tests of the session."""
    with running_host(tmp_path_factory.mktemp("host"), MODELS, "--memory-limit", "400MB") as running:
        yield running


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The source distribution and the wheel; one build for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return built_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "package")
