"""Coroutine tests are marked `pytest.mark.anyio`; they run on asyncio, the loop that the host runs on."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
from built_package import Package, built_in
from host_process import MODELS, HostProcess, running_host
from hypothesis import settings

# A busy machine is no reason to fail; pytest-timeout stops what hangs.
settings.register_profile("modelhost", deadline=None)
settings.load_profile("modelhost")


# What a shell runs in the background ignores Ctrl-C, and so would all processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def host_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """The shipped models behind a real process of 400 MB, for all tests of the session."""
    with running_host(tmp_path_factory.mktemp("host"), MODELS, "--memory-limit", "400MB") as running:
        yield running


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The source distribution and the wheel; one build for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return built_in((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "package")
