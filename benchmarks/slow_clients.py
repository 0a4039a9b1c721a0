"""Must show 2: hundreds of connections that send large bodies byte by byte, while a few clients use resident models.

Those few may see no error, their 99th percentile may be three times the calm one at most, and usage has to stay below
critical. Bodies are sent to a host that accepts their size, where each claims memory, and to one that refuses it at
the head. Calm and slow runs alternate; wrk drives the few.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import wrk
from benchmarks.client import Client, RequestFailed
from benchmarks.places import ROOT
from benchmarks.process import HostProcess, Meter, running_host
from benchmarks.report import Report
from benchmarks.wires import V2
from benchmarks.workloads import Workload
from benchmarks.wrk import Drive

_MB: Final = 1 << 20
#: What slow clients may make of the 99th percentile of others.
PROMISED_TIMES: Final = 3.0
_WARM_UP_S: Final = 2
#: Senders that got less than this of their pace were none to speak of.
_PACE_SHARE: Final = 0.5

#: Hosts: the one as it is, which takes 12 MB at 256 MB, and one that says 413 to so much.
_HOSTS: Final[Mapping[str, Mapping[str, str]]] = {
    "accepts": {},
    "refuses": {"SERVER_MAX_REQUEST_BYTES": "4MB"},
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many send how slowly, beside how many others, for how long."""

    senders: int
    body_bytes: int
    bytes_per_second: float
    clients: int
    seconds: int
    rounds: int
    settings: dict[str, str]


def run(report: Report, workload: Workload, plan: Plan, *, limit_bytes: int) -> None:
    """One host for each answer to a body of that size."""
    wrk.find()
    for kind, settings in _HOSTS.items():
        with (
            running_host(workload.repository, limit_bytes=limit_bytes, settings={**settings, **plan.settings}) as host,
            tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch,
        ):
            request = V2().request(workload, "json")
            script = wrk.write_script(Path(scratch), request)
            _measure(report, host, host.url + request.path, script, workload, kind, plan)
    report.table(
        "phase",
        {
            "host": "host",
            "phase": "phase",
            "per_second": "requests/s",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "max_ms": "max",
            "errors": "errors",
            "usage_peak_bytes": "usage peak",
            "critical_bytes": "critical",
            "refusals": "slow ones",
        },
    )


def _measure(
    report: Report, host: HostProcess, url: str, script: Path, workload: Workload, kind: str, plan: Plan
) -> None:
    """Runs calm and slow phases in turns, and compares their medians."""

    def drive(seconds: float) -> Drive:
        return wrk.drive(url, script, connections=plan.clients, seconds=seconds)

    drive(_WARM_UP_S)
    runs: dict[str, list[Drive]] = {"calm": [], "slow": []}
    told: Counter[str] = Counter()
    with Client(host.url) as client, Meter(host) as meter:
        critical_bytes = client.memory()["critical_bytes"]
        for number in range(plan.rounds):
            report.progress(f"{kind}: round {number + 1} of {plan.rounds}")
            runs["calm"].append(drive(plan.seconds))
            with slow_senders(host.url, workload.name, plan, told):
                runs["slow"].append(drive(plan.seconds))
    for phase, drives in runs.items():
        report.add(
            "phase",
            host=kind,
            phase=phase,
            per_second=round(statistics.median(one.requests_per_second for one in drives)),
            p50_ms=_median_ms(drives, "p50_ms"),
            p99_ms=_median_ms(drives, "p99_ms"),
            max_ms=max(one.max_ms for one in drives),
            errors=sum(sum(one.errors.values()) for one in drives),
            usage_peak_bytes=meter.peak_bytes,
            critical_bytes=critical_bytes,
            refusals=dict(told) if phase == "slow" else {},
        )
    times = _median_ms(runs["slow"], "p99_ms") / max(_median_ms(runs["calm"], "p99_ms"), 0.001)
    errors = Counter(kind for one in runs["slow"] for kind in one.errors)
    report.require(not errors, f"{kind}: the others had errors: {dict(errors)}")
    report.require(times < PROMISED_TIMES, f"{kind}: p99 is {times:.1f} times the calm one")
    report.require(meter.peak_bytes < critical_bytes, f"{kind}: usage reached {meter.peak_bytes} bytes")
    report.require(told["requests"] >= plan.senders, f"{kind}: only {told['requests']} of {plan.senders} came to send")
    if kind == "accepts":  # the process that sends stands back at the CPU: it must have had enough of it all the same
        wanted = int(plan.senders * plan.bytes_per_second * plan.seconds * plan.rounds * _PACE_SHARE)
        report.require(
            told["bytes"] >= wanted, f"{kind}: {told['bytes']} bytes were sent, {wanted} would say something"
        )
    report.require(host.is_alive, f"{kind}: the host has ended: {host.last_words()}")
    figures = host.group_figures()
    report.require(not (figures and figures.oom_kills), f"{kind}: the kernel killed a process")


def _median_ms(drives: list[Drive], name: str) -> float:
    return round(float(statistics.median(getattr(one, name) for one in drives)), 2)


@contextlib.contextmanager
def slow_senders(url: str, model: str, plan: Plan, told: Counter[str]) -> Iterator[None]:
    """Has bodies sent byte by byte in the scope, by a process of its own; adds what became of them to `told`."""
    address = urlsplit(url)
    arguments: list[Any] = [address.hostname, address.port, model, plan.senders, plan.body_bytes, plan.bytes_per_second]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_senders", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            if process.stdout.readline() != "started\n":
                raise RequestFailed("the slow senders did not start")
            time.sleep(1)  # what is judged by its pace has to have one
            yield
        finally:
            process.stdin.close()
        told.update(json.loads(process.stdout.readline() or "{}"))
