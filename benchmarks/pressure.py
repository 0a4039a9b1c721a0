"""Must show 2: far more models than fit, asked one after another, then at random by several clients.

Every answer has to be right, no request may fail, the kernel may kill nothing, and usage has to stay
below critical plus the room for activations.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeAlias

from benchmarks.client import Client, RequestFailed
from benchmarks.models import Case, ModelSet
from benchmarks.percentiles import percentile
from benchmarks.process import Meter, RunningHost, Target, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report

_FAILURES_KEPT: Final = 5


#: Told of each request that has ended: its milliseconds, and ok or what became of it. Any thread's.
Note: TypeAlias = Callable[[float, str], None]


def unnoted(latency_ms: float, result: str) -> None:
    """Notes nothing of a request that has ended."""


@dataclass(slots=True)
class Outcome:
    """What became of some requests; `latencies_ms` in the order in which they ended."""

    latencies_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    failures: list[str] = field(default_factory=list)
    note: Note = field(default=unnoted, repr=False)

    @property
    def requests(self) -> int:
        """How many there were."""
        return len(self.latencies_ms)

    def percentile(self, share: float) -> float:
        """Returns the latency that `share` of the requests stayed below, in ms."""
        return percentile(self.latencies_ms, share)

    def ask(self, client: Client, case: Case) -> None:
        """Asks one question and checks the answer."""
        started, result = time.perf_counter(), "ok"
        try:
            if not case.is_right(client.infer(case.name, case.question)):
                self.wrong += 1
                result = "wrong"
        except RequestFailed as error:
            self.failures.append(f"{case.name}: {error}")
            result = str(error).split(":")[0]
        self.latencies_ms.append((time.perf_counter() - started) * 1e3)
        self.note(self.latencies_ms[-1], result)

    def merge(self, other: Outcome) -> None:
        """Takes another's requests in."""
        self.latencies_ms += other.latencies_ms
        self.wrong += other.wrong
        self.failures += other.failures


def ask_in_order(url: str, cases: Sequence[Case], note: Note = unnoted) -> Outcome:
    """Asks each model once, one after another."""
    outcome = Outcome(note=note)
    with Client(url) as client:
        for case in cases:
            outcome.ask(client, case)
    return outcome


def ask_at_random(
    url: str,
    cases: Sequence[Case],
    *,
    requests: int,
    clients: int,
    seed: int,
    weights: Sequence[float] | None = None,
    note: Note = unnoted,
) -> Outcome:
    """Asks models in random order from `clients` threads, each with a connection of its own.

    With `weights` some models are asked more often than others.
    """
    outcomes = [Outcome(note=note) for _ in range(clients)]

    def work(number: int) -> None:
        choose = random.Random(seed * 1000 + number)
        with Client(url) as client:
            for _ in range(requests // clients + (number < requests % clients)):
                outcomes[number].ask(client, choose.choices(cases, weights)[0])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Outcome()
    for outcome in outcomes:
        total.merge(outcome)
    return total


def run(
    report: Report,
    models: ModelSet,
    *,
    limit_bytes: int,
    requests: int,
    clients: int,
    seed: int,
    url: str | None = None,
) -> None:
    """Runs both phases against one host, a new one or the one at `url`, and reports each."""
    models.forget_pages()
    with contextlib.ExitStack() as stack:
        host: Target
        if url is None:
            own = stack.enter_context(running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED))
            host, recording = own, stack.enter_context(Recording(report, own, "more models than fit"))
        else:
            host, recording = RunningHost(url), None
        report.progress(f"{len(models.cases)} models one after another")
        phase(report, host, "in order", lambda note: ask_in_order(host.url, models.cases, note), recording=recording)
        report.progress(f"{requests} requests at random by {clients} clients")
        phase(
            report,
            host,
            "at random",
            lambda note: ask_at_random(
                host.url, models.cases, requests=requests, clients=clients, seed=seed, note=note
            ),
            recording=recording,
        )
        _finish(report, host)
    report.table(
        "phase",
        {
            "phase": "phase",
            "requests": "requests",
            "failed": "failed",
            "wrong": "wrong",
            "took_s": "took",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "usage_peak_bytes": "usage peak",
            "loads": "loads",
            "evictions": "evictions",
        },
    )
    report.summary("total")


def phase(
    report: Report,
    host: Target,
    name: str,
    work: Callable[[Note], Outcome],
    more: Callable[[], Mapping[str, Any]] = dict,
    *,
    recording: Recording | None = None,
) -> None:
    """Runs one phase with a meter on the host and reports it; what `more` says afterwards is in the result."""
    if recording is not None:
        recording.mark(name)
    with Client(host.url) as client:
        before = client.metrics()
        started = time.monotonic()
        with Meter(host) as meter:
            outcome = work(unnoted if recording is None else partial(recording.request, name))
        took_s = time.monotonic() - started
        try:
            after = client.metrics()
        except RequestFailed:
            after = before
    report.add(
        "phase",
        phase=name,
        requests=outcome.requests,
        failed=len(outcome.failures),
        failures=outcome.failures[:_FAILURES_KEPT],
        wrong=outcome.wrong,
        took_s=round(took_s, 3),
        per_second=round(outcome.requests / took_s, 1),
        p50_ms=round(outcome.percentile(0.5), 2),
        p99_ms=round(outcome.percentile(0.99), 2),
        max_ms=round(max(outcome.latencies_ms, default=0.0), 2),
        usage_peak_bytes=meter.peak_bytes,
        readings=meter.readings,
        **{key: int(after.get(key, 0) - before.get(key, 0)) for key in ("loads", "evictions", "load_failures")},
        **more(),
    )
    report.require(not outcome.failures, f"{name}: {len(outcome.failures)} requests failed: {outcome.failures[:1]}")
    report.require(outcome.wrong == 0, f"{name}: {outcome.wrong} answers are wrong")


def _finish(report: Report, host: Target) -> None:
    report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    figures = host.group_figures()
    peak = max(row["usage_peak_bytes"] for row in report.rows if row["kind"] == "phase")
    if host.is_alive:
        with Client(host.url) as client:
            memory = client.memory()
        room = memory["limit_bytes"] - memory["critical_bytes"]
        report.require(peak < memory["critical_bytes"] + room, f"usage reached {peak} bytes")
        report.add(
            "total",
            usage_peak_bytes=peak,
            limit_bytes=memory["limit_bytes"],
            limit_source=memory["limit_source"],
            baseline_bytes=memory["baseline_bytes"],
            warning_bytes=memory["warning_bytes"],
            critical_bytes=memory["critical_bytes"],
            peak_with_page_cache_bytes=figures.peak_bytes if figures else None,
            limit_hits=figures.limit_hits if figures else None,
            oom_kills=figures.oom_kills if figures else None,
        )
    if figures is not None:
        report.require(figures.oom_kills == 0, f"the kernel killed {figures.oom_kills} processes")
