"""Pushed to warning and to critical, then let go: how long until usage is back, and what never returns.

The push is a request body that is sent and not finished, as a slow client does it: memory that the
host holds and cannot evict, of a size that we choose. It works wherever a host can be measured.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.client import Client, loaded_in
from benchmarks.models import ModelSet
from benchmarks.process import HostProcess, Meter, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report

_MB: Final = 1 << 20
#: Must show 3: this much above the baseline counts as being back.
BACK_BYTES: Final = 5 * _MB
_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.01

#: A body larger than the default may carry, so that one can reach critical from below warning.
_SETTINGS: Final = {**RECORDED, "SERVER_MAX_DECODING_BYTES": "56MB", "SERVER_MAX_REQUEST_BYTES": "56MB"}


LEVELS: Final = ("warning", "critical")


def run(report: Report, models: ModelSet, *, limit_bytes: int, levels: Sequence[str] = LEVELS) -> None:
    """One host for each level."""
    for level in levels:
        report.progress(f"pushing to {level}")
        with (
            running_host(models.directory, limit_bytes=limit_bytes, settings=_SETTINGS) as host,
            Client(host.url) as client,
        ):
            memory = _fill(models, client)
            with Recording(report, host, f"pushed to {level}, and let go") as recording:
                _measure(report, models, host, client, level, memory, recording)
    report.table(
        "level",
        {
            "level": "pushed to",
            "usage_before_bytes": "before",
            "usage_peak_bytes": "peak",
            "noticed_ms": "noticed after",
            "normal_ms": "normal after",
            "evicted": "evicted",
            "usage_after_bytes": "let go",
            "empty_ms": "all unloaded in",
            "back_ms": "at baseline after",
            "not_returned_bytes": "not returned",
            "oom_kills": "oom kills",
        },
    )


def _measure(
    report: Report,
    models: ModelSet,
    host: HostProcess,
    client: Client,
    level: str,
    memory: dict[str, Any],
    recording: Recording,
) -> None:
    before = host.usage_bytes()
    loaded = len(loaded_in(memory))
    # To the middle between the thresholds, or well above critical; what is evicted meanwhile makes no
    # difference to what was sent.
    goal = (memory["warning_bytes"] + memory["critical_bytes"]) // 2
    push_bytes = goal - before if level == "warning" else 55 * _MB
    recording.mark("pushed")
    with Meter(host) as meter:
        started = time.time()
        with _unfinished_body(host.url, models.cases[0].name, push_bytes):
            reached = _await_event(client, started, level)
            normal = _await_event(client, started, "normal", timeout_s=3.0)
            during = client.memory()
        let_go = time.time()
        recording.mark("let go")
        if normal is None:
            normal = _await_event(client, let_go, "normal")
    after = _settled_usage(host)
    recording.mark("all unloaded")
    emptied = time.perf_counter()
    client.cleanup()
    empty_ms = (time.perf_counter() - emptied) * 1e3
    back_s = _until_back(host, memory["baseline_bytes"])
    time.sleep(2 * 0.25)  # two samples: what the host trims when it is idle
    not_returned = host.usage_bytes() - memory["baseline_bytes"]
    figures = host.group_figures()
    report.add(
        "level",
        level=level,
        limit_bytes=memory["limit_bytes"],
        limit_source=memory["limit_source"],
        baseline_bytes=memory["baseline_bytes"],
        warning_bytes=memory["warning_bytes"],
        critical_bytes=memory["critical_bytes"],
        pushed_bytes=push_bytes,
        usage_before_bytes=before,
        usage_peak_bytes=meter.peak_bytes,
        noticed_ms=None if reached is None else round((reached - started) * 1e3, 1),
        normal_ms=None if normal is None else round((normal - started) * 1e3, 1),
        loaded=loaded,
        evicted=loaded - len(loaded_in(during)),
        usage_after_bytes=after,
        empty_ms=round(empty_ms, 2),
        back_ms=None if back_s is None else round(back_s * 1e3 + empty_ms, 2),
        not_returned_bytes=not_returned,
        oom_kills=figures.oom_kills if figures else None,
    )
    report.require(reached is not None, f"level {level} was not reached by {push_bytes} bytes on top of {before}")
    report.require(normal is not None, f"the level did not become normal again after {level}")
    report.require(back_s is not None, f"{level}: {not_returned} bytes above the baseline did not come back")
    report.require(not (figures and figures.oom_kills), f"{level}: the kernel killed a process")


def _fill(models: ModelSet, client: Client) -> dict[str, Any]:
    """Loads models until one more makes another leave, and asks each once; returns the figures then.

    Each has been opened before: at its first time a child process does that, and models leave for it.
    """
    for case in models.cases:
        client.infer(case.name, case.question)
    before = client.metrics()["evictions"]
    for case in models.cases:
        client.infer(case.name, case.question)
        if client.metrics()["evictions"] > before:
            break
    return client.memory()


@contextlib.contextmanager
def _unfinished_body(url: str, model: str, size_bytes: int) -> Iterator[None]:
    """Holds a request that has sent `size_bytes` of its body and owes one more byte; lets go by hanging up."""
    address = urlsplit(url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port or 80), timeout=_TIMEOUT_S) as connection:
        connection.sendall(
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Content-Length: {size_bytes + 1}\r\nInference-Header-Content-Length: 2\r\n\r\n".encode()
        )
        connection.sendall(b"{" + bytes(size_bytes - 1))
        yield


def _await_event(client: Client, since: float, level: str, *, timeout_s: float = _TIMEOUT_S) -> float | None:
    """Returns when the host noted that it reached `level`, None where it did not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for event in client.memory()["events"]:
            if event["kind"] == "level" and event["level"] == level and event["at"] >= since - 0.001:
                return float(event["at"])
        time.sleep(_POLL_S * 10)  # seldom: each of these looks at memory as the sampler does
    return None


def _settled_usage(host: HostProcess) -> int:
    """Returns the usage when it has not fallen for half a second."""
    lowest, since = host.usage_bytes(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(_POLL_S)
        if (usage := host.usage_bytes()) < lowest - _MB // 4:
            lowest, since = usage, time.monotonic()
    return lowest


def _until_back(host: HostProcess, baseline_bytes: int) -> float | None:
    """Returns the seconds until usage is within `BACK_BYTES` of the baseline, None where it takes too long."""
    started = time.monotonic()
    while host.usage_bytes() > baseline_bytes + BACK_BYTES:
        if time.monotonic() - started > _TIMEOUT_S:
            return None
        time.sleep(_POLL_S / 10)
    return time.monotonic() - started
