"""Requests a second and times of modelhost beside yardsticks and other servers, on the same cores in one run.

For each workload and form all servers are up at once and are driven in turns, so that what else the machine
does meets them alike; each gets its answer checked before and after. The yardsticks: `plain` is the session
in a loop on every core without a server, `hand-written` thirty lines of FastAPI, `bare` the same session
behind one ASGI callable. Ratios are the medians of what the rounds say, round by round.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import picture as drawing
from benchmarks import servers, wrk
from benchmarks.artifacts import prepare
from benchmarks.client import RequestFailed
from benchmarks.places import ROOT
from benchmarks.report import Report
from benchmarks.servers import Server, WrongAnswer
from benchmarks.workloads import Workload
from benchmarks.wrk import Drive
from modelhost.config import valid_keys

YARDSTICKS: Final = ("hand-written", "bare", "plain")
#: So many answers for each connection make a median; slow servers are driven longer for them, up to a bound.
_ANSWERS: Final = 3
_LONGER: Final = 5
#: Warm is who does not get faster by more than this share.
_STEADY: Final = 0.1
_WARM_UP_RUNS: Final = 6
_QUICK_QUESTIONS: Final = 10

_COLUMNS: Final = {
    "workload": "workload",
    "form": "form",
    "connections": "conn.",
    "server": "server",
    "requests_per_second": "req/s",
    "p50_ms": "p50",
    "p99_ms": "p99",
    "spread": "p99/p50",
    "cpu_us": "CPU µs",
    "x_handwritten": "x hand-written",
    "x_bare": "x bare",
    "x_plain": "x plain",
    "errors": "errors",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    rounds: int
    seconds: float
    forms: tuple[str, ...] = ("json", "binary")
    connections: tuple[int, ...] | None = None
    """None: those of the workload."""
    is_quick: bool = False
    """One form and one number of connections for each workload, and hardly any warm-up."""
    settings: Mapping[str, str] | None = None
    """MODELHOST_* variables of the host, without the prefix."""

    def forms_of(self, workload: Workload) -> list[str]:
        """Returns the forms to ask a workload in."""
        forms = [form for form in workload.forms if form in self.forms]
        return forms[:1] if self.is_quick else forms

    def connections_of(self, workload: Workload) -> tuple[int, ...]:
        """Returns the numbers of connections to drive a workload with."""
        if self.connections is not None:
            return self.connections
        if self.is_quick:
            return (workload.connections[len(workload.connections) // 2],)
        return workload.connections


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who is measured, and how."""

    name: str
    measure: Callable[[int, float], Drive]
    """Drives it over so many connections for so many seconds."""
    once_s: float
    """How long it takes for one answer, alone."""
    check: Callable[[], object]
    """Asks once more. Raises WrongAnswer or RequestFailed."""


def run(
    report: Report,
    workloads: Sequence[Workload],
    plan: Plan,
    peers: Sequence[Server] = (),
    *,
    picture: Path | None = None,
) -> None:
    """Measures each workload in each form over each number of connections; ends with a table, and a picture."""
    wrk.find()
    for workload in workloads:
        prepare(workload.repository, progress=report.progress)
        for form in plan.forms_of(workload):
            _measure_form(report, workload, form, plan, peers)
    if picture is not None:
        picture.write_text(drawing.of_report(report), encoding="utf-8")
    report.table("cell", _COLUMNS)
    if any(row["kind"] == "skipped" for row in report.rows):
        report.table("skipped", {"workload": "workload", "form": "form", "server": "not measured", "reason": "reason"})


def hosts(workload: Workload, plan: Plan) -> list[Server]:
    """Returns the host as it comes, for `gemm` with and without batching, where it has that, and beside one of several
    processes the same host as one."""
    given = dict(plan.settings or {})
    if workers := given.get("SERVER_WORKERS"):
        alone = {key: value for key, value in given.items() if key != "SERVER_WORKERS"}
        return [servers.modelhost(f"modelhost, {workers} processes", given), servers.modelhost(settings=alone)]
    if workload.name == "gemm" and "batching.enabled" in valid_keys() and "BATCHING_ENABLED" not in given:
        return [
            servers.modelhost("modelhost, batching", given | {"BATCHING_ENABLED": "true"}),
            servers.modelhost("modelhost, no batching", given | {"BATCHING_ENABLED": "false"}),
        ]
    return [servers.modelhost(settings=given)]


def _measure_form(report: Report, workload: Workload, form: str, plan: Plan, peers: Sequence[Server]) -> None:
    with contextlib.ExitStack() as stack:
        contestants = [*stack.enter_context(_plain_loops(workload))]
        for server in (*hosts(workload, plan), servers.bare(), servers.handwritten(), *peers):
            report.progress(f"{workload.name} {form}: {server.name} starts")
            try:
                contestants.append(stack.enter_context(_contestant(server, workload, form)))
            except RequestFailed as error:
                if server not in peers:
                    raise
                reason = str(error).strip().splitlines() or ["?"]
                report.add("skipped", workload=workload.name, form=form, server=server.name, reason=reason[-1][:200])
            except WrongAnswer as error:
                report.require(False, f"{workload.name} {form}, {server.name}: {error}")
        for contestant in contestants:
            report.progress(f"{workload.name} {form}: {contestant.name} warms up")
            _warm_up(contestant, is_quick=plan.is_quick)
        for connections in plan.connections_of(workload):
            where = f"{workload.name} {form} over {connections}"
            samples = _rounds(report, where, contestants, connections, plan)
            for row in summarise(samples):
                report.add("cell", workload=workload.name, form=form, connections=connections, **row)
                is_peer = any(peer.name == row["server"] for peer in peers)  # its errors are a finding, not a fault
                report.require(is_peer or not row["errors"], f"{where}, {row['server']}: {row['errors']}")
        for contestant in contestants:
            try:
                contestant.check()
            except (WrongAnswer, RequestFailed) as error:
                report.require(False, f"{workload.name} {form}, {contestant.name}, after the load: {error}")


