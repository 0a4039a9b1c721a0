"""More models than fit, one after another, twice: what a request costs that finds its model on disk only."""

from __future__ import annotations

import statistics
import time

from benchmarks.client import Client, loaded_in
from benchmarks.models import ModelSet
from benchmarks.process import HostProcess, Meter, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report


def run(report: Report, models: ModelSet, *, limit_bytes: int, rounds: int) -> None:
    """Asks each model cold, then warm, in `rounds` rounds over all; one line for each model and round."""
    models.forget_pages()
    with (
        running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host,
        Client(host.url) as client,
    ):
        with Meter(host) as meter, Recording(report, host, "one after another") as recording:
            for number in range(1, rounds + 1):
                recording.mark(f"round {number}")
                _round(report, models, host, client, number, recording)
        memory, figures = client.memory(), host.group_figures()
        loads = client.metrics()
    rows = [row for row in report.rows if row["kind"] == "model"]
    report.add(
        "total",
        limit_bytes=memory["limit_bytes"],
        limit_source=memory["limit_source"],
        baseline_bytes=memory["baseline_bytes"],
        critical_bytes=memory["critical_bytes"],
        usage_peak_bytes=meter.peak_bytes,
        loads=int(loads["loads"]),
        evictions=int(loads["evictions"]),
        load_ms=round(loads["load_seconds"] / loads["loads"] * 1e3, 2),
        cold_median_ms=statistics.median(row["cold_ms"] for row in rows),
        warm_median_ms=statistics.median(row["warm_ms"] for row in rows),
        wrong=sum(not row["right"] for row in rows),
        oom_kills=figures.oom_kills if figures else None,
    )
    report.require(all(row["right"] for row in rows), "there are wrong answers")
    report.require(not (figures and figures.oom_kills), "the kernel killed a process")
    report.table(
        "model",
        {
            "model": "model",
            "round": "round",
            "cold_ms": "cold",
            "warm_ms": "warm",
            "load_ms": "load alone",
            "usage_bytes": "usage",
            "loaded": "loaded",
            "evictions": "evictions",
            "right": "right",
        },
    )
    report.summary("total")


def _round(
    report: Report, models: ModelSet, host: HostProcess, client: Client, number: int, recording: Recording
) -> None:
    for case in models.cases:
        before = client.metrics()
        cold_started = time.perf_counter()
        first = client.infer(case.name, case.question)
        warm_started = time.perf_counter()
        second = client.infer(case.name, case.question)
        ended = time.perf_counter()
        recording.request("cold", (warm_started - cold_started) * 1e3)
        recording.request("warm", (ended - warm_started) * 1e3)
        memory, after = client.memory(), client.metrics()
        report.add(
            "model",
            model=case.name,
            round=number,
            cold_ms=round((warm_started - cold_started) * 1e3, 2),
            warm_ms=round((ended - warm_started) * 1e3, 2),
            load_ms=round((after["load_seconds"] - before["load_seconds"]) * 1e3, 2),
            usage_bytes=host.usage_bytes(),
            loaded=len(loaded_in(memory)),
            evictions=int(after["evictions"] - before["evictions"]),
            right=case.is_right(first) and case.is_right(second),
        )
        report.progress(f"round {number}, {case.name} of {len(models.cases)}")
