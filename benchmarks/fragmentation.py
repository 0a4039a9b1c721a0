"""Models and tensors of changing sizes, thousands of times: what the host holds against what it needs.

What it needs is what another host commits that has only just begun, loads the models that are loaded here, and asks
each of them as was done here last. Along the way it is reckoned: the idle host, and each model by itself, measured
beforehand in a host of no limit.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.artifacts import prepare
from benchmarks.client import Client
from benchmarks.models import Case, ModelSet, conv_nets, repeat
from benchmarks.places import default_cache
from benchmarks.process import HostProcess, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report
from benchmarks.smaps import read_process

_MB: Final = 1 << 20
#: The contract: at the end at most this much more is held than is needed.
MOST_ABOVE: Final = 0.10
#: MB of weights. Two models of each, one of them prepared.
SIZES_MB: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
#: A run's rows times its weights: what takes some 20 ms.
_WORK_MB: Final = 40
_MOST_ROWS: Final = 128
_UNLOAD_SHARE: Final = 0.15
_JSON_SHARE: Final = 0.25
_READINGS: Final = 50
#: What the host trims when it is idle takes a sample or two.
_SETTLE_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much."""

    cycles: int
    sizes_mb: tuple[float, ...]
    limit_bytes: int
    seed: int


def make(sizes_mb: tuple[float, ...], *, cache: Path | None, progress: Callable[[str], None]) -> ModelSet:
    """Returns a repository of two models of each size, the first of each prepared."""
    directory = (cache or default_cache()) / f"fragmentation-{len(sizes_mb)}"
    cases = []
    for size_mb in sizes_mb:
        made = conv_nets(2, size_mb=size_mb, cache=cache, progress=progress)
        for index, (case, file) in enumerate(zip(made.cases, made.files, strict=True)):
            name = f"c{size_mb:g}-{index}".replace(".", "_")
            version = directory / name / "1"
            version.mkdir(parents=True, exist_ok=True)
            if not (version / "model.onnx").exists():
                os.link(file, version / "model.onnx")
            cases.append(replace(case, name=name))
    prepare(directory, names=[case.name for case in cases if case.name.endswith("-0")], progress=progress)
    return ModelSet(directory, tuple(cases))


def run(report: Report, models: ModelSet, plan: Plan) -> None:
    """Measures each model by itself, runs the cycles, and has a new host load what is loaded at the end."""
    report.progress("each model by itself")
    idle_bytes, sizes = _sizes(models)
    with running_host(models.directory, limit_bytes=plan.limit_bytes, settings=RECORDED) as host:
        with Recording(report, host, "models and tensors of changing sizes") as recording, Client(host.url) as client:
            last = _cycles(report, models, host, client, recording, plan, idle_bytes, sizes)
            recording.mark("the end")
            time.sleep(_SETTLE_S)
            held_bytes = read_process(host.pid).committed_bytes
            loaded = client.loaded()
            client.cleanup()
            time.sleep(_SETTLE_S)
            empty_bytes = read_process(host.pid).committed_bytes
        figures = host.group_figures()
    needed_bytes, needed_empty_bytes = _needed(models, [(name, last[name]) for name in loaded], plan)
    above = held_bytes / needed_bytes - 1
    report.add(
        "total",
        cycles=plan.cycles,
        loads=sum(len(row["loads"]) for row in report.rows if row["kind"] == "recorded"),
        loaded=len(loaded),
        held_bytes=held_bytes,
        needed_bytes=needed_bytes,
        above_bytes=held_bytes - needed_bytes,
        above_percent=round(above * 100, 2),
        empty_bytes=empty_bytes,
        needed_empty_bytes=needed_empty_bytes,
        empty_above_percent=round((empty_bytes / needed_empty_bytes - 1) * 100, 2),
        oom_kills=figures.oom_kills if figures else None,
    )
    report.require(above <= MOST_ABOVE, f"{above:.1%} more is held than is needed, at most {MOST_ABOVE:.0%} is allowed")
    report.require(not (figures and figures.oom_kills), "the kernel killed a process")
    _plot(report, plan, held_bytes, needed_bytes)
    report.table(
        "reading",
        {
            "cycle": "after cycle",
            "loaded": "loaded",
            "held_bytes": "held",
            "reckoned_bytes": "needed, reckoned",
            "above_percent": "above, %",
        },
    )
    report.summary("total")


