"""From nothing to the first right answer: the process starts, the model is read from the disk, and answers.

A model of 20 MB, prepared beforehand and not, in turns. Its files are dropped from the page cache before each start;
the interpreter's and the libraries' are not, as on a machine that has run the same image before.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from benchmarks.artifacts import prepare
from benchmarks.client import Client
from benchmarks.models import ModelSet
from benchmarks.process import running_host
from benchmarks.report import Report

#: A start, its first answer and a second one: what each step may be called, in its order.
STEPS: Final = ("announced_ms", "ready_ms", "first_answer_ms", "second_answer_ms")


def run(report: Report, prepared: ModelSet, plain: ModelSet, *, limit_bytes: int, runs: int) -> None:
    """Starts a host `runs` times for each kind, in turns; the first round is not counted."""
    prepare(prepared.directory, progress=report.progress)
    kinds = {"prepared": prepared, "not prepared": plain}
    for number in range(runs + 1):
        for kind, models in kinds.items():
            report.progress(f"start {number} of {runs}, {kind}")
            _start(report, kind, models, limit_bytes, number)
    for kind in kinds:
        rows = [row for row in report.rows if row["kind"] == "start" and row["models"] == kind and row["run"]]
        report.add(
            "summary",
            models=kind,
            starts=len(rows),
            **{step: round(statistics.median(row[step] for row in rows), 1) for step in STEPS},
            most_first_answer_ms=max(row["first_answer_ms"] for row in rows),
            usage_bytes=max(row["usage_bytes"] for row in rows),
        )
    report.add(
        "plot",
        title="from the start of the process to the first right answer",
        note="Each start by itself; the first round, which fills the page cache with libraries, is number 0.",
        x={"label": "start", "unit": "count", "ticks": list(range(runs + 1))},
        y={"label": "time", "unit": "ms"},
        series=[
            {
                "name": f"{kind}, {step}",
                "points": [
                    [row["run"], row[key]] for row in report.rows if row["kind"] == "start" and row["models"] == kind
                ],
                "dashed": step == "ready",
            }
            for kind in kinds
            for step, key in (("answer", "first_answer_ms"), ("ready", "ready_ms"))
        ],
    )
    report.table(
        "summary",
        {
            "models": "20 MB, medians",
            "starts": "starts",
            "announced_ms": "listens",
            "ready_ms": "ready",
            "first_answer_ms": "first right answer",
            "most_first_answer_ms": "slowest",
            "second_answer_ms": "second answer alone",
            "usage_bytes": "usage after it",
        },
    )


def _start(report: Report, kind: str, models: ModelSet, limit_bytes: int, number: int) -> None:
    case = models.cases[0]
    models.forget_pages()
    with running_host(models.directory, limit_bytes=limit_bytes) as host, Client(host.url) as client:
        # The host is ready here; what a client's own set-up takes after that is no part of the start.
        started = time.perf_counter()
        first = client.infer(case.name, case.question)
        answered = time.perf_counter()
        second = client.infer(case.name, case.question)
        ended = time.perf_counter()
        figures = host.group_figures()
        report.add(
            "start",
            run=number,
            models=kind,
            announced_ms=round(host.announced_s * 1e3, 1),
            ready_ms=round(host.ready_s * 1e3, 1),
            first_answer_ms=round(host.ready_s * 1e3 + (answered - started) * 1e3, 1),
            load_and_answer_ms=round((answered - started) * 1e3, 1),
            second_answer_ms=round((ended - answered) * 1e3, 2),
            usage_bytes=host.usage_bytes(),
            oom_kills=figures.oom_kills if figures else None,
        )
    report.require(case.is_right(first) and case.is_right(second), f"start {number}, {kind}: a wrong answer")
    report.require(not (figures and figures.oom_kills), f"start {number}, {kind}: the kernel killed a process")
