"""Must show: 20,000 model folders. How long a start and what lists models take, and what the idle host holds."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.places import ROOT
from benchmarks.process import HostProcess, running_host
from benchmarks.report import Report
from benchmarks.smaps import read_process

READY_S: Final = 5.0
MORE_BYTES: Final = 40 << 20
INDEX_MS: Final = 1000.0

#: Models on a page of the index.
PAGE: Final = 500

#: Loaded before anything is asked. What nobody has opened yet is opened by a child first, which takes a second or so.
_LOADED: Final = 10

_TINY: Final = ROOT / "models" / "iris_petals" / "1" / "model.onnx"
_QUESTION: Final = {
    "inputs": [
        {"name": "species", "datatype": "BYTES", "shape": [1, 1], "data": ["setosa"]},
        {"name": "sepal", "datatype": "FP32", "shape": [1, 2], "data": [5.1, 3.4]},
    ]
}
_INDEX: Final = "/v2/repository/index"


def run(report: Report, *, folders: int, rounds: int) -> None:
    """Starts a host without a model and one with very many, and asks that one."""
    with tempfile.TemporaryDirectory(prefix="modelhost-folders-") as scratch:
        empty, full = Path(scratch) / "empty", Path(scratch) / "full"
        empty.mkdir()
        make(full, folders)
        with running_host(empty) as host:
            empty_bytes = read_process(host.pid).committed_bytes
        with running_host(full) as host:
            committed_bytes = read_process(host.pid).committed_bytes
            report.add(
                "start",
                folders=folders,
                ready_ms=round(host.ready_s * 1e3, 1),
                committed_bytes=committed_bytes,
                more_bytes=committed_bytes - empty_bytes,
            )
            report.require(host.ready_s <= READY_S, f"ready after {host.ready_s:.2f} s")
            report.require(committed_bytes - empty_bytes <= MORE_BYTES, "the idle host holds more than it may")
            _ask(report, host, folders, rounds)
    report.table(
        "start", {"folders": "folders", "ready_ms": "ready", "committed_bytes": "holds", "more_bytes": "than empty"}
    )
    report.table(
        "answer",
        {
            "request": "request",
            "median_ms": "median",
            "longest_ms": "longest",
            "body_bytes": "answer",
            "others_longest_ms": "others wait at most",
        },
    )
    whole = next(row for row in report.rows if row.get("request") == "index")
    report.require(whole["median_ms"] <= INDEX_MS, f"the index takes {whole['median_ms']} ms")


def make(directory: Path, folders: int) -> None:
    """Makes folders of one tiny model: names of one file."""
    directory.mkdir()
    first = directory / "model.onnx"
    first.write_bytes(_TINY.read_bytes())
    for number in range(folders):
        version = directory / name_of(number) / "1"
        version.mkdir(parents=True)
        os.link(first, version / "model.onnx")
        if number % 10_000 == 9_999:  # a file has at most some 65,000 names
            first.unlink()
            first.write_bytes(_TINY.read_bytes())
    first.unlink()


def name_of(number: int) -> str:
    """Returns the name of a model, in order."""
    return f"model-{number:06d}"


# --- inside --------------------------------------------------------------------------------------


def _ask(report: Report, host: HostProcess, folders: int, rounds: int) -> None:
    middle = name_of(folders // 2)
    with httpx.Client(base_url=host.url, timeout=60, verify=False, trust_env=False) as http:
        report.progress(f"loads {_LOADED} models")
        for number in range(min(_LOADED, folders)):  # by asking: an explicit load looks at the whole repository first
            http.post(f"/v2/models/{name_of(number)}/infer", json=_QUESTION).raise_for_status()

        def index(**wanted: Any) -> Callable[[], bytes]:
            return lambda: http.post(_INDEX, json=wanted).raise_for_status().content

        def get(path: str) -> Callable[[], bytes]:
            return lambda: http.get(path).raise_for_status().content

        def all_pages() -> bytes:
            after, size = "", 0
            while entries := http.post(_INDEX, json={"limit": PAGE, "after": after}).raise_for_status().json():
                after = entries[-1]["name"]
                size += len(entries)
            report.require(size == folders, f"pages have {size} of {folders} models")
            return b""

        for name, ask in {
            "index": index(),
            "index, loaded ones": index(ready=True),
            f"index, first {PAGE}": index(limit=PAGE),
            f"index, {PAGE} in the middle": index(limit=PAGE, after=middle),
            f"index, all in pages of {PAGE}": all_pages,
            "/monitor": get("/monitor"),
            "/monitor/models, 50 in the middle": get(f"/monitor/models?offset={folders // 2}"),
            "/metrics": get("/metrics"),
            "/memory": get("/memory"),
        }.items():
            report.progress(name)
            _measure(report, host, name, ask, rounds)


def _measure(report: Report, host: HostProcess, name: str, ask: Callable[[], bytes], rounds: int) -> None:
    body = ask()
    took_ms = []
    with _others(host) as waits_ms:
        for _ in range(rounds):
            began = time.perf_counter()
            ask()
            took_ms.append((time.perf_counter() - began) * 1e3)
    report.add(
        "answer",
        request=name,
        median_ms=round(statistics.median(took_ms), 2),
        longest_ms=round(max(took_ms), 2),
        body_bytes=len(body) or None,
        others_longest_ms=round(max(waits_ms), 2),
    )


@contextmanager
def _others(host: HostProcess) -> Iterator[list[float]]:
    """Somebody else asks something quick, again and again: how long each of these had to wait."""
    waits_ms: list[float] = [0.0]
    ends = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=host.url, timeout=60, verify=False, trust_env=False) as http:
            while not ends.is_set():
                began = time.perf_counter()
                http.get("/v2/health/live")
                waits_ms.append((time.perf_counter() - began) * 1e3)
                ends.wait(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits_ms
    finally:
        ends.set()
        thread.join()