def _rounds(
    report: Report, where: str, contestants: Sequence[Contestant], connections: int, plan: Plan
) -> dict[str, list[Drive]]:
    """Drives everybody once in each round, every second round backwards."""
    samples: dict[str, list[Drive]] = {contestant.name: [] for contestant in contestants}
    for index in range(plan.rounds):
        for contestant in contestants if index % 2 == 0 else reversed(contestants):
            report.progress(f"{where}, round {index + 1} of {plan.rounds}: {contestant.name}")
            wanted_s = _ANSWERS * connections * contestant.once_s
            seconds = max(plan.seconds, min(wanted_s, _LONGER * plan.seconds))
            samples[contestant.name].append(contestant.measure(connections, seconds))
    return samples


def summarise(samples: Mapping[str, Sequence[Drive]]) -> Iterator[dict[str, Any]]:
    """Yields the figures of each contestant: medians of its runs, and of its ratios in each round."""
    for name, drives in samples.items():
        rates = [drive.requests_per_second for drive in drives]
        p50_ms, p99_ms = (
            statistics.median(times) for times in zip(*((d.p50_ms, d.p99_ms) for d in drives), strict=True)
        )
        cpu_us = [drive.cpu_us for drive in drives if drive.cpu_us is not None]
        errors: dict[str, int] = {}
        for drive in drives:
            for kind, count in drive.errors.items():
                errors[kind] = errors.get(kind, 0) + count
        yield {
            "server": name,
            "requests": sum(drive.requests for drive in drives),
            "requests_per_second": round(statistics.median(rates), 1),
            "least_per_second": round(min(rates), 1),
            "most_per_second": round(max(rates), 1),
            "p50_ms": round(p50_ms, 3),
            "p99_ms": round(p99_ms, 3),
            "spread": round(p99_ms / p50_ms, 2) if p50_ms else None,
            "cpu_us": round(statistics.median(cpu_us), 1) if cpu_us else None,
            **{f"x_{yardstick.replace('-', '')}": ratio(drives, samples.get(yardstick)) for yardstick in YARDSTICKS},
            "errors": " ".join(f"{count} {kind}" for kind, count in errors.items()),
        }


def ratio(drives: Sequence[Drive], yardstick: Sequence[Drive] | None) -> float | None:
    """Returns the median over the rounds of one's rate as a multiple of the other's; None where there is none."""
    pairs = zip(drives, yardstick or (), strict=False)
    ratios = [
        one.requests_per_second / other.requests_per_second for one, other in pairs if other.requests_per_second > 0
    ]
    return round(statistics.median(ratios), 3) if ratios else None


def _warm_up(contestant: Contestant, *, is_quick: bool) -> None:
    """Drives it until it gets no faster; where it has to be quick, asks it some times."""
    if is_quick:
        for _ in range(_QUICK_QUESTIONS):
            contestant.check()
        return
    before: float | None = None
    for _ in range(_WARM_UP_RUNS):
        now = contestant.measure(8, 1).p50_ms
        if before is not None and now > before * (1 - _STEADY):
            return
        before = now


@contextlib.contextmanager
def _contestant(server: Server, workload: Workload, form: str) -> Iterator[Contestant]:
    """Starts a server, and checks its answer."""
    wire = server.wire(workload, form)
    request = wire.request(workload, form)
    with server.start(workload, form) as running, tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch:
        servers.wait_until_ready(running, request, wire, workload)
        once_s = servers.ask(running.url, request, wire, workload)
        script = wrk.write_script(Path(scratch), request)

        def measure(connections: int, seconds: float) -> Drive:
            before_s = servers.cpu_s(running.pid)
            drive = wrk.drive(running.url + request.path, script, connections=connections, seconds=seconds)
            drive = replace(drive, cpu_s=servers.cpu_s(running.pid) - before_s)
            servers.wait_for_rest(running)
            return drive

        yield Contestant(server.name, measure, once_s, lambda: servers.ask(running.url, request, wire, workload))


@contextlib.contextmanager
def _plain_loops(workload: Workload) -> Iterator[list[Contestant]]:
    """Starts the loop without a server: on every core, and on one."""
    with tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch:
        question = Path(scratch) / "question.npy"
        np.save(question, workload.question)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loop", str(workload.file), str(question)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def contestant(name: str, threads: int) -> Contestant:
            def measure(connections: int, seconds: float) -> Drive:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(json.dumps({"threads": threads, "seconds": seconds}) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise RequestFailed(f"the plain loop ended with {process.wait()}")
                return Drive(**json.loads(line))

            return Contestant(name, measure, 0.0, lambda: None)

        with process:
            try:
                yield [contestant("plain", len(os.sched_getaffinity(0))), contestant("plain, 1 thread", 1)]
            finally:
                process.terminate()
