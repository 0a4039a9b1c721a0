"""The host's group is held at a level from outside: what is refused, what survives, and how long answers take.

A process of ballast inside the group brings usage to the level and keeps it there while idle models leave. Two clients
ask a model that is in use all the while; a third one asks for others, one after another, which have to be loaded.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

from benchmarks.client import Client
from benchmarks.models import Case, ModelSet
from benchmarks.percentiles import percentile
from benchmarks.pressure import Outcome
from benchmarks.process import HostProcess, Meter, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report
from modelhost.testing import Pressure, pressure

#: What a host may answer that has no room, each with something for the client to do.
REFUSALS: Final = frozenset({"503", "507"})
_RESIDENT_CLIENTS: Final = 2
_TOP_UP_S: Final = 0.1
_PAUSE_S: Final = 0.02
_PHASES: Final = (("before", None), ("at warning", "warning"), ("at critical", "critical"), ("let go", None))


def run(report: Report, models: ModelSet, *, limit_bytes: int, hold_s: float) -> None:
    """Runs each phase for `hold_s` against one host in a cgroup."""
    resident, *others = models.cases
    with running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host:
        if host.group is None:
            report.progress("nothing is held: it takes a memory cgroup")
            return
        with Client(host.url) as client:
            for case in models.cases:  # so that each has been opened once, and none is prepared under pressure
                client.infer(case.name, case.question)
        with Recording(report, host, "held at warning, at critical, and let go") as recording:
            for name, level in _PHASES:
                report.progress(f"{name}, {hold_s:g} s")
                recording.mark(name)
                held = nullcontext() if level is None else pressure(level, on=host.group)
                with held as holding:
                    _phase(report, host, recording, name, holding, resident, others, hold_s)
        figures = host.group_figures()
        report.require(host.is_alive, f"the host has ended: {host.last_words()}")
        report.require(not (figures and figures.oom_kills), "held: the kernel killed a process")
    report.table(
        "held",
        {
            "phase": "phase",
            "usage_least_bytes": "usage from",
            "usage_peak_bytes": "to",
            "resident_right": "in use: right",
            "resident_refused": "refused",
            "resident_p50_ms": "p50",
            "resident_p99_ms": "p99",
            "others_right": "to load: right",
            "others_refused": "refused",
            "others_p50_ms": "p50",
            "others_p99_ms": "p99",
            "loaded": "loaded at its end",
        },
    )


def _phase(
    report: Report,
    host: HostProcess,
    recording: Recording,
    name: str,
    holding: Pressure | None,
    resident: Case,
    others: Sequence[Case],
    hold_s: float,
) -> None:
    until = time.monotonic() + hold_s
    results: dict[str, Counter[str]] = {"in use": Counter(), "to load": Counter()}
    times: dict[str, list[float]] = {who: [] for who in results}
    with Meter(host) as meter, _asking(host.url, recording, name, resident, others, results, times, until) as failures:
        least = host.usage_bytes()
        while time.monotonic() < until:
            if holding is not None:
                holding.top_up()
            least = min(least, host.usage_bytes())
            time.sleep(_TOP_UP_S)
    with Client(host.url) as client:
        loaded = len(client.loaded())
    figures: dict[str, float | None] = {}
    for key, who in (("resident", "in use"), ("others", "to load")):
        found, answered = results[who], sorted(times[who])
        refused = sum(found[status] for status in REFUSALS)
        figures |= {
            f"{key}_right": found["ok"],
            f"{key}_refused": refused,
            f"{key}_p50_ms": round(percentile(answered, 0.5), 2) if answered else None,
            f"{key}_p99_ms": round(percentile(answered, 0.99), 2) if answered else None,
        }
        report.require(not found["wrong"], f"{name}: {found['wrong']} wrong answers")
        lost = found.total() - found["ok"] - found["wrong"] - refused
        report.require(not lost, f"{name}: {lost} requests were lost: {failures[:1]}")
    if name in ("before", "let go"):
        unserved = sum(found[status] for found in results.values() for status in REFUSALS)
        report.require(not unserved, f"{name}: {unserved} requests were refused with room for all")
    report.add("held", phase=name, usage_least_bytes=least, usage_peak_bytes=meter.peak_bytes, loaded=loaded, **figures)


@contextmanager
def _asking(
    url: str,
    recording: Recording,
    phase: str,
    resident: Case,
    others: Sequence[Case],
    results: dict[str, Counter[str]],
    times: dict[str, list[float]],
    until: float,
) -> Iterator[list[str]]:
    """Has clients ask until then, and waits for them; yields what failed, in words, as far as it was no refusal."""
    lock = threading.Lock()
    failures: list[str] = []
    threads = []

    def note(who: str, latency_ms: float, result: str) -> None:
        with lock:
            results[who][result] += 1
            if result == "ok":
                times[who].append(latency_ms)
        recording.request(who, latency_ms, result)

    def ask(outcome: Outcome, cases: Iterator[Case]) -> None:
        with Client(url) as client:
            while time.monotonic() < until:
                outcome.ask(client, next(cases))
                failures.extend(text for text in outcome.failures if text.split(": ")[1] not in REFUSALS)
                outcome.failures.clear()
                time.sleep(_PAUSE_S)

    for who, cases, clients in (("in use", [resident], _RESIDENT_CLIENTS), ("to load", others, 1)):
        asked = [Outcome(note=lambda ms, result, who=who: note(who, ms, result)) for _ in range(clients)]  # type: ignore[misc]
        threads += [threading.Thread(target=ask, args=(one, itertools.cycle(cases))) for one in asked]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        for thread in threads:
            thread.join()
