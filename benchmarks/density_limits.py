"""Models held and served for each memory limit: the host with prepared models against a plain loop of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from benchmarks.artifacts import prepare
from benchmarks.client import Client
from benchmarks.density import hold_plainly
from benchmarks.models import ModelSet
from benchmarks.pressure import ask_in_order
from benchmarks.process import running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report
from benchmarks.smaps import read_process
from modelhost.units import format_bytes

OURS: Final = "modelhost, prepared"


def run(report: Report, models: ModelSet, limits: Sequence[int]) -> None:
    """Prepares what is not prepared; then for each limit the plain loop, then the host, each model asked once."""
    prepare(models.directory, progress=report.progress)
    for limit_bytes in limits:
        hold_plainly(report, models, limit_bytes)
        _host(report, models, limit_bytes)
    _plot(report, models, limits)
    report.table(
        "held",
        {
            "server": "server",
            "limit_bytes": "limit",
            "models": "models",
            "held": "held at once",
            "right": "served right",
            "committed_bytes": "committed",
            "oom_kills": "oom kills",
        },
    )


def _host(report: Report, models: ModelSet, limit_bytes: int) -> None:
    models.forget_pages()
    shown = format_bytes(limit_bytes)
    report.progress(f"{OURS}: {len(models.cases)} models in {shown}")
    with running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host, Client(host.url) as client:
        with Recording(report, host, f"{len(models.cases)} prepared models in {shown}") as recording:
            recording.mark("each asked once")
            outcome = ask_in_order(
                host.url, models.cases, lambda ms, result: recording.request("first request", ms, result)
            )
            held = len(client.loaded())
            recording.mark("and again")
            again = ask_in_order(host.url, models.cases, partial(recording.request, "second"))
        figures, committed_bytes = host.group_figures(), read_process(host.pid).committed_bytes
    wrong = outcome.wrong + again.wrong + len(outcome.failures) + len(again.failures)
    kills = figures.oom_kills if figures else None
    report.add(
        "held",
        server=OURS,
        limit_bytes=limit_bytes,
        models=len(models.cases),
        held=held,
        right=outcome.requests - outcome.wrong - len(outcome.failures),
        committed_bytes=committed_bytes,
        is_killed=False,
        oom_kills=kills,
    )
    report.require(not wrong, f"{shown}: {wrong} requests failed or were answered wrongly: {outcome.failures[:1]}")
    report.require(not kills, f"{shown}: the kernel killed {kills} processes")


def _plot(report: Report, models: ModelSet, limits: Sequence[int]) -> None:
    rows = [row for row in report.rows if row["kind"] == "held"]
    report.add(
        "plot",
        title="models held at once, for each limit",
        note=(
            f"{len(models.cases)} models were asked for, so no line can be higher. Where a plain loop holds fewer, the "
            "kernel has killed it at the next one; the host has answered all."
        ),
        x={"label": "memory limit", "unit": "bytes", "log": True, "ticks": list(limits)},
        y={"label": "models", "unit": "count"},
        series=[
            {
                "name": server,
                "points": [[row["limit_bytes"], row["held"]] for row in rows if row["server"] == server],
                "dashed": server != OURS,
            }
            for server in dict.fromkeys([OURS, *(row["server"] for row in rows)])
        ],
    )