def _sizes(models: ModelSet) -> tuple[int, dict[str, int]]:
    """Returns what an idle host commits after its first load, and what each model adds, the rows of a run aside."""
    with running_host(models.directory) as host, Client(host.url) as client:
        first = models.cases[0]
        client.infer(first.name, first.question)
        client.cleanup()
        idle_bytes = before = read_process(host.pid).committed_bytes
        sizes = {}
        for case in models.cases:
            client.infer(case.name, case.question)
            after = read_process(host.pid).committed_bytes
            sizes[case.name], before = max(0, after - before), after
    return idle_bytes, sizes


def _cycles(
    report: Report,
    models: ModelSet,
    host: HostProcess,
    client: Client,
    recording: Recording,
    plan: Plan,
    idle_bytes: int,
    sizes: dict[str, int],
) -> dict[str, int]:
    """Asks and unloads at random; returns how many rows each model was asked last."""
    choose, last = random.Random(plan.seed), {}
    every = max(5, plan.cycles // _READINGS)
    by_name = {case.name: float(case.name[1:-2].replace("_", ".")) for case in models.cases}
    for cycle in range(1, plan.cycles + 1):
        case = choose.choice(models.cases)
        rows = choose.randint(1, max(1, min(_MOST_ROWS, int(_WORK_MB / by_name[case.name]))))
        as_json = choose.random() < _JSON_SHARE
        started = time.perf_counter()
        answer = client.infer(case.name, repeat(case, rows), as_json=as_json)
        recording.request("json" if as_json else "binary", (time.perf_counter() - started) * 1e3)
        report.require(_is_right(case, answer, rows), f"cycle {cycle}: a wrong answer")
        last[case.name] = rows
        if choose.random() < _UNLOAD_SHARE:
            client.unload(case.name)
        if cycle == 1 or cycle % every == 0:
            loaded = client.loaded()
            held = read_process(host.pid).committed_bytes
            reckoned = idle_bytes + sum(sizes[name] for name in loaded)
            report.add(
                "reading",
                cycle=cycle,
                loaded=len(loaded),
                held_bytes=held,
                reckoned_bytes=reckoned,
                above_percent=round((held / reckoned - 1) * 100, 1),
            )
            report.progress(f"{cycle} of {plan.cycles} cycles")
    return last


def _is_right(case: Case, answer: object, rows: int) -> bool:
    return getattr(answer, "shape", ())[:1] == (rows,) and all(case.is_right(row[None]) for row in answer)  # type: ignore[attr-defined]


def _needed(models: ModelSet, loaded: list[tuple[str, int]], plan: Plan) -> tuple[int, int]:
    """Returns what a new host commits that has loaded and asked just those, and what it does without them."""
    cases = {case.name: case for case in models.cases}
    with running_host(models.directory, limit_bytes=plan.limit_bytes) as host, Client(host.url) as client:
        for name, rows in loaded:
            client.infer(name, repeat(cases[name], rows))
        time.sleep(_SETTLE_S)
        needed_bytes = read_process(host.pid).committed_bytes
        if sorted(client.loaded()) != sorted(name for name, _ in loaded):
            raise RuntimeError("the new host does not hold the same models")
        client.cleanup()
        time.sleep(_SETTLE_S)
        return needed_bytes, read_process(host.pid).committed_bytes


def _plot(report: Report, plan: Plan, held_bytes: int, needed_bytes: int) -> None:
    readings = [row for row in report.rows if row["kind"] == "reading"]
    report.add(
        "plot",
        title="held against needed",
        note=(
            "Committed memory of the process with what is loaded at that moment; needed is reckoned from each model by "
            f"itself. At the end {held_bytes / _MB:.1f} MB are held; a new host with the same models commits "
            f"{needed_bytes / _MB:.1f} MB."
        ),
        x={"label": "cycles", "unit": "count"},
        y={"label": "committed", "unit": "bytes"},
        series=[
            {"name": "held", "points": [[row["cycle"], row["held_bytes"]] for row in readings]},
            {"name": "needed", "points": [[row["cycle"], row["reckoned_bytes"]] for row in readings], "dashed": True},
        ],
        levels=[{"at": plan.limit_bytes, "name": "limit", "style": "limit"}],
    )
