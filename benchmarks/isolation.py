"""What a worker process of its own costs a model: time of a request, of a load, and memory.

One host has each workload's model twice, in itself and in a worker. One connection asks the two in turn, in short
rounds, so that whatever else the machine does is in both; times are the client's, binary tensors. A second host
without any isolated model says what the process takes that workers are forked from.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.artifacts import prepare
from benchmarks.client import Client, RequestFailed
from benchmarks.process import running_host
from benchmarks.report import Report
from benchmarks.wires import V2, Request
from benchmarks.workloads import Workload

_PLACES: Final = ("host", "worker")
_ROUND_S: Final = 0.25
_LOADS: Final = 10


def run(report: Report, workloads: Sequence[Workload], *, limit_bytes: int, rounds: int) -> None:
    """Measures each workload in both places."""
    with tempfile.TemporaryDirectory(prefix="modelhost-bench-models-") as scratch:
        models = Path(scratch)
        for workload in workloads:
            for place in _PLACES:
                folder = models / _name(workload, place)
                (folder / "1").mkdir(parents=True)
                shutil.copyfile(workload.file, folder / "1" / "model.onnx")
        report.progress("preparing")
        prepare(models, progress=report.progress)
        baseline_bytes = _baseline(models, limit_bytes)
        for workload in workloads:
            (models / _name(workload, "worker") / "model.toml").write_text('isolation = "process"\n')
        with running_host(models, limit_bytes=limit_bytes) as host, Client(host.url) as client:
            with_template_bytes = client.memory()["baseline_bytes"]
            report.add(
                "template",
                host_bytes=baseline_bytes,
                with_template_bytes=with_template_bytes,
                template_bytes=with_template_bytes - baseline_bytes,
            )
            for workload in workloads:
                report.progress(workload.name)
                _measure(report, client, _Asker(host.url), workload, rounds)
    report.table("template", {"host_bytes": "idle host", "with_template_bytes": "ready for workers"})
    report.table(
        "model",
        {
            "workload": "model",
            "place": "where",
            "p50_us": "p50",
            "p99_us": "p99",
            "load_ms": "load",
            "committed_bytes": "committed",
        },
    )


def _baseline(models: Path, limit_bytes: int) -> int:
    with running_host(models, limit_bytes=limit_bytes) as host, Client(host.url) as client:
        return int(client.memory()["baseline_bytes"])


def _measure(report: Report, client: Client, asker: _Asker, workload: Workload, rounds: int) -> None:
    """Loads both, some times, and asks both in turn."""
    loads: dict[str, list[float]] = {place: [] for place in _PLACES}
    for place in _PLACES:
        for _ in range(_LOADS):
            client.unload(_name(workload, place))
            before = client.metrics()["load_seconds"]
            client.load(_name(workload, place))
            loads[place].append((client.metrics()["load_seconds"] - before) * 1e3)
        right = workload.is_right(client.infer(_name(workload, place), workload.question))
        report.require(right, f"{workload.name} answered wrong in the {place}")
    held = {model["name"]: model["committed_bytes"] for model in client.memory()["models"]}
    times: dict[str, list[float]] = {place: [] for place in _PLACES}
    for turn in range(rounds + 1):
        for place in _PLACES:
            found = asker.ask(V2().request(workload, "binary"), _name(workload, place))
            if turn:  # the first warms up
                times[place] += found
    for place in _PLACES:
        found = sorted(times[place])
        report.add(
            "model",
            workload=workload.name,
            place=place,
            requests=len(found),
            p50_us=statistics.median(found) * 1e6,
            p99_us=found[int(len(found) * 0.99)] * 1e6,
            load_ms=statistics.median(loads[place]),
            committed_bytes=held[_name(workload, place)],
        )


def _name(workload: Workload, place: str) -> str:
    return f"{workload.name}_{place}"


class _Asker:
    """One connection that costs next to nothing itself: a request's bytes out, an answer's bytes in."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname or "", address.port or 0), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(16 << 20)

    def ask(self, request: Request, model: str) -> list[float]:
        """Asks for one round; returns the seconds of each request. Raises RequestFailed."""
        lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: bench", f"Content-Length: {len(request.body)}"]
        lines += [f"{name}: {value}" for name, value in request.headers.items()]
        data = "\r\n".join([*lines, "", ""]).encode() + request.body
        times: list[float] = []
        end = time.perf_counter() + _ROUND_S
        while not times or time.perf_counter() < end:
            started = time.perf_counter()
            self._socket.sendall(data)
            self._read_answer()
            times.append(time.perf_counter() - started)
        return times

    def _read_answer(self) -> None:
        view, have, end = memoryview(self._buffer), 0, -1
        while end < 0:
            have += self._received(view[have:])
            end = self._buffer.find(b"\r\n\r\n", 0, have)
        head = bytes(self._buffer[:end]).lower()
        if b" 200 " not in head[:16]:
            raise RequestFailed(bytes(self._buffer[:have]).decode(errors="replace")[:500])
        size = int(head.partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0])
        while have < end + 4 + size:
            have += self._received(view[have:])

    def _received(self, room: memoryview) -> int:
        size = self._socket.recv_into(room)
        if not size:
            raise RequestFailed("the host has closed the connection")
        return size
