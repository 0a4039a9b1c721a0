"""Must show 2 and 3: prepared sessions beside stock ones: load time, committed memory, run time.

Each session has a process of its own. Loads of all kinds take turns, so that what else the machine does
meets them alike; so do runs: a stretch of the stock session's, a stretch of the prepared one's, and so on.
Stock is `InferenceSession(file)` on one thread, as glibc comes, and with the threshold that the host sets.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.artifacts import manifests, prepare
from benchmarks.models import ARTIFACTS
from benchmarks.places import ROOT
from benchmarks.report import Report
from modelhost.prepare import Manifest

_MB: Final = 1 << 20
BATCHES: Final = (1, 8)
#: What must hold, by model: see issue 3.
RUN_RATIO: Final = 1.05
ENCODER_BYTES: Final = 8 * _MB
LIGHT: Final = ("light_resnet50", "light_densenet121")
LIGHT_SPEEDUP: Final = 5.0
LIGHT_SHARE: Final = 0.1
#: The session kinds, with what each adds to the environment.
_MALLOC: Final = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10)}
_STRETCH_S: Final = 0.25


def run(report: Report, models: Path, *, loads: int, turns: int, sequence: int, encoder: str | None) -> None:
    """Prepares what is not prepared, then measures each model; `encoder` names the one of Must show 2."""
    prepare(models, progress=report.progress)
    found = manifests(models)
    for place, manifest in found.items():
        name = Path(place).parts[0]
        _model(report, name, models, models / place, manifest, loads=loads, turns=turns, sequence=sequence)
        _check(report, name, is_encoder=name == encoder)
    report.require(bool(found), "nothing is prepared")
    report.table(
        "load",
        {
            "model": "model",
            "variant": "weights",
            "stock_load_ms": "load: stock",
            "prepared_load_ms": "prepared",
            "load_speedup": "times faster",
            "stock_bytes": "committed: stock",
            "stock_malloc_bytes": "with malloc set",
            "prepared_bytes": "prepared",
            "committed_share": "share",
        },
    )
    report.table(
        "run",
        {
            "model": "model",
            "batch": "batch",
            "stock_ms": "run: stock, least",
            "prepared_ms": "prepared",
            "ratio": "ratio",
            "stock_median_ms": "median",
            "prepared_median_ms": "prepared",
            "median_ratio": "ratio",
            "runs": "runs",
        },
    )


def _model(
    report: Report, name: str, models: Path, file: Path, manifest: Manifest, *, loads: int, turns: int, sequence: int
) -> None:
    prepared_file = file if manifest.variant == "heap" else models / ARTIFACTS / manifest.key / "model.onnx"
    kinds: dict[str, tuple[str, Path, dict[str, str]]] = {
        "stock": ("stock", file, {}),
        "stock_malloc": ("stock", file, _MALLOC),
        "prepared": (manifest.variant, prepared_file, {}),
    }
    said: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for number in range(loads + 1):
        report.progress(f"{name}: load {number} of {loads}")
        for kind, (variant, path, environ) in kinds.items():
            with _session(variant, path, environ) as (_, opened):
                if number:  # the first one brings the files into the page cache
                    said[kind].append(opened)
    least = {kind: min(opened["load_ms"] for opened in all_) for kind, all_ in said.items()}
    held = {kind: statistics.median(opened["committed_bytes"] for opened in all_) for kind, all_ in said.items()}
    report.add(
        "load",
        model=name,
        variant=manifest.variant,
        reason=manifest.reason,
        tolerance=manifest.tolerance,
        **{f"{kind}_load_ms": round(ms, 2) for kind, ms in least.items()},
        **{
            f"{kind}_median_load_ms": round(statistics.median(opened["load_ms"] for opened in all_), 2)
            for kind, all_ in said.items()
        },
        **{f"{kind}_bytes": int(bytes_) for kind, bytes_ in held.items()},
        load_speedup=round(least["stock"] / least["prepared"], 2),
        committed_share=round(held["prepared"] / held["stock"], 3) if held["stock"] else None,
        predicted_bytes=manifest.resident_bytes,
        figures=[
            {
                "variant": figures.variant,
                "load_ms": round(figures.load_ms, 2),
                "resident_bytes": figures.resident_bytes,
                "runs": [[run.rows, round(run.ms, 2)] for run in figures.runs],
            }
            for figures in manifest.figures
        ],
    )
    with (
        _session(*kinds["stock"]) as (stock, opened),
        _session(*kinds["prepared"]) as (prepared, _),
    ):
        for batch in BATCHES:
            feed = _feed(opened["inputs"], batch, sequence)
            if feed is not None:
                report.progress(f"{name}: runs at batch {batch}")
                _runs(report, name, batch, feed, stock, prepared, turns=turns)


def _runs(
    report: Report,
    name: str,
    batch: int,
    feed: dict[str, Any],
    stock: subprocess.Popen[str],
    prepared: subprocess.Popen[str],
    *,
    turns: int,
) -> None:
    times: dict[str, list[float]] = {"stock": [], "prepared": []}
    held = {}
    for number in range(turns + 1):
        for kind, child in (("stock", stock), ("prepared", prepared)):
            answer = _ask(child, {"feed": feed, "seconds": _STRETCH_S})
            held[kind] = answer["committed_bytes"]
            if number:  # the first turn warms caches and arenas
                times[kind] += answer["times_ms"]
    stock_ms, prepared_ms = min(times["stock"]), min(times["prepared"])
    medians = {kind: statistics.median(all_) for kind, all_ in times.items()}
    report.add(
        "run",
        model=name,
        batch=batch,
        stock_ms=round(stock_ms, 3),
        prepared_ms=round(prepared_ms, 3),
        ratio=round(prepared_ms / stock_ms, 3),
        stock_median_ms=round(medians["stock"], 3),
        prepared_median_ms=round(medians["prepared"], 3),
        median_ratio=round(medians["prepared"] / medians["stock"], 3),
        runs=min(len(all_) for all_ in times.values()),
        stock_after_runs_bytes=held["stock"],
        prepared_after_runs_bytes=held["prepared"],
    )


def _check(report: Report, name: str, *, is_encoder: bool) -> None:
    load = next(row for row in report.rows if row["kind"] == "load" and row["model"] == name)
    if is_encoder:
        held = load["prepared_bytes"]
        report.require(held <= ENCODER_BYTES, f"{name} commits {held / _MB:.1f} MB ({load['variant']})")
        for row in report.rows:
            if row["kind"] == "run" and row["model"] == name:
                # The lesser of both ratios: noise makes either larger.
                ratio = min(row["ratio"], row["median_ratio"])
                report.require(ratio <= RUN_RATIO, f"{name} takes {ratio:.2f} times as long at batch {row['batch']}")
    if name in LIGHT:
        speedup, share = load["load_speedup"], load["committed_share"]
        report.require(speedup >= LIGHT_SPEEDUP, f"{name} loads only {speedup} times faster")
        report.require(share <= LIGHT_SHARE, f"{name} commits {share} of what a stock session does")


# --- children ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _session(kind: str, file: Path, environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Runs a session for the scope of the context; yields its process and what its load took."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.session", kind, str(file)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1", **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        try:
            yield child, _answer(child)
        finally:
            child.kill()


def _ask(child: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
    assert child.stdin is not None
    child.stdin.write(json.dumps(order) + "\n")
    child.stdin.flush()
    return _answer(child)


def _answer(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"{child.args!r} ended with status {child.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _feed(inputs: dict[str, Any], batch: int, sequence: int) -> dict[str, Any] | None:
    """Returns shapes and datatypes for a batch; None where the model takes no batch but its own."""
    feed = {}
    for name, (shape, datatype) in inputs.items():
        if batch != 1 and (not shape or isinstance(shape[0], int)):
            return None
        sizes = [dim if isinstance(dim, int) else batch if axis == 0 else sequence for axis, dim in enumerate(shape)]
        feed[name] = [sizes, datatype]
    return feed
