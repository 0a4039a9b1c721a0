"""Must show 1: many prepared models in a small container, all loaded at once, all answered right.

First a plain loop of onnxruntime sessions in a memory cgroup of the same size: how many it holds before
the kernel ends it. Then the host: each model asked once, which loads it; what that committed, read from
the kernel; then requests by popularity, as a few models get most of them (Zipf's law).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.artifacts import manifests, prepare
from benchmarks.client import Client, RequestFailed
from benchmarks.models import ModelSet
from benchmarks.places import ROOT
from benchmarks.pressure import Note, Outcome, ask_at_random, ask_in_order, phase
from benchmarks.process import HostProcess, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report
from benchmarks.smaps import read_mappings, read_process, read_traffic
from modelhost.testing import cgroup
from modelhost.testing.cgroup import MemoryCgroup

_MB: Final = 1 << 20
#: A hundred models together (or fewer) may commit so much, on top of what the idle host does.
ABOVE_IDLE_BYTES: Final = 25 * _MB
#: The plain loop, as it comes, and with the host's allocator setting (modelhost/memory/allocator.py).
_PLAIN: Final = {"onnxruntime": {}, "onnxruntime, malloc": {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)}}
_SETTLE_S: Final = 1.0
_PROGRESS_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of the second phase."""

    requests: int
    clients: int
    exponent: float
    """Of Zipf's law: the model of rank r is asked in proportion to r to the power of minus this."""
    seed: int


def run(report: Report, models: ModelSet, *, limit_bytes: int, load: Load) -> None:
    """Prepares what is not prepared, then measures the plain loop and the host."""
    prepare(models.directory, progress=report.progress)
    variants = Counter(manifest.variant for manifest in manifests(models.directory).values())
    report.require(
        variants.total() == len(models.cases), f"{variants.total()} of {len(models.cases)} models are prepared"
    )
    hold_plainly(report, models, limit_bytes)
    _host(report, models, limit_bytes, load, dict(variants))
    report.table(
        "held",
        {
            "server": "in this container",
            "held": "models held",
            "models": "of",
            "right": "answered right",
            "committed_bytes": "committed",
            "oom_kills": "oom kills",
        },
    )
    report.table(
        "phase",
        {
            "phase": "phase",
            "requests": "requests",
            "failed": "failed",
            "wrong": "wrong",
            "per_second": "a second",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "usage_peak_bytes": "usage peak",
            "loads": "loads",
            "evictions": "evictions",
            "disk_bytes": "read from disk",
        },
    )
    report.table(
        "state",
        {
            "state": "host",
            "loaded": "loaded",
            "committed_bytes": "committed",
            "above_idle_bytes": "above idle",
            "each_bytes": "each",
            "usage_above_idle_bytes": "cgroup less files",
            "kernel_bytes": "kernel's",
            "page_table_bytes": "page tables",
            "mappings": "mappings",
        },
    )
    report.summary("total")


# --- the plain loop ------------------------------------------------------------------------------------


