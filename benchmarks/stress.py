"""Many clients on a tiny limit, with far more models than fit: nobody is killed, no answer is wrong or lost.

Requests may be refused where there is no room for them, with what the host documents: 503 and 507. How many are, and
how long the others take, is what is told.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from benchmarks.client import Client
from benchmarks.holding import REFUSALS
from benchmarks.models import ModelSet
from benchmarks.pressure import Outcome
from benchmarks.process import Meter, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report

_PHASE: Final = "all clients"


def run(report: Report, models: ModelSet, *, limit_bytes: int, clients: int, seconds: float, seed: int) -> None:
    """Opens each model once, then has all clients ask at random for so long."""
    with running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host:
        with Client(host.url) as client:
            for number, case in enumerate(models.cases, 1):
                report.progress(f"{number} of {len(models.cases)} models opened")
                client.infer(case.name, case.question)
        with Meter(host) as meter, Recording(report, host, f"{clients} clients") as recording:
            recording.mark(_PHASE)
            report.progress(f"{clients} clients, {seconds:g} s")
            results: Counter[str] = Counter()
            outcome = _ask(host.url, models, recording.request, results, clients, seconds, seed)
        with Client(host.url) as client:
            memory, metrics = client.memory(), client.metrics()
        figures = host.group_figures()
        report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    refused = sum(results[status] for status in REFUSALS)
    lost = results.total() - results["ok"] - results["wrong"] - refused
    report.add(
        "total",
        clients=clients,
        requests=results.total(),
        right=results["ok"],
        refused=refused,
        lost=lost,
        wrong=results["wrong"],
        p50_ms=round(outcome.percentile(0.5), 2),
        p99_ms=round(outcome.percentile(0.99), 2),
        loads=int(metrics["loads"]),
        evictions=int(metrics["evictions"]),
        usage_peak_bytes=meter.peak_bytes,
        critical_bytes=memory["critical_bytes"],
        limit_bytes=memory["limit_bytes"],
        oom_kills=figures.oom_kills if figures else None,
    )
    report.require(not results["wrong"], f"{results['wrong']} answers are wrong")
    report.require(not lost, f"{lost} requests were lost: {outcome.failures[:1]}")
    report.require(results["ok"] > 0, "no request was answered")
    report.require(not (figures and figures.oom_kills), "the kernel killed a process")
    report.summary("total")


def _ask(
    url: str,
    models: ModelSet,
    note: Callable[[str, float, str], None],
    results: Counter[str],
    clients: int,
    seconds: float,
    seed: int,
) -> Outcome:
    lock, until = threading.Lock(), time.monotonic() + seconds
    total = Outcome()

    def noted(latency_ms: float, result: str) -> None:
        with lock:
            results[result] += 1
        note(_PHASE, latency_ms, result)

    def work(number: int) -> None:
        choose, outcome = random.Random(seed * 1000 + number), Outcome(note=noted)
        with Client(url) as client:
            while time.monotonic() < until:
                outcome.ask(client, choose.choice(models.cases))
        with lock:
            total.merge(outcome)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total
