"""Predicted memory of a load against what it took: the figures behind modelhost/runtime/estimate.py.

One process loads one model in one way and runs nothing. Its parent reads its anonymous memory all
the while, for the peak; a ratio above 1 is memory that no reservation stood for.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.process import ROOT
from benchmarks.report import Report
from benchmarks.smaps import read_process
from modelhost.config import ModelOptions
from modelhost.runtime.base import CancelToken, LoadPlan
from modelhost.runtime.estimate import inspect_file

_MB: Final = 1 << 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
#: The kernel gathers a process's counters in batches of pages for each thread: readings while it
#: loads are off by up to this.
_NOISE_BYTES: Final = 1 * _MB


def light_models() -> list[Path]:
    """The networks that the onnx package ships without weights; the graph makes them up."""
    import onnx

    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def run(report: Report, files: list[Path]) -> None:
    """Loads each model in each way that the estimates offer."""
    for file in files:
        name = file.stem if file.stem != "model" else f"{file.parent.parent.name}"
        for plan in inspect_file(file, ModelOptions()).plans:
            report.progress(f"{name}, {plan.optimization}")
            measured = _measure(file, plan)
            report.add(
                "plan",
                model=name,
                optimization=plan.optimization,
                file_bytes=file.stat().st_size,
                predicted_resident_bytes=plan.resident_bytes,
                predicted_peak_bytes=plan.peak_bytes,
                **measured,
                resident_ratio=round(measured["resident_bytes"] / plan.resident_bytes, 3),
                peak_ratio=round(measured["peak_bytes"] / plan.peak_bytes, 3),
            )
            over = max(measured["resident_bytes"] - plan.resident_bytes, measured["peak_bytes"] - plan.peak_bytes)
            report.require(
                over <= _NOISE_BYTES, f"{name} ({plan.optimization}) took {over / _MB:.1f} MB beyond its estimate"
            )
    report.table(
        "plan",
        {
            "model": "model",
            "optimization": "optimised",
            "predicted_resident_bytes": "resident ≤",
            "resident_bytes": "measured",
            "resident_ratio": "ratio",
            "predicted_peak_bytes": "peak ≤",
            "peak_bytes": "measured",
            "peak_ratio": "ratio",
            "took_ms": "load",
            "left_bytes": "left after close",
        },
    )


def _measure(file: Path, plan: LoadPlan) -> dict[str, Any]:
    """Loads in a fresh process. It says when it is about to, waits for a nod, and reports at the end."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.estimates", str(file), plan.optimization],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with child, contextlib.ExitStack() as stack:
        stack.callback(child.kill)
        before_bytes = int(child.stdout.readline())
        peak_bytes = before_bytes
        os.set_blocking(child.stdout.fileno(), False)
        child.stdin.write("go\n")
        child.stdin.flush()
        while not (line := child.stdout.readline()):
            if child.poll() is not None:
                raise RuntimeError(f"loading {file} ended with status {child.returncode}")
            peak_bytes = max(peak_bytes, _anonymous_bytes(child.pid))
        measured: dict[str, Any] = json.loads(line)
    measured["peak_bytes"] = max(peak_bytes - before_bytes, measured["resident_bytes"])
    return measured


def _anonymous_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * _PAGE_BYTES
    return 0


def _child(file: Path, optimization: str) -> None:
    """Loads with the product's own runtime. A small model first: what only a first load takes is no model's."""
    from modelhost.runtime.ort import OrtRuntime

    runtime = OrtRuntime(activation_ceiling_bytes=64 * _MB)
    inspection = inspect_file(file, ModelOptions())
    plan = next(plan for plan in inspection.plans if plan.optimization == optimization)
    before_bytes = read_process(os.getpid()).committed_bytes
    print(before_bytes, flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    model = runtime.load(file, plan, inspection, CancelToken())
    took_ms = (time.perf_counter() - started) * 1e3
    resident_bytes = read_process(os.getpid()).committed_bytes - before_bytes
    model.close()
    del model
    left_bytes = read_process(os.getpid()).committed_bytes - before_bytes
    print(json.dumps({"resident_bytes": resident_bytes, "left_bytes": left_bytes, "took_ms": round(took_ms, 1)}))


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])
