"""Adaptive thresholds beside fixed ones: real hosts in real memory groups, the same requests, one after the other.

Models of three kinds: small ones and larger ones whose weights are mapped, and some on the heap. A load is a list of
requests, made from a seed, that several clients send as fast as answers come. The first half is for learning: times
are told of all of them, and of the second half.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import adaptive_hour
from benchmarks.artifacts import prepare
from benchmarks.client import Client, RequestFailed
from benchmarks.holding import REFUSALS
from benchmarks.models import Case, ModelSet, conv_nets, repeat
from benchmarks.percentiles import percentile
from benchmarks.places import default_cache
from benchmarks.process import HostProcess, Meter, running_host
from benchmarks.report import Report

POLICIES: Final = ("fixed", "adaptive")
_CLIENTS: Final = 4
#: A burst's batch: its activations are some 25 MB.
_BURST_ROWS: Final = 160
_BURST_EVERY: Final = 40
_BURST_LENGTH: Final = 3


#: Of small models, of larger ones, and of those on the heap.
SIZES_MB: Final = (2.0, 20.0, 12.0)


@dataclass(frozen=True, slots=True)
class Fleet:
    """One repository of all that is asked."""

    directory: Path
    small: tuple[Case, ...]
    hot: tuple[Case, ...]
    heap: tuple[Case, ...]
    files: ModelSet

    @property
    def cases(self) -> tuple[Case, ...]:
        """All models."""
        return (*self.heap, *self.hot, *self.small)


Request = tuple[Case, int]
"""A model, and how many rows."""


@dataclass(frozen=True, slots=True)
class Load:
    """A list of requests, and whether fixed thresholds are expected to thrash on it."""

    name: str
    text: str
    make: Callable[[Fleet, random.Random, int], list[Request]]
    thrashes: bool = False


def fleet(
    cache: Path | None,
    *,
    counts: tuple[int, int, int],
    sizes_mb: tuple[float, float, float] = SIZES_MB,
    progress: Callable[[str], None],
) -> Fleet:
    """Returns so many small models, larger ones and models on the heap, made and prepared where that is not done.

    Sizes have to differ: those on the heap must not be found prepared.
    """
    cache = cache or default_cache()
    sets = {
        kind: conv_nets(count, size_mb=size_mb, cache=cache, progress=progress)
        for kind, count, size_mb in zip("swh", counts, sizes_mb, strict=True)
    }
    directory = cache / "-".join(map(str, ("adaptive", *counts, *sizes_mb)))
    found: dict[str, tuple[Case, ...]] = {}
    for kind, models in sets.items():
        cases = []
        for case, file in zip(models.cases, models.files, strict=True):
            named = replace(case, name=kind + case.name)
            version = directory / named.name / "1"
            version.mkdir(parents=True, exist_ok=True)
            if not (version / "model.onnx").exists():
                os.link(file, version / "model.onnx")
            cases.append(named)
        found[kind] = tuple(cases)
    mapped = [case.name for case in (*found["s"], *found["w"])]
    prepare(directory, progress=progress, names=mapped)
    whole = ModelSet(directory, tuple(case for cases in found.values() for case in cases))
    return Fleet(directory, found["s"], found["w"], found["h"], whole)


# --- loads ------------------------------------------------------------------------------------------


def _by_rank(cases: Sequence[Case], rng: random.Random, count: int, exponent: float) -> list[Case]:
    ranked = list(cases)
    rng.shuffle(ranked)
    return rng.choices(ranked, [(rank + 1) ** -exponent for rank in range(len(ranked))], k=count)


def _zipf(models: Fleet, rng: random.Random, count: int) -> list[Request]:
    return [(case, 1) for case in _by_rank(models.small, rng, count, 1.0)]


def _heavy(models: Fleet, rng: random.Random, count: int) -> list[Request]:
    return [(case, 1) for case in _by_rank(models.heap, rng, count // 2, 0.7)]


def _bursts(models: Fleet, rng: random.Random, count: int) -> list[Request]:
    asked = _by_rank((*models.heap, *models.small[:8]), rng, count // 2, 0.7)
    batch = models.small[0]
    return [(batch, _BURST_ROWS) if at % _BURST_EVERY < _BURST_LENGTH else (case, 1) for at, case in enumerate(asked)]


def _thrash(models: Fleet, rng: random.Random, count: int) -> list[Request]:
    """Models on the heap that were in use and are seldom asked now, beside hot weights."""
    begin = list(models.heap)
    hot = [rng.choice(models.heap if rng.random() < 0.003 else models.hot) for _ in range(count - len(begin))]
    return [(case, 1) for case in (*begin, *hot)]


def _diurnal(models: Fleet, rng: random.Random, count: int) -> list[Request]:
    """By night the models on the heap, by day those that are mapped."""
    night = _by_rank(models.heap, rng, count // 4, 0.7)
    day = [rng.choice(models.heap if rng.random() < 0.003 else models.hot) for _ in range(count * 3 // 4)]
    return [(case, 1) for case in (*night, *day)]


LOADS: Final = (
    Load("zipf", "many small mapped models, by Zipf", _zipf),
    Load("heavy", "models on the heap, more than fit", _heavy),
    Load("bursts", "models on the heap, and bursts of large batches", _bursts),
    Load("thrash", "hot weights that are larger than the page cache beside idle models", _thrash, thrashes=True),
    Load("diurnal", "by night models on the heap, by day hot weights", _diurnal, thrashes=True),
)


# --- measuring --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answers:
    """What became of a load; times in the order of the requests."""

    results: Counter[str] = field(default_factory=Counter)
    latencies_ms: dict[int, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def ask(url: str, requests: Sequence[Request]) -> Answers:
    """Has all clients send the requests, each the next one as soon as it has an answer."""
    answers, lock, left = Answers(), threading.Lock(), iter(enumerate(requests))

    def work() -> None:
        with Client(url) as client:
            while True:
                with lock:
                    at, (case, rows) = next(left, (-1, (None, 0)))
                if case is None:
                    return
                began, result = time.perf_counter(), "ok"
                try:
                    answer = client.infer(case.name, case.question if rows == 1 else repeat(case, rows))
                    if not all(case.is_right(row[None]) for row in np.asarray(answer)):
                        result = "wrong"
                except RequestFailed as error:
                    result = str(error).split(":")[0]
                    with lock:
                        answers.failures.append(f"{case.name}: {error}"[:300])
                took_ms = (time.perf_counter() - began) * 1e3
                with lock:
                    answers.results[result] += 1
                    answers.latencies_ms[at] = took_ms

    threads = [threading.Thread(target=work) for _ in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def run(
    report: Report,
    models: Fleet,
    *,
    loads: Sequence[str],
    limit_bytes: int,
    requests: int,
    rounds: int,
    seed: int,
    hour: bool = True,
) -> None:
    """Measures each load under both policies in turns; and, with `hour`, hours that are made."""
    for load in LOADS:
        if load.name not in loads:
            continue
        asked = load.make(models, random.Random(f"{seed} {load.name}"), requests)
        for turn in range(rounds):
            for policy in POLICIES if turn % 2 == 0 else POLICIES[::-1]:
                report.progress(f"{load.name}, {policy}: {len(asked)} requests")
                report.add(
                    "load",
                    load=load.name,
                    policy=policy,
                    round=turn,
                    **_measure(report, models, asked, policy, limit_bytes),
                )
        _compare(report, load)
    report.table("load", _COLUMNS)
    report.table("compared", _COMPARED)
    if hour:
        _hours(report, seed)


def _hours(report: Report, seed: int) -> None:
    for name, made in adaptive_hour.LOADS.items():
        hour = adaptive_hour.live(made, seed=seed)
        report.add("hour", load=name, changes=len(hour.decisions), turns=hour.turns, changes_late=hour.after(1200))
        report.require(hour.turns <= 12, f"an hour of {name}: warning turned {hour.turns} times")
    report.table("hour", _HOUR)


def open_once(host: HostProcess, asked: Sequence[Request]) -> None:
    """Loads what will be asked, and lets it go: a child opens models on the heap first, which is not measured."""
    with Client(host.url) as client:
        for name in sorted({case.name for case, _ in asked}):
            client.load(name)
        client.cleanup()


def _measure(report: Report, models: Fleet, asked: Sequence[Request], policy: str, limit_bytes: int) -> dict[str, Any]:
    models.files.forget_pages()
    settings = {"MEMORY_POLICY": policy, "STATE_KEEP_LEARNT": "false", "MEMORY_EVENT_HISTORY": "1000"}
    with running_host(models.directory, limit_bytes=limit_bytes, settings=settings) as host:
        open_once(host, asked)
        with Client(host.url) as client:
            before = client.metrics()
        with Meter(host) as meter:
            began = time.monotonic()
            answers = ask(host.url, asked)
            took_s = time.monotonic() - began
        with Client(host.url) as client:
            after, memory = client.metrics(), client.memory()
        figures = host.group_figures()
        report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    late = [took_ms for at, took_ms in answers.latencies_ms.items() if at >= len(asked) // 2]
    refused = sum(answers.results[status] for status in REFUSALS)
    changes = [event for event in memory["events"] if event["kind"] == "policy"]
    report.require(not answers.results["wrong"], f"{policy}: {answers.results['wrong']} answers are wrong")
    report.require(not (figures and figures.oom_kills), f"{policy}: the kernel killed a process")
    return {
        "requests": len(asked),
        "served": answers.results["ok"],
        "refused": refused,
        "failures": answers.failures[:3],
        "took_s": round(took_s, 2),
        "p50_ms": round(percentile(list(answers.latencies_ms.values()), 0.5), 2),
        "p99_ms": round(percentile(list(answers.latencies_ms.values()), 0.99), 2),
        "p50_late_ms": round(percentile(late, 0.5), 2),
        "p99_late_ms": round(percentile(late, 0.99), 2),
        **{key: int(after.get(key, 0) - before.get(key, 0)) for key in ("loads", "evictions")},
        "refaulted_bytes": int(
            after.get("page_cache_refaulted_bytes", 0) - before.get("page_cache_refaulted_bytes", 0)
        ),
        "usage_peak_bytes": meter.peak_bytes,
        "warning_bytes": memory["warning_bytes"],
        "critical_bytes": memory["critical_bytes"],
        "changes": len(changes),
        "turns": adaptive_hour.turned([change["warning_bytes"] for change in changes]),
        "reasons": [f"{change['rule']}: {change['reason']}" for change in changes],
        "oom_kills": figures.oom_kills if figures else None,
    }


def _compare(report: Report, load: Load) -> None:
    """Holds adaptive against fixed: nobody killed, as many served, and a better p99 where fixed thrashes."""
    rows = {
        policy: [
            row for row in report.rows if row["kind"] == "load" and (row["load"], row["policy"]) == (load.name, policy)
        ]
        for policy in POLICIES
    }

    def best(policy: str, key: str) -> float:
        return min(float(row[key]) for row in rows[policy])

    served = {policy: min(row["served"] for row in rows[policy]) for policy in POLICIES}
    ratio = best("adaptive", "p99_late_ms") / max(best("fixed", "p99_late_ms"), 0.001)
    report.add(
        "compared",
        load=load.name,
        served_fixed=served["fixed"],
        served_adaptive=served["adaptive"],
        took_ratio=round(best("adaptive", "took_s") / best("fixed", "took_s"), 3),
        p99_ratio=round(best("adaptive", "p99_ms") / best("fixed", "p99_ms"), 3),
        p99_late_ratio=round(ratio, 3),
    )
    report.require(
        served["adaptive"] >= served["fixed"],
        f"{load.name}: adaptive served {served['adaptive']}, fixed {served['fixed']}",
    )


_COLUMNS: Final = {
    "load": "load",
    "policy": "policy",
    "served": "served",
    "refused": "refused",
    "took_s": "took",
    "p50_ms": "p50",
    "p99_ms": "p99",
    "p99_late_ms": "p99, 2nd half",
    "loads": "loads",
    "refaulted_bytes": "read again",
    "usage_peak_bytes": "usage peak",
    "warning_bytes": "warning",
    "critical_bytes": "critical",
    "changes": "changes",
    "oom_kills": "kills",
}
_COMPARED: Final = {
    "load": "load",
    "served_fixed": "served fixed",
    "served_adaptive": "adaptive",
    "took_ratio": "time, x fixed",
    "p99_ratio": "p99, x fixed",
    "p99_late_ratio": "2nd half, x fixed",
}
_HOUR: Final = {"load": "an hour of", "changes": "changes", "changes_late": "after 20 min", "turns": "turns"}
