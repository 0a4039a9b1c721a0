"""The child's door to ONNX Runtime: sessions opened as the host opens them, saved, and measured.

Imports nothing of the host's runtime: what it would bring along (settings, the event loop) costs the
child as much time as opening a small model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from modelhost.prepare.face import with_inputs
from modelhost.prepare.manifest import Variant
from modelhost.runtime.building_steps import StepFailed, committed_bytes, reset_peak, status_bytes, trim_heap
from modelhost.runtime.engine import PROVIDERS, Arena, NotRunnable, open_session, runnable, session_options, set_up

#: Smaller weights stay in the graph: a mapping for each would cost more than it saves (DenseNet-121 has
#: 120 below: 0.1 MB of 3.4 MB held, for 100 mappings more).
_MAPPED_FROM_BYTES: Final = 1024
#: How ONNX Runtime marks a packed copy among the places of a weight.
_PACKED_MARK: Final = b"prepacked_"


@dataclass(frozen=True, slots=True)
class Opened:
    """What opening took: milliseconds, bytes held, bytes at the peak."""

    load_ms: float
    resident_bytes: int
    peak_bytes: int


class Engine:
    """ONNX Runtime set up as in the host. Once in a process."""

    def __init__(self, ceiling_bytes: int, custom_op_libraries: Sequence[Path] = ()) -> None:
        set_up(ceiling_bytes, custom_op_libraries=custom_op_libraries)
        self._arena = Arena()

    def trim(self) -> None:
        """Empties the arena of what is not in use, and the heap."""
        self._arena.trim()
        trim_heap()


def open_measured(
    file: Path, variant: Variant, optimization: str = "all", external: Sequence[str] = ()
) -> tuple[Any, Opened]:
    """Opens a model and measures that; see open_session. Raises StepFailed where it could not be run anyway."""
    options = session_options(optimization, variant)
    trim_heap()
    before = committed_bytes()
    reset_peak()
    resident, pages = status_bytes("VmRSS"), status_bytes("RssFile")
    started = time.perf_counter()
    session = open_session(file, options, external)
    load_ms = (time.perf_counter() - started) * 1e3
    # Of the heap alone: pages of files come and go as they like.
    peak_bytes = status_bytes("VmHWM") - resident - max(0, status_bytes("RssFile") - pages)
    resident_bytes = max(0, committed_bytes() - before)
    try:
        session = runnable(session)
    except NotRunnable as error:
        raise StepFailed(str(error)) from None
    return session, Opened(load_ms, resident_bytes, max(peak_bytes, resident_bytes))


def open_only(file: Path, variant: Variant, external: Sequence[str] = ()) -> Any:
    """Opens a model."""
    return open_measured(file, variant, external=external)[0]


def save(file: Path, folder: Path, inputs: Collection[str]) -> None:
    """Saves the optimised graph of a model in a new folder, with its weights in `model.bin`."""
    _save(file, folder, "all", is_packed=False)
    saved = folder / "model.onnx"
    saved.write_bytes(with_inputs(saved.read_bytes(), inputs))


def save_packed(file: Path, folder: Path) -> bool:
    """Saves a saved model again, with packed copies of its weights; returns whether there are any.

    The saved one's weights are pages of its file: only the copies are in memory meanwhile.
    """
    _save(file, folder, "none", is_packed=True)
    return _PACKED_MARK in (folder / "model.onnx").read_bytes()


def _save(file: Path, folder: Path, optimization: str, *, is_packed: bool) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    folder.mkdir()
    options = session_options(optimization)
    options.optimized_model_filepath = str(folder / "model.onnx")
    for key, value in (
        ("optimized_model_external_initializers_file_name", "model.bin"),
        ("optimized_model_external_initializers_min_size_in_bytes", str(_MAPPED_FROM_BYTES)),
        ("save_external_prepacked_constant_initializers", str(int(is_packed))),
        ("disable_prepacking", str(int(not is_packed))),  # the copies would be in memory beside what is written
    ):
        options.add_session_config_entry(f"session.{key}", value)
    ort.InferenceSession(str(file), options, providers=PROVIDERS)
