"""How much longer requests take while other models load: a resident model under load, with and without.

A host with one workload's model and some conv nets of 20 MB, all of them as files, the workload's and
every second net prepared. wrk drives the workload's model over some connections; in every second run a
client loads and unloads one of the nets after the other, as fast as the host does it. Prepared nets and
stock ones, which the host opens in full, are measured apart. What is told is the median of the runs, and
the difference to the runs before and after in which nothing loads.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import servers, wrk
from benchmarks.artifacts import prepare
from benchmarks.client import Client
from benchmarks.models import ModelSet
from benchmarks.process import running_host
from benchmarks.report import Report
from benchmarks.wires import V2
from benchmarks.workloads import Workload
from benchmarks.wrk import Drive

#: What another model's load may add to the 99th percentile, as far as this project promises.
PROMISED_MS: Final = 25.0
_WARM_UP_S: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, how many at once."""

    rounds: int
    seconds: float
    connections: int
    form: str


class Loader:
    """A thread that loads and unloads models in turn, one at least, until the context ends; keeps loads' times."""

    def __init__(self, url: str, models: Sequence[str]) -> None:
        self._url, self._models = url, models
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._error: Exception | None = None
        self.loads_ms: list[float] = []

    def __enter__(self) -> Loader:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None and exc_info[0] is None:
            raise self._error

    def _work(self) -> None:
        try:
            with Client(self._url) as client:
                for name in itertools.cycle(self._models):
                    started = time.monotonic()
                    client.load(name)
                    self.loads_ms.append((time.monotonic() - started) * 1e3)
                    client.unload(name)
                    if self._stop.is_set():
                        return
        except Exception as error:  # told on the thread that waits for it
            self._error = error


def run(report: Report, workloads: Sequence[Workload], models: ModelSet, plan: Plan) -> None:
    """Measures each workload without loads, beside loads of prepared models, and beside loads of stock ones."""
    wrk.find()
    names = [case.name for case in models.cases]
    kinds: dict[str, Sequence[str]] = {"nothing": (), "prepared": names[::2], "stock": names[1::2]}
    for workload in workloads:
        with _repository(workload, models) as directory:
            prepare(directory, names=[workload.name, *kinds["prepared"]], progress=report.progress)
            _measure(report, directory, workload, kinds, plan)
    report.table(
        "beside",
        {
            "workload": "workload",
            "loading": "loading",
            "requests_per_second": "req/s",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "added_ms": "p99 more",
            "spread": "p99/p50",
            "loads": "loads",
            "load_ms": "a load",
            "keeps_promise": f"at most {PROMISED_MS:.0f} ms more",
        },
    )


def _measure(report: Report, directory: Path, workload: Workload, kinds: dict[str, Sequence[str]], plan: Plan) -> None:
    wire = V2()
    request = wire.request(workload, plan.form)
    drives: dict[str, list[Drive]] = {kind: [] for kind in kinds}
    loads_ms: dict[str, list[float]] = {kind: [] for kind in kinds}
    with running_host(directory) as host, tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch:
        servers.ask(host.url, request, wire, workload)
        script, url = wrk.write_script(Path(scratch), request), host.url + request.path
        wrk.drive(url, script, connections=plan.connections, seconds=_WARM_UP_S)
        for index in range(plan.rounds):
            for kind in kinds if index % 2 == 0 else reversed(kinds):
                report.progress(f"{workload.name}, loading {kind}, round {index + 1} of {plan.rounds}")
                with contextlib.ExitStack() as stack:
                    loader = stack.enter_context(Loader(host.url, kinds[kind])) if kinds[kind] else None
                    drives[kind].append(wrk.drive(url, script, connections=plan.connections, seconds=plan.seconds))
                if loader is not None:
                    loads_ms[kind] += loader.loads_ms
        servers.ask(host.url, request, wire, workload)
    for kind in kinds:
        for drive in drives[kind]:
            report.require(not drive.errors, f"{workload.name}, loading {kind}: {drive.errors}")
        _add(report, workload, kind, drives, loads_ms[kind], plan)


def _add(
    report: Report, workload: Workload, kind: str, drives: dict[str, list[Drive]], loads_ms: list[float], plan: Plan
) -> None:
    p50_ms = statistics.median(drive.p50_ms for drive in drives[kind])
    p99_ms = statistics.median(drive.p99_ms for drive in drives[kind])
    added_ms = p99_ms - statistics.median(drive.p99_ms for drive in drives["nothing"])
    report.add(
        "beside",
        workload=workload.name,
        form=plan.form,
        loading=kind,
        requests_per_second=round(statistics.median(drive.requests_per_second for drive in drives[kind]), 1),
        p50_ms=round(p50_ms, 3),
        p99_ms=round(p99_ms, 3),
        added_ms=round(added_ms, 3),
        spread=round(p99_ms / p50_ms, 2),
        loads=len(loads_ms),
        load_ms=round(statistics.median(loads_ms), 1) if loads_ms else None,
        keeps_promise=added_ms <= PROMISED_MS,
    )


@contextlib.contextmanager
def _repository(workload: Workload, models: ModelSet) -> Iterator[Path]:
    """Makes a repository of the workload's model and the nets, beside the nets; it leaves with its artifacts."""
    directory = Path(tempfile.mkdtemp(prefix="loading-", dir=models.directory.parent))
    try:
        files = dict(zip((case.name for case in models.cases), models.files, strict=True))
        for name, file in {workload.name: workload.file, **files}.items():
            version = directory / name / "1"
            version.mkdir(parents=True)
            os.link(file, version / "model.onnx")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
