"""How much longer requests take while another model is flooded, and how many are answered.

A host with some models, all prepared. wrk asks each of the others over a few connections, with pauses, so that they
leave the machine time: first when nothing else happens, then while one wrk more floods a model of its own over many
connections, as fast as answers come. What is told is the median of the rounds,
beside the calm figures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import servers, wrk
from benchmarks.artifacts import prepare
from benchmarks.places import default_cache
from benchmarks.process import running_host
from benchmarks.report import Report
from benchmarks.wires import V2
from benchmarks.workloads import Workload
from benchmarks.wrk import Drive

_WARM_UP_S: Final = 1
#: The flood is there before the others are asked, and when they are answered.
_LONGER_S: Final = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, how many at once."""

    rounds: int
    seconds: float
    connections: int
    flood_connections: int
    form: str
    pause_ms: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    script: Path


def run(report: Report, others: Sequence[Workload], floods: Sequence[Workload], plan: Plan) -> None:
    """Measures the others calm, and beside each flood."""
    wrk.find()
    flooded = [dataclasses.replace(workload, name=f"flooded-{workload.name}") for workload in floods]
    files = {workload.name: workload.file for workload in others}
    files |= {copy.name: workload.file for copy, workload in zip(flooded, floods, strict=True)}
    with _repository(files) as directory:
        prepare(directory, progress=report.progress)
        _measure(report, directory, others, flooded, plan)
    report.table(
        "beside",
        {
            "model": "model",
            "beside": "beside",
            "requests_per_second": "req/s",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "p99_times": "times calm p99",
            "rate_share": "of calm req/s",
            "flood_per_second": "flood req/s",
        },
    )


def _measure(
    report: Report, directory: Path, others: Sequence[Workload], flooded: Sequence[Workload], plan: Plan
) -> None:
    wire = V2()
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(running_host(directory, settings=dict(plan.settings)))
        threads = stack.enter_context(ThreadPoolExecutor(len(others) + 1))
        targets: dict[str, _Target] = {}
        names = {workload.name for workload in others}
        for workload in (*others, *flooded):
            request = wire.request(workload, plan.form)
            servers.ask(host.url, request, wire, workload)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelhost-bench-")))
            pause_ms = plan.pause_ms if workload.name in names else 0
            script = wrk.write_script(scratch, request, pause_ms=pause_ms)
            targets[workload.name] = _Target(host.url + request.path, script)

        def drive(name: str, connections: int, seconds: float) -> Drive:
            target = targets[name]
            return wrk.drive(target.url, target.script, connections=connections, seconds=seconds)

        for workload in (*others, *flooded):
            drive(workload.name, plan.connections, _WARM_UP_S)
        drives: dict[tuple[str, str], list[Drive]] = {}
        for index in range(plan.rounds):
            for flood in ("", *(workload.name for workload in flooded)):
                report.progress(f"beside {flood or 'nothing'}, round {index + 1} of {plan.rounds}")
                running = None
                if flood:
                    running = threads.submit(drive, flood, plan.flood_connections, plan.seconds + 2 * _LONGER_S)
                    drive(others[0].name, 1, _LONGER_S)
                asked = {w.name: threads.submit(drive, w.name, plan.connections, plan.seconds) for w in others}
                for name, task in asked.items():
                    drives.setdefault((name, flood), []).append(task.result())
                if running is not None:
                    drives.setdefault((flood, flood), []).append(running.result())
        for workload in (*others, *flooded):
            servers.ask(host.url, wire.request(workload, plan.form), wire, workload)
    for (name, flood), found in drives.items():
        refused = name == flood  # a flood may be refused
        report.require(refused or not any(drive.errors for drive in found), f"{name} beside {flood}: {found}")
    for flood in ("", *(workload.name for workload in flooded)):
        for workload in others:
            _add(report, workload.name, flood, drives)


def _add(report: Report, name: str, flood: str, drives: Mapping[tuple[str, str], Sequence[Drive]]) -> None:
    calm, beside = drives[name, ""], drives[name, flood]
    p99_ms, rate = _median(beside, "p99_ms"), _median(beside, "requests_per_second")
    report.add(
        "beside",
        model=name,
        beside=flood or "nothing",
        requests_per_second=round(rate, 1),
        p50_ms=round(_median(beside, "p50_ms"), 3),
        p99_ms=round(p99_ms, 3),
        max_ms=round(_median(beside, "max_ms"), 3),
        p99_times=round(p99_ms / _median(calm, "p99_ms"), 2),
        rate_share=round(rate / _median(calm, "requests_per_second"), 3),
        flood_per_second=round(_median(drives[flood, flood], "requests_per_second"), 1) if flood else None,
        flood_errors=sum(sum(drive.errors.values()) for drive in drives[flood, flood]) if flood else 0,
    )


def _median(drives: Sequence[Drive], figure: str) -> float:
    return float(statistics.median(getattr(drive, figure) for drive in drives))


@contextlib.contextmanager
def _repository(files: Mapping[str, Path]) -> Iterator[Path]:
    """Makes a repository of these files, in the cache; it leaves with its artifacts."""
    default_cache().mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="fairness-", dir=default_cache()))
    try:
        for name, file in files.items():
            version = directory / name / "1"
            version.mkdir(parents=True)
            os.link(file, version / "model.onnx")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
