"""The host under a limit of the kernel: real process, real models, a real memory cgroup.

Short in CI; the full size (40 models, 400 requests, 300 cycles) with MODELHOST_TEST_FULL=1.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sizes import FULL

from benchmarks.client import Client, RequestFailed
from benchmarks.models import Case, ModelSet, conv_nets, repeat
from benchmarks.pressure import Outcome, ask_at_random, ask_in_order
from benchmarks.process import HostProcess, Meter, running_host
from modelhost.testing import cgroup

_MB = 1 << 20
LIMIT_BYTES, LOWERED_BYTES = 256 * _MB, 160 * _MB
PATIENCE_S = 30
MODELS, REQUESTS, CLIENTS, CYCLES = (40, 400, 8, 300) if FULL else (12, 60, 8, 30)

_REASON = cgroup.available()
pytestmark = [
    pytest.mark.cgroup,
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
    *([pytest.mark.full, pytest.mark.timeout(600)] if FULL else []),
]


@pytest.fixture(scope="module")
def models() -> ModelSet:
    return conv_nets(MODELS)


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "modelhost.toml"
    file.write_text("")
    return file


@pytest.fixture
def host(models: ModelSet, settings_file: Path) -> Iterator[HostProcess]:
    models.forget_pages()
    # A busy machine is no reason to refuse: under the lowered limit one model in use is all that has room.
    said = {"CONFIG": str(settings_file), "POOL_MEMORY_WAIT_S": "30"}
    with running_host(models.directory, limit_bytes=LIMIT_BYTES, settings=said) as host:
        yield host
        assert host.is_alive, host.last_words()
        figures = host.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0


@pytest.fixture
def client(host: HostProcess) -> Iterator[Client]:
    with Client(host.url) as client:
        yield client


def usage_bytes(host: HostProcess, models: ModelSet) -> int:
    """The usage without the kernel's index of cached model files; see benchmarks/churn.py."""
    models.forget_pages()
    return host.usage_bytes()


def settled(client: Client, host: HostProcess, models: ModelSet) -> int:
    """Unloads everything and returns how far usage is above the baseline then."""
    baseline_bytes = client.cleanup()["memory"]["baseline_bytes"]
    return usage_bytes(host, models) - int(baseline_bytes)


def test_the_limit_is_found_where_the_kernel_keeps_it(host: HostProcess, client: Client) -> None:
    memory = client.memory()
    assert host.group is not None
    assert f"cgroup v{host.group.version}" == memory["limit_source"]
    assert memory["limit_bytes"] == LIMIT_BYTES
    # The host's figure and the kernel's are of the same thing, read at two moments.
    assert abs(memory["usage_bytes"] - host.usage_bytes()) < 2 * _MB


def test_more_models_than_fit_are_all_answered_rightly_and_nothing_is_killed(
    models: ModelSet, host: HostProcess, client: Client
) -> None:
    with Meter(host) as meter:
        in_order = ask_in_order(host.url, models.cases)
        at_random = ask_at_random(host.url, models.cases, requests=REQUESTS, clients=CLIENTS, seed=1)
    for outcome in (in_order, at_random):
        assert outcome.failures == []
        assert outcome.wrong == 0
    memory, metrics = client.memory(), client.metrics()
    assert metrics["evictions"] > 0, "the models fitted: this test has shown nothing"
    assert meter.peak_bytes < memory["critical_bytes"] + memory["activation_ceiling_bytes"]
    # Must show 3: after unloading everything usage is back.
    assert settled(client, host, models) < 5 * _MB
    assert client.memory()["models"] == []


@contextlib.contextmanager
def load(host: HostProcess, cases: Sequence[Case]) -> Iterator[list[Outcome]]:
    """Has four clients ask at random for the scope; what became of it is complete when that is left."""
    outcomes: list[Outcome] = []
    seen = threading.Event()

    def ask() -> None:
        while not seen.is_set():
            outcomes.append(ask_at_random(host.url, cases, requests=16, clients=4, seed=len(outcomes)))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield outcomes
    finally:
        seen.set()
        thread.join()


