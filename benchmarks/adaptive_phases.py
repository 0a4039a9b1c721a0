"""One host for real minutes, under a load whose shape changes in phases that come back: do adaptive thresholds settle?

Requests are due at random moments of their phase, at a rate that leaves the machine to others, and are sent then,
whether those before them were answered or not; a time counts from the moment at which one was due. Does it settle in
each phase, or does it swing? A threshold that swings turns: warning goes up, down and up again while what is asked
stays the same.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.adaptive import LOADS, Fleet, Request, open_once
from benchmarks.adaptive_hour import turned
from benchmarks.client import Client, RequestFailed
from benchmarks.holding import REFUSALS
from benchmarks.models import repeat
from benchmarks.percentiles import percentile
from benchmarks.process import HostProcess, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report

#: In turns. The load of `diurnal` changes half-way; the others are steady.
SHAPES: Final = ("thrash", "heavy", "bursts", "diurnal")
STEADY: Final = frozenset({"thrash", "heavy", "bursts"})
_PHASE_S: Final = 300.0
#: Warning may try a direction and take it back, and try once more. What turns more often in one steady phase swings.
MOST_TURNS: Final = 3
#: A host that answers more slowly than is asked has so many requests at once, the others are sent late.
_CLIENTS: Final = 24
_SETTINGS: Final = {**RECORDED, "STATE_KEEP_LEARNT": "false"}


@dataclass(frozen=True, slots=True)
class Phase:
    """What is asked for some minutes."""

    name: str
    length_s: float
    due: tuple[tuple[float, Request], ...]
    """In order; seconds from the beginning of the phase."""


@dataclass(slots=True)
class Answers:
    """What became of a phase's requests. Any thread, under its lock."""

    results: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    late_s: float = 0.0
    """The latest that one was sent."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def plan(models: Fleet, *, minutes: float, rate: float, seed: int) -> list[Phase]:
    """Returns the phases: each shape in turn, until the minutes are over; each at least once."""
    count = max(len(SHAPES), round(minutes * 60 / _PHASE_S))
    length_s, loads = minutes * 60 / count, {load.name: load for load in LOADS}
    phases = []
    for number in range(count):
        load, rng = loads[SHAPES[number % len(SHAPES)]], random.Random(f"{seed} {number}")
        asked = load.make(models, rng, max(1, round(rate * length_s)))
        moments = sorted(rng.uniform(0, length_s) for _ in asked)
        phases.append(Phase(load.name, length_s, tuple(_together(moments, asked))))
    return phases


def _together(moments: Sequence[float], asked: Sequence[Request]) -> Iterator[tuple[float, Request]]:
    """Yields requests with their moments; large batches that follow each other come at once, as a burst does."""
    at_s, was_batch = 0.0, False
    for moment, request in zip(moments, asked, strict=True):
        is_batch = request[1] > 1
        at_s = at_s if is_batch and was_batch else moment
        was_batch = is_batch
        yield at_s, request


def run(
    report: Report, models: Fleet, *, policy: str, minutes: float, rate: float, limit_bytes: int, seed: int
) -> None:
    """Lives through it, and judges."""
    phases = plan(models, minutes=minutes, rate=rate, seed=seed)
    models.files.forget_pages()
    found: list[dict[str, Any]] = []
    with running_host(
        models.directory, limit_bytes=limit_bytes, settings={**_SETTINGS, "MEMORY_POLICY": policy}
    ) as host:
        open_once(host, [request for phase in phases for _, request in phase.due])
        with Recording(report, host, f"{policy} thresholds, phase by phase") as recording:
            for number, phase in enumerate(phases, 1):
                report.progress(f"{number} of {len(phases)}: {phase.name}, {phase.length_s:.0f} s")
                recording.mark(phase.name)
                found.append({"phase": f"{number} {phase.name}", "shape": phase.name, **_live(host, recording, phase)})
        figures = host.group_figures()
        report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    recorded = next(row for row in reversed(report.rows) if row["kind"] == "recorded")
    for row in told(found, recorded["thresholds"], recorded["usage"], began=recording.began):
        report.add("phase", **row)
    for change in recorded["thresholds"]:
        report.add("change", **change)
    judge(report, oom_kills=figures.oom_kills if figures else None)
    report.table("phase", _PHASES)
    report.table("change", _CHANGES)
    report.table("verdict", _VERDICT)


def _live(host: HostProcess, recording: Recording, phase: Phase) -> dict[str, Any]:
    """Sends a phase's requests; returns its figures when it is over and the last one was answered."""
    with Client(host.url) as client:
        before = client.metrics()
    began, began_at = time.monotonic(), time.time()
    host_s, own_s = _processor_s(host.pid), time.process_time()
    answers = _send(host.url, recording, phase, began)
    time.sleep(max(0.0, began + phase.length_s - time.monotonic()))
    took_s = time.monotonic() - began
    host_s, own_s = _processor_s(host.pid) - host_s, time.process_time() - own_s
    with Client(host.url) as client:
        after = client.metrics()
    refused = sum(answers.results[status] for status in REFUSALS)
    served, wrong = answers.results["ok"], answers.results["wrong"]
    return {
        "began_at": began_at,
        "requests": len(phase.due),
        "served": served,
        "refused": refused,
        "wrong": wrong,
        "failed": answers.results.total() - served - wrong - refused,
        "failures": answers.failures[:3],
        "p50_ms": round(percentile(answers.latencies_ms, 0.5), 2),
        "p99_ms": round(percentile(answers.latencies_ms, 0.99), 2),
        "late_most_s": round(answers.late_s, 3),
        "loads": int(after.get("loads", 0) - before.get("loads", 0)),
        "refaulted_bytes": int(
            after.get("page_cache_refaulted_bytes", 0) - before.get("page_cache_refaulted_bytes", 0)
        ),
        "took_s": round(took_s, 2),
        "core_host": round(host_s / took_s, 3),
        "core_clients": round(own_s / took_s, 3),
    }


