"""A million requests that are changed a little: does the host fail, hang, end, or grow?"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import httpx

from benchmarks.client import Client, RequestFailed
from benchmarks.fuzz.corpus import Corpus
from benchmarks.fuzz.mutate import Sample
from benchmarks.fuzz.wire import Finding, Line
from benchmarks.fuzz.worker import Outcome, Worker
from benchmarks.places import ROOT
from benchmarks.process import HostProcess, running_host
from benchmarks.report import Report
from benchmarks.smaps import read_process
from benchmarks.soak.traffic import rpc_available
from benchmarks.soak.verdict import Reading, drift

_WORKERS: Final = 2
#: Memory is read so often.
_ROUNDS: Final = 40
#: The same bound as a soak's: of a process that holds 60 MB, 600 KB in a million requests.
_MAX_GROWTH: Final = 0.01
#: What a host may log of requests, whatever they are: none of it is a failure of its own.
_FAILURES: Final = ("Traceback", " ERROR ", " CRITICAL ", "Exception ignored", "Task exception was never retrieved")


def run(report: Report, *, requests: int, seed: int, limit_bytes: int, save: Path | None) -> None:
    """Fuzzes one host and reports; findings go to `save`, each in a file that `tests/corpus/raw` takes as it is."""
    settings, rpc_address = {}, None
    if rpc_available():
        port = _free_port()
        settings, rpc_address = {"SERVER_GRPC_PORT": str(port)}, f"127.0.0.1:{port}"
    with running_host(ROOT / "models", limit_bytes=limit_bytes, settings=settings) as host, ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(address_of(host), rpc_address, f"{seed} {number}")) for number in range(_WORKERS)
        ]
        total, readings, began = Outcome(), [read_idle(host)], time.monotonic()
        for number in range(_ROUNDS):
            for worker in workers:
                worker.begin(max(1, requests // _ROUNDS // _WORKERS))
            try:
                for worker in workers:
                    total.merge(worker.outcome())
                readings.append(read_idle(host))
            except (RequestFailed, OSError) as error:
                report.require(False, f"the host does not answer any more: {error}")
                break
            _note(report, total, readings[-1], time.monotonic() - began, number)
            if len(total.findings) > 20:
                break
        _conclude(report, host, total, readings, time.monotonic() - began, save)


def read_idle(host: HostProcess) -> Reading:
    """Has all models leave and logging be as it was, and reads the memory that is left. Raises RequestFailed."""
    with Client(host.url) as client:
        httpx.post(f"{host.url}/v2/logging", json=_LOGGING, trust_env=False, timeout=30)
        lowest = None
        for _ in range(3):
            client.cleanup()
            time.sleep(0.1)
            found = Reading(time.monotonic(), read_process(host.pid).committed_bytes, host.usage_bytes())
            if lowest is None or found.committed_bytes < lowest.committed_bytes:
                lowest = found
        assert lowest is not None
        return lowest


_LOGGING: Final = {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0}


def address_of(host: HostProcess) -> tuple[str, int]:
    """Returns where it listens."""
    parts = urlsplit(host.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def replay(address: tuple[str, int], corpus: Corpus) -> Iterator[tuple[str, Finding]]:
    """Sends every seed by itself; yields what is wrong with one."""
    line = Line(address)
    for message in corpus.framed:
        sample = Sample(message.rendered(), message.method)
        line.send([sample])
        _, finding = line.receive([sample])
        if finding is not None:
            yield message.target.decode("latin-1"), finding
    for data in corpus.raw:
        finding = line.send_raw(Sample(data, None), waits=True)
        if finding is not None:
            yield repr(data[:60]), finding
    line.close()


def failures_in(log: Path) -> list[str]:
    """Returns the lines of a host's log that tell of a failure of its own, each with what follows it."""
    lines = log.read_text(errors="replace").splitlines()
    return ["\n".join(lines[at : at + 30]) for at, line in enumerate(lines) if any(word in line for word in _FAILURES)]


def _note(report: Report, total: Outcome, reading: Reading, took_s: float, number: int) -> None:
    report.add(
        "round",
        requests=total.requests,
        per_second=round(total.requests / took_s),
        committed_bytes=reading.committed_bytes,
        usage_bytes=reading.usage_bytes,
        findings=len(total.findings),
    )
    failed = sum(count for status, count in total.statuses.items() if status.startswith("5"))
    report.progress(
        f"{total.requests} requests, {total.requests / took_s:.0f} a second; {failed} of status 5xx, "
        f"{len(total.findings)} findings; {reading.committed_bytes / 2**20:.2f} MB idle ({number + 1} of {_ROUNDS})"
    )


def _conclude(
    report: Report, host: HostProcess, total: Outcome, readings: list[Reading], took_s: float, save: Path | None
) -> None:
    growth, figures = drift(readings), host.group_figures()
    failures = failures_in(host.log)
    report.add(
        "total",
        requests=total.requests,
        took_s=round(took_s, 1),
        per_second=round(total.requests / took_s),
        idle_before_bytes=readings[0].committed_bytes,
        idle_bytes=readings[-1].committed_bytes,
        growth_bytes=round(growth.bytes),
        growth_percent=round(growth.share * 100, 3),
        settling_bytes=round(growth.settling_bytes),
        findings=len(total.findings),
        failures_logged=len(failures),
        oom_kills=figures.oom_kills if figures else None,
        statuses=dict(sorted(total.statuses.items())),
    )
    report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    report.require(not figures or not figures.oom_kills, "the kernel killed a process")
    if growth.is_known:
        report.require(growth.share < _MAX_GROWTH, f"idle memory grew by {growth.share:.2%} ({growth.bytes:.0f} bytes)")
    for text in failures[:5]:
        report.require(False, f"the host's log: {text}")
    for finding in total.findings:
        where = f" ({_saved(finding, save)})" if save is not None else ""
        report.require(False, f"{finding.text}{where}: {finding.data[-600:]!r}")
    report.summary("total")


def _saved(finding: Finding, save: Path) -> Path:
    save.mkdir(parents=True, exist_ok=True)
    file = save / f"found_{hashlib.sha256(finding.data).hexdigest()[:12]}.bin"
    file.write_bytes(finding.data)
    return file


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
