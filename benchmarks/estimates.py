"""Must show 5: what the manifest predicts against what a real host measures, for many kinds of models.

Each measurement is a process of its own with a host in it, which loads one prepared model with nothing
beside it and runs it once at sizes that preparing did not measure. A ratio above 1 is memory that no
reservation stood for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.artifacts import manifests, prepare
from benchmarks.places import ROOT
from benchmarks.report import Report
from benchmarks.smaps import read_process, read_status
from modelhost.prepare import Manifest
from modelhost.prepare.footprint import RunFootprint
from modelhost.repository import read_summary
from modelhost.tensors import DTYPES, TensorSpec
from modelhost.testing.snapshot import reset_peak

_MB: Final = 1 << 20
#: Committed memory may be off by this share or this much, whichever is more.
COMMITTED_SHARE, COMMITTED_BYTES = 0.1, 1 * _MB
#: A run may take more than predicted by so much of what it takes …
RUN_SHARE: Final = 0.2
#: … and by this: the kernel gathers a process's counters in batches of pages for each core.
_NOISE_BYTES: Final = _MB // 2
#: Sizes that are asked for; those that preparing measured are left out.
_ROWS: Final = (3, 16, 64)
_STEPS: Final = (24, 100, 300)
_ROWS_WITH_STEPS: Final = 5
#: Runs that are predicted to take more are left out.
_LARGEST_BYTES: Final = 3 << 30
#: Enough for all of them: the ceiling for runs is a fifth of it. A smaller machine leaves some of them out.
_LIMIT_BYTES: Final = 20 << 30


def run(report: Report, models: Path) -> None:
    """Prepares what is not prepared, then measures each model: once for each size."""
    prepare(models, progress=report.progress)
    found = manifests(models)
    report.require(bool(found), "nothing is prepared")
    for number, (place, manifest) in enumerate(found.items(), 1):
        name = Path(place).parts[0]
        report.progress(f"{name}, {number} of {len(found)}")
        _model(report, models, name, read_summary(models / place).inputs, manifest)
    _finish(report)


def _model(report: Report, models: Path, name: str, specs: Sequence[TensorSpec], manifest: Manifest) -> None:
    held = []
    for sizes in _sizes(manifest.run) if manifest.run is not None else [{}]:
        measured = _measure(models, name, _feed(specs, manifest.run, sizes))
        held.append(measured)
        if manifest.run is None or "run_bytes" not in measured:
            continue
        shapes = {key: shape for key, (shape, _) in _feed(specs, manifest.run, sizes).items()}
        predicted = manifest.run.predict(shapes)
        report.add(
            "run",
            model=name,
            sizes=" ".join(f"{dim}={size}" for dim, size in sizes.items()) or "fixed",
            is_fitted=any(point.sizes == sizes for point in manifest.run.measured),
            predicted_bytes=predicted,
            measured_bytes=measured["run_bytes"],
            ratio=round(measured["run_bytes"] / predicted, 3) if predicted else None,
        )
        most = (predicted or 0) / (1 - RUN_SHARE) + _NOISE_BYTES
        report.require(
            measured["run_bytes"] <= most,
            f"{name}: a run at {sizes or 'its size'} took {measured['run_bytes']} bytes, {predicted} were predicted",
        )
    # By the host's own account, which is what it books; and by the kernel's.
    booked = int(statistics.median(figures["booked_bytes"] for figures in held))
    over = booked - manifest.resident_bytes
    report.add(
        "load",
        model=name,
        variant=manifest.variant,
        predicted_bytes=manifest.resident_bytes,
        measured_bytes=booked,
        committed_bytes=int(statistics.median(figures["committed_bytes"] for figures in held)),
        over_bytes=over,
        ratio=round(booked / manifest.resident_bytes, 3) if manifest.resident_bytes else None,
        runs=len(held),
        failure=next((figures["failure"] for figures in held if "failure" in figures), ""),
    )
    report.require(
        abs(over) <= max(COMMITTED_SHARE * manifest.resident_bytes, COMMITTED_BYTES),
        f"{name} holds {booked} bytes, {manifest.resident_bytes} were predicted",
    )


def _sizes(run: RunFootprint) -> Iterator[dict[str, int]]:
    """Yields sizes of the free dimensions that preparing did not measure; its own where there is no choice."""
    base = dict(run.measured[0].sizes) if run.measured else dict.fromkeys(run.dims, 1)
    wanted = [{**base, run.rows: rows} for rows in _ROWS] if run.rows else []
    others = [name for name in run.dims if name != run.rows]
    for steps in _STEPS if others else ():
        longer = {**base, **dict.fromkeys(others, steps)}
        wanted += [longer, *([{**longer, run.rows: _ROWS_WITH_STEPS}] if run.rows else [])]
    known = [dict(point.sizes) for point in run.measured]
    yield from [sizes for sizes in wanted if sizes not in known and _is_small(run, sizes)] or [base]


def _is_small(run: RunFootprint, sizes: Mapping[str, int]) -> bool:
    shapes: dict[str, list[int]] = {}
    for name, places in run.dims.items():
        for at, axis in places:
            shape = shapes.setdefault(at, [])
            shape += [0] * (axis + 1 - len(shape))
            shape[axis] = sizes[name]
    return (run.predict(shapes) or 0) <= _LARGEST_BYTES


def _feed(specs: Sequence[TensorSpec], run: RunFootprint | None, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns shape and datatype of each input."""
    places = {place: sizes[name] for name, all_ in run.dims.items() for place in all_} if run is not None else {}
    feed = {}
    for spec in specs:
        axes = max((axis + 1 for at, axis in places if at == spec.name), default=0)
        shape = spec.shape if spec.shape is not None else (-1,) * axes
        feed[spec.name] = (
            [dim if dim >= 0 else places.get((spec.name, axis), 1) for axis, dim in enumerate(shape)],
            spec.datatype,
        )
    return feed