def _send(url: str, recording: Recording, phase: Phase, began: float) -> Answers:
    answers, left = Answers(), iter(phase.due)

    def work() -> None:
        with Client(url) as client:
            while True:
                with answers.lock:
                    due_s, (case, rows) = next(left, (0.0, (None, 0)))
                if case is None:
                    return
                due, result = began + due_s, "ok"
                time.sleep(max(0.0, due - time.monotonic()))
                late_s = time.monotonic() - due
                failure = ""
                try:
                    answer = client.infer(case.name, case.question if rows == 1 else repeat(case, rows))
                    if not all(case.is_right(row[None]) for row in np.asarray(answer)):
                        result = "wrong"
                except RequestFailed as error:
                    result, failure = str(error).split(":")[0], f"{case.name}: {error}"[:300]
                took_ms = (time.monotonic() - due) * 1e3
                with answers.lock:
                    answers.results[result] += 1
                    answers.late_s = max(answers.late_s, late_s)
                    if result == "ok":
                        answers.latencies_ms.append(took_ms)
                    if failure:
                        answers.failures.append(failure)
                    recording.request(phase.name, took_ms, result)

    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def _processor_s(pid: int) -> float:
    """Returns the processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# --- judging ----------------------------------------------------------------------------------------


def told(
    found: Sequence[Mapping[str, Any]],
    changes: Sequence[Mapping[str, Any]],
    usage: Mapping[str, Sequence[float]],
    *,
    began: float,
) -> Iterator[dict[str, Any]]:
    """Yields each phase's figures, with the changes of thresholds, and the usage, that fall into it."""
    starts = [row["began_at"] - began for row in found]
    for row, start_s, end_s in zip(found, starts, [*starts[1:], float("inf")], strict=True):
        own = [change for change in changes if start_s <= change["at_s"] < end_s]
        warnings = [own[0]["from_warning_bytes"], *(change["warning_bytes"] for change in own)] if own else []
        highs = [high for at_s, high in zip(usage["at_s"], usage["high_bytes"], strict=True) if start_s <= at_s < end_s]
        rules = Counter(change["rule"] for change in own)
        yield {
            **{key: value for key, value in row.items() if key != "began_at"},
            "began_s": round(start_s, 1),
            "changes": len(own),
            "rules": ", ".join(f"{count} {rule}" for rule, count in rules.items()) or "-",
            "turns": turned(warnings),
            "warning_least_bytes": min(warnings, default=None),
            "warning_most_bytes": max(warnings, default=None),
            "usage_peak_bytes": max(highs, default=None),
        }


def judge(report: Report, *, oom_kills: int | None) -> None:
    """Adds the verdict on the rows of kind `phase`: nobody killed, nothing wrong or lost, and no phase that swings."""
    rows = [row for row in report.rows if row["kind"] == "phase"]
    steady = [row for row in rows if row["shape"] in STEADY]
    total = {key: sum(row[key] for row in rows) for key in ("requests", "served", "refused", "wrong", "failed")}
    took_s = sum(row["took_s"] for row in rows)
    report.add(
        "verdict",
        took_s=round(took_s, 1),
        **total,
        oom_kills=oom_kills,
        changes=sum(row["changes"] for row in rows),
        turns=sum(row["turns"] for row in rows),
        turns_most_steady=max((row["turns"] for row in steady), default=0),
        core=round(sum((row["core_host"] + row["core_clients"]) * row["took_s"] for row in rows) / took_s, 3),
    )
    report.require(not oom_kills, "the kernel killed a process")
    report.require(not total["wrong"], f"{total['wrong']} answers are wrong")
    report.require(not total["failed"], f"{total['failed']} requests were lost")
    for row in steady:
        report.require(
            row["turns"] <= MOST_TURNS, f"{row['phase']}: warning turned {row['turns']} times while the load was steady"
        )


_PHASES: Final = {
    "phase": "phase",
    "requests": "requests",
    "served": "served",
    "refused": "refused",
    "failed": "failed",
    "p50_ms": "p50",
    "p99_ms": "p99",
    "loads": "loads",
    "refaulted_bytes": "read again",
    "usage_peak_bytes": "usage peak",
    "changes": "changes",
    "rules": "by rule",
    "turns": "turns",
    "warning_least_bytes": "warning from",
    "warning_most_bytes": "to",
    "core_host": "cores: host",
    "core_clients": "clients",
}
_CHANGES: Final = {
    "rule": "rule",
    "at_s": "at",
    "from_warning_bytes": "warning from",
    "warning_bytes": "to",
    "from_critical_bytes": "critical from",
    "critical_bytes": "to",
    "usage_bytes": "usage",
}
_VERDICT: Final = {
    "took_s": "took",
    "requests": "requests",
    "served": "served",
    "refused": "refused",
    "wrong": "wrong",
    "failed": "failed",
    "oom_kills": "kills",
    "changes": "changes",
    "turns": "turns",
    "turns_most_steady": "most in a steady phase",
    "core": "cores",
}
