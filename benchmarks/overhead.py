"""What a request costs beyond the model's own run: `digits` over one connection, beside a bare server.

Both servers run at once and are asked in turns, so that what else the machine does meets both. The
client writes prepared bytes and reads to the end of the answer: it costs little, and both the same.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np

from benchmarks.client import binary_request, json_request
from benchmarks.process import running_host
from benchmarks.report import Report
from benchmarks.servers import free_port, running

_MODEL: Final = "digits"
_LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_WARM_UP: Final = 300


def run(report: Report, models: Path, *, requests: int, turns: int) -> None:
    """Measures JSON and binary, `turns` turns of `requests` requests on each server."""
    question = np.random.default_rng(0).uniform(0, 16, (1, 1, 8, 8)).astype(np.float32)
    forms = {
        "json": _bytes(*json_request(question, tensor="image")),
        "binary": _bytes(*binary_request(question, tensor="image")),
    }
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(running_host(models))
        port = free_port()
        file = models / _MODEL / "1" / "model.onnx"
        bare = stack.enter_context(
            running([sys.executable, "-m", "benchmarks.bare", str(file.resolve()), str(port)], port)
        )
        ours, theirs = stack.enter_context(_connection(host.url)), stack.enter_context(_connection(bare.url))
        for form, data in forms.items():
            _check_same(_ask(ours, data), _ask(theirs, data))
            samples = _measure(report, form, data, {"modelhost": ours, "bare": theirs}, requests, turns)
            medians = {server: statistics.median(times) for server, times in samples.items()}
            for server, times in samples.items():
                report.add(
                    "server",
                    form=form,
                    server=server,
                    requests=len(times),
                    per_request_us=round(medians[server] * 1e6, 1),
                    p99_us=round(sorted(times)[int(len(times) * 0.99)] * 1e6, 1),
                    requests_per_second=round(1 / statistics.fmean(times)),
                    ratio=round(medians[server] / medians["bare"], 2),
                )
    report.table(
        "server",
        {
            "form": "form",
            "server": "server",
            "requests_per_second": "requests a second",
            "per_request_us": "median",
            "p99_us": "p99",
            "ratio": "ratio to bare",
        },
    )


def _measure(
    report: Report, form: str, data: bytes, servers: Mapping[str, socket.socket], requests: int, turns: int
) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {server: [] for server in servers}
    for connection in servers.values():
        for _ in range(_WARM_UP):
            _ask(connection, data)
    for turn in range(1, turns + 1):
        report.progress(f"{form}, turn {turn} of {turns}")
        for server, connection in servers.items():
            for _ in range(requests):
                started = time.perf_counter()
                _ask(connection, data)
                samples[server].append(time.perf_counter() - started)
    return samples


def _bytes(body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = [f"POST /v2/models/{_MODEL}/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _ask(connection: socket.socket, data: bytes) -> bytes:
    """Sends a request and returns the whole answer. Raises RuntimeError where it is not 200."""
    connection.sendall(data)
    answer = connection.recv(65536)
    while (end := answer.find(b"\r\n\r\n")) < 0:
        answer += connection.recv(65536)
    stated = _LENGTH.search(answer, 0, end)
    if stated is None or not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode(errors="replace"))
    while len(answer) < end + 4 + int(stated[1]):
        answer += connection.recv(65536)
    return answer


def _check_same(ours: bytes, theirs: bytes) -> None:
    """Compares the ten logits, which are the last forty bytes or the list after `data`."""
    logits = []
    for answer in (ours, theirs):
        found = re.search(rb'"data":(\[.*?\])', answer)
        logits.append(np.array(json.loads(found[1]) if found else np.frombuffer(answer[-40:], np.float32)))
    if not np.allclose(logits[0], logits[1], atol=1e-4):
        raise RuntimeError(f"the servers do not agree: {logits}")


@contextlib.contextmanager
def _connection(url: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 80), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection
