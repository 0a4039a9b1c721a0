"""Fuzzing in short: every seed by itself, and some thousands of changed ones, against a real process.

A million of them, and whether memory grows: `python -m benchmarks fuzz`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from host_process import MODELS, HostProcess, running_host

from benchmarks.fuzz import corpus
from benchmarks.fuzz.run import failures_in, replay
from benchmarks.fuzz.worker import Fuzzer

REQUESTS = 3000


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host of its own: what fuzzing sets, and unloads, would be in others' way."""
    directory = tmp_path_factory.mktemp("fuzz")
    with running_host(directory, MODELS, "--memory-limit", "400MB", MODELHOST_PREPARE_ON_LOAD="false") as running:
        yield running
        assert running.process.poll() is None
        assert failures_in(directory / "serve.log") == []


def address(host: HostProcess) -> tuple[str, int]:
    name, port = host.address.split(":")
    return name, int(port)


def test_every_seed_is_answered_as_it_should_be(host: HostProcess) -> None:
    seeds = corpus.read()
    assert len(seeds.framed) > 60
    assert len(seeds.raw) > 30
    assert list(replay(address(host), seeds)) == []


def test_some_thousand_changed_requests_find_nothing(host: HostProcess) -> None:
    outcome = Fuzzer(address(host), None, "1").run(REQUESTS)
    assert outcome.findings == []
    assert outcome.requests >= REQUESTS
    assert {"200", "400", "404", "405"} <= outcome.statuses.keys()


def test_what_is_found_is_kept_apart_from_what_is_expected(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("10:00:00 INFO    loaded\n10:00:01 ERROR   GET / failed\nTraceback (most recent call last):\n  a\n")
    first, second = failures_in(log)
    assert first.startswith("10:00:01 ERROR")
    assert second == "Traceback (most recent call last):\n  a"