def wait_until_it_follows(client: Client) -> None:
    """Waits until the host has the lowered limit, and what follows it, and has shed what is too much."""
    end = time.monotonic() + PATIENCE_S
    while (memory := client.memory())["usage_bytes"] >= LOWERED_BYTES * 3 // 4 or memory["limit_bytes"] > LOWERED_BYTES:
        assert time.monotonic() < end, f"usage stays at {memory['usage_bytes']}"
    memory = client.memory()
    assert (memory["limit_bytes"], memory["critical_bytes"]) == (LOWERED_BYTES, LOWERED_BYTES * 3 // 4)
    assert memory["activation_ceiling_bytes"] == LOWERED_BYTES // 4


@pytest.mark.timeout(300)
def test_a_limit_that_is_lowered_under_load_makes_models_leave_and_nothing_is_killed(
    models: ModelSet, host: HostProcess, client: Client, settings_file: Path
) -> None:
    group, cases = host.group, models.cases[: max(8, MODELS // 2)]
    assert group is not None

    def in_steps() -> None:
        end = time.monotonic() + PATIENCE_S
        while not group.approach_limit(LOWERED_BYTES):
            assert time.monotonic() < end, "the host did not shed"
            time.sleep(0.02)

    def by_one_write_when_told_before() -> None:
        settings_file.write_text(f"[memory]\nlimit = {LOWERED_BYTES}\n")
        host.process.send_signal(signal.SIGHUP)
        wait_until_it_follows(client)
        group.change_limit(LOWERED_BYTES)  # and it is not refused
        settings_file.write_text("")
        host.process.send_signal(signal.SIGHUP)

    ask_in_order(host.url, cases)  # measured
    before = client.memory()
    for lower in (in_steps, by_one_write_when_told_before):
        ask_in_order(host.url, cases)  # as many as fit are loaded, on the heap
        assert client.memory()["usage_bytes"] > LOWERED_BYTES * 3 // 4, (
            "they would have fitted: this would show nothing"
        )
        with load(host, cases) as outcomes:
            lower()
            wait_until_it_follows(client)
        group.change_limit(LIMIT_BYTES)
        in_order = ask_in_order(host.url, cases)
        for outcome in (*outcomes, in_order):
            assert outcome.failures == []
            assert outcome.wrong == 0
        memory = client.memory()
        kept = ("limit_bytes", "warning_bytes", "critical_bytes", "activation_ceiling_bytes")
        assert [memory[key] for key in kept] == [before[key] for key in kept]
        assert [event["limit_bytes"] for event in memory["events"] if event["kind"] == "limit"][-1] == LIMIT_BYTES


def test_load_and_unload_again_and_again_leaves_nothing_behind(
    models: ModelSet, host: HostProcess, client: Client
) -> None:
    usages = []
    for cycle in range(CYCLES):
        case = models.cases[cycle % len(models.cases)]
        client.load(case.name)
        assert case.is_right(client.infer(case.name, case.question))
        client.unload(case.name)
        usages.append(usage_bytes(host, models))
    window = 5  # kernel memory sways a little: sockets, page tables
    assert np.median(usages[-window:]) - np.median(usages[:window]) < 2 * _MB
    assert settled(client, host, models) < 5 * _MB


def test_a_model_in_a_slow_run_stays_while_others_push_for_its_memory(
    models: ModelSet, host: HostProcess, client: Client
) -> None:
    held, *others = models.cases
    rows = 128  # some 30 MB of activations, and several times as long as a look at the memory
    answers: list[np.ndarray] = []

    def run_slowly() -> None:
        with Client(host.url) as slow:
            answers.append(slow.infer(held.name, repeat(held, rows)))

    def push() -> None:
        with Client(host.url) as pushing:
            for case in others * 3:
                if not thread.is_alive():
                    break
                assert case.is_right(pushing.infer(case.name, case.question))

    # More than fit, and no child has to open one any more: whoever comes next pushes somebody out.
    for case in (held, *others, *others[-5:], held):
        client.infer(case.name, case.question)
    evictions = client.metrics()["evictions"]
    thread, pusher = threading.Thread(target=run_slowly), threading.Thread(target=push)
    thread.start()
    seen_while_held = 0
    while thread.is_alive():
        entries = {model["name"]: model for model in client.memory()["models"]}
        if not seen_while_held and entries[held.name]["leases"]:
            pusher.start()  # before, it might leave as one that nobody uses
        if thread.is_alive() and (seen_while_held or entries[held.name]["leases"]):
            assert entries[held.name]["state"] == "ready"
            seen_while_held += entries[held.name]["leases"] > 0
    thread.join()
    pusher.join()
    assert seen_while_held > 0
    assert client.metrics()["evictions"] > evictions
    assert answers[0].shape == (rows, held.answer.shape[1])
    assert np.allclose(answers[0], held.answer, rtol=0, atol=1e-3)


def test_a_run_that_needs_more_than_the_room_for_activations_is_refused_and_the_next_one_works(
    models: ModelSet, host: HostProcess, client: Client
) -> None:
    case = models.cases[0]
    too_many = repeat(case, 1024)  # 4 MB in the request, 68 MB in each layer, at a ceiling of 64
    with pytest.raises(RequestFailed, match=r"^413: .*activations") as refused:
        client.infer(case.name, too_many)
    assert "activation_ceiling" in str(refused.value)
    assert case.is_right(client.infer(case.name, case.question))