def hold_plainly(report: Report, models: ModelSet, limit_bytes: int) -> None:
    """Runs the plain loops, where the kernel can end them; a row of kind `held` for each."""
    if (reason := cgroup.available()) is not None:
        report.progress(f"no plain loop, since nothing would end it: {reason}")
        return
    for name, environ in _PLAIN.items():
        models.forget_pages()
        report.progress(f"{name}: one session after another")
        with MemoryCgroup(limit_bytes) as group:
            child = subprocess.Popen(
                group.command([sys.executable, "-m", "benchmarks.plain"]),
                env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1", **environ},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            said, errors = child.communicate("".join(f"{folder}\n" for folder in models.folders))
            figures = group.read()
        lines = [tuple(map(int, line.split())) for line in said.splitlines()]
        if child.returncode != 0 and not figures.oom_kills:
            raise RequestFailed(f"the plain loop failed: {errors[-500:]}")
        report.add(
            "held",
            server=name,
            limit_bytes=limit_bytes,
            models=len(models.cases),
            held=len(lines),
            right=sum(is_right for _, is_right in lines),
            committed_bytes=max((committed for committed, _ in lines), default=0),
            is_killed=child.returncode != 0,
            oom_kills=figures.oom_kills,
        )


# --- the host ------------------------------------------------------------------------------------------


def _host(report: Report, models: ModelSet, limit_bytes: int, load: Load, variants: dict[Any, int]) -> None:
    models.forget_pages()
    popular = list(models.cases)
    random.Random(load.seed).shuffle(popular)
    weights = [rank**-load.exponent for rank in range(1, len(popular) + 1)]
    with (
        running_host(models.directory, limit_bytes=limit_bytes, settings=RECORDED) as host,
        Recording(report, host, f"{len(models.cases)} prepared models") as recording,
        Client(host.url) as client,
    ):
        client.memory()
        idle = _state(report, "idle", host, client, None)
        report.progress(f"{len(models.cases)} models, each asked once")
        _phase(report, host, "each once", lambda note: ask_in_order(host.url, models.cases, note), recording)
        if host.is_alive:
            time.sleep(_SETTLE_S)
            state = _state(report, "each asked once", host, client, idle)
            report.require(
                state["loaded"] == len(models.cases), f"{state['loaded']} of {len(models.cases)} models stayed loaded"
            )
            report.require(
                state["above_idle_bytes"] <= ABOVE_IDLE_BYTES * max(1.0, len(models.cases) / 100),
                f"{state['loaded']} models commit {state['above_idle_bytes'] / _MB:.1f} MB above the idle host",
            )
            report.progress(f"{load.requests} requests by popularity, {load.clients} clients")
            _phase(
                report,
                host,
                "by popularity",
                lambda note: ask_at_random(
                    host.url,
                    popular,
                    note=note,
                    requests=load.requests,
                    clients=load.clients,
                    seed=load.seed,
                    weights=weights,
                ),
                recording,
            )
        if host.is_alive:
            time.sleep(_SETTLE_S)
            _state(report, "asked by popularity", host, client, idle)
        _finish(report, host, models, variants)


def _phase(report: Report, host: HostProcess, name: str, work: Callable[[Note], Outcome], recording: Recording) -> None:
    """A phase, with what was read from the disk for it."""
    before = read_traffic(host.pid)

    def traffic() -> dict[str, int]:
        after = read_traffic(host.pid) if host.is_alive else before
        return {"disk_bytes": after[0] - before[0], "major_faults": after[1] - before[1]}

    phase(report, host, name, work, traffic, recording=recording)


def _state(report: Report, name: str, host: HostProcess, client: Client, idle: dict[str, Any] | None) -> dict[str, Any]:
    memory, process, kept = client.memory(), read_process(host.pid), read_mappings(host.pid)
    usage_bytes, figures = host.usage_bytes(), host.group_figures()
    loaded = [model for model in memory["models"] if model["state"] == "ready"]
    above_bytes = process.committed_bytes - (idle or {}).get("committed_bytes", process.committed_bytes)
    report.add(
        "state",
        state=name,
        loaded=len(loaded),
        committed_bytes=process.committed_bytes,
        above_idle_bytes=above_bytes,
        each_bytes=above_bytes // len(loaded) if loaded else None,
        booked_bytes=sum(model["committed_bytes"] for model in loaded),
        rss_bytes=process.rss_bytes,
        usage_bytes=usage_bytes,
        usage_above_idle_bytes=usage_bytes - (idle or {}).get("usage_bytes", usage_bytes),
        kernel_bytes=figures.kernel_bytes if figures else None,
        page_table_bytes=kept.page_table_bytes,
        mappings=kept.mappings,
    )
    return report.rows[-1]


def _finish(report: Report, host: HostProcess, models: ModelSet, variants: dict[Any, int]) -> None:
    report.require(host.is_alive, f"the host has ended: {host.last_words()}")
    figures = host.group_figures()
    phases = [row for row in report.rows if row["kind"] == "phase"]
    states = [row for row in report.rows if row["kind"] == "state"]
    kills = figures.oom_kills if figures else None
    report.add(
        "held",
        server="modelhost, prepared",
        models=len(models.cases),
        held=states[-1]["loaded"],
        right=phases[0]["requests"] - phases[0]["failed"] - phases[0]["wrong"],
        committed_bytes=max(row["committed_bytes"] for row in states),
        is_killed=not host.is_alive,
        oom_kills=kills,
    )
    report.add(
        "total",
        weights_bytes=sum(file.stat().st_size for file in models.files),
        variants=", ".join(f"{count} {variant}" for variant, count in sorted(variants.items())),
        evictions=sum(row["evictions"] for row in phases),
        usage_peak_bytes=max(row["usage_peak_bytes"] for row in phases),
        peak_with_page_cache_bytes=figures.peak_bytes if figures else None,
        limit_hits=figures.limit_hits if figures else None,
        oom_kills=kills,
    )
    report.require(not kills, f"the kernel killed {kills} processes")