def _finish(report: Report) -> None:
    runs = [row for row in report.rows if row["kind"] == "run"]
    new = [row for row in runs if not row["is_fitted"] and row["ratio"] is not None]
    large = [row for row in new if row["measured_bytes"] >= 2 * _NOISE_BYTES]
    loads = [row for row in report.rows if row["kind"] == "load"]
    worst = max(large, key=lambda row: row["ratio"], default=None)
    report.add(
        "total",
        models=len(loads),
        worst_load_bytes=max((row["over_bytes"] for row in loads), default=None),
        worst_load_over_bytes=min((row["over_bytes"] for row in loads), default=None),
        runs=len(new),
        worst_run=f"{worst['model']} {worst['sizes']}" if worst else None,
        worst_run_ratio=worst["ratio"] if worst else None,
        median_run_ratio=statistics.median(row["ratio"] for row in large) if large else None,
        least_run_ratio=min((row["ratio"] for row in large), default=None),
    )
    report.table(
        "load",
        {
            "model": "model",
            "variant": "weights",
            "predicted_bytes": "held: predicted",
            "measured_bytes": "measured",
            "over_bytes": "more than predicted",
            "ratio": "ratio",
            "failure": "",
        },
    )
    report.table(
        "run",
        {
            "model": "model",
            "sizes": "one run at",
            "predicted_bytes": "predicted",
            "measured_bytes": "measured",
            "ratio": "ratio",
            "is_fitted": "measured before",
        },
    )
    report.summary("total")


# --- one measurement -----------------------------------------------------------------------------------


def _measure(models: Path, name: str, feed: dict[str, Any]) -> dict[str, Any]:
    """Loads and runs in a fresh process."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELHOST_")}
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.estimates", str(models), name, json.dumps(feed)],
            env={**environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
        if child.returncode:
            errors.seek(0)
            raise RuntimeError(f"measuring {name} ended with status {child.returncode}: {errors.read()[-800:]}")
    measured: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return measured


async def _child(models: Path, name: str, feed: Mapping[str, Any]) -> dict[str, Any]:
    from modelhost.config import MemorySettings, ModelsSettings, PrepareSettings, Settings
    from modelhost.errors import ModelHostError
    from modelhost.host import Host

    settings = Settings(
        models=ModelsSettings(directory=models),
        memory=MemorySettings(limit=_LIMIT_BYTES),
        prepare=PrepareSettings(on_load=False),
    )
    async with Host(settings) as host:
        before = read_process("self").committed_bytes
        loaded = await host.pool.load(name)
        measured: dict[str, Any] = {
            "booked_bytes": loaded.committed_bytes,
            "committed_bytes": read_process("self").committed_bytes - before,
        }
        arrays = {key: _value(shape, datatype) for key, (shape, datatype) in feed.items()}
        with contextlib.suppress(OSError):  # without a peak to reset there is nothing to measure
            try:
                async with host.pool.lease(name) as lease:
                    names = tuple(lease.outputs)
                    # Touches the weights: pages of their file are not the run's.
                    await lease.run_checked(arrays, names, _drop)
                    await host.memory.trim()
                    reset_peak()
                    before = read_status("VmRSS")
                    await lease.run_checked(arrays, names, _drop)
                    measured["run_bytes"] = max(0, read_status("VmHWM") - before)
            except ModelHostError as error:
                measured["failure"] = str(error)[:200]
    return measured


def _drop(outputs: object) -> None:
    """Lets outputs go where they were made: copies and answers have an account of their own."""


def _value(shape: Sequence[int], datatype: str) -> Any:
    """Makes up a value; whole numbers are 1, which is a token, an index and a mask."""
    dtype = DTYPES[datatype]
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype.kind == "f":
        return np.asarray(np.random.default_rng(0).standard_normal(shape)).astype(dtype)
    return np.ones(shape, dtype)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_child(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])))))
