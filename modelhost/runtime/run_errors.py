"""What went wrong in a run, from ONNX Runtime's words to errors of ours."""

from __future__ import annotations

import re

from modelhost.errors import ActivationsFull, DeadlineExceeded, InvalidRequest, RunFailed, RunTooLarge
from modelhost.prepare.failures import ARENA_FULL
from modelhost.runtime.base import CancelToken
from modelhost.units import format_bytes


def reason_of(error: Exception) -> str:
    """Returns ONNX Runtime's own words, without its prefix and its build machine's paths."""
    text = str(error).strip()
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+?:\d+ (?:[\w:*&<>~ ]+\([^)]*\)(?: const)? )?", "", text)
    return text or type(error).__name__


def _arena_full(available_bytes: int, needed_bytes: int, ceiling_bytes: int) -> ActivationsFull | RunTooLarge:
    needs = f"one step of this run needs {format_bytes(needed_bytes)} for activations"
    if needed_bytes > ceiling_bytes:
        return RunTooLarge(
            f"{needs}, memory.activation_ceiling is {format_bytes(ceiling_bytes)}",
            needed_bytes=needed_bytes,
            available_bytes=ceiling_bytes,
        )
    return ActivationsFull(
        f"{needs}, {format_bytes(available_bytes)} of {format_bytes(ceiling_bytes)} (memory.activation_ceiling) "
        "are free, others' runs hold the rest",
        needed_bytes=needed_bytes,
        available_bytes=available_bytes,
    )


def run_error(error: Exception, cancel: CancelToken | None, ceiling_bytes: int) -> Exception:
    """Returns what a run is to raise for an error that ONNX Runtime, or its binding, has raised."""
    if cancel is not None and cancel.is_cancelled:
        return DeadlineExceeded("the run", waited_s=0.0)
    text = reason_of(error)
    if full := ARENA_FULL.search(text):
        return _arena_full(int(full[1]), int(full[2]), ceiling_bytes)
    if type(error).__name__ == "InvalidArgument" or isinstance(error, (ValueError, TypeError)):
        return InvalidRequest(f"ONNX Runtime refuses the input: {text}")
    return RunFailed(f"the run failed: {text}")
