"""Starts the child that builds an artifact, and takes in what it made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelhost.prepare.manifest import Manifest, RunFigures, VariantFigures
from modelhost.prepare.store import Artifact, ArtifactStore
from modelhost.units import format_bytes

#: The module that a child runs; it imports ONNX Runtime, which this one does not.
_BUILDER: Final = "modelhost.runtime.build"

_NO_MEMORY: Final = (
    "bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "Available memory of",  # the arena, which has the same ceiling
)

#: What a child inherits: all that an interpreter may need to find itself and its libraries.
_INHERITED: Final = ("PATH", "HOME", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH")


class PrepareFailed(Exception):
    """The child ended without an artifact; the text says why, with the ceiling that it met."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a child may take."""

    memory_bytes: int
    seconds: float


def prepare(store: ArtifactStore, file: Path, external: tuple[str, ...], bounds: Bounds) -> Artifact:
    """Builds the artifact of `file` in a child process and returns it; blocks. Raises PrepareFailed."""
    try:
        key = store.key_of(file, external)
        with store.aside() as folder:
            report = _run_child(file, folder, bounds)
            if store.key_of(file, external) != key:
                raise PrepareFailed("the model's files changed while it was prepared")
            return store.adopt(folder, _manifest(key, report))
    except OSError as error:
        raise PrepareFailed(f"{error.filename or store.cache}: {error.strerror}") from None


def is_no_memory(text: str) -> bool:
    """Says whether an error's words are those of memory that ran out."""
    return any(word in text for word in _NO_MEMORY)


def _run_child(file: Path, folder: Path, bounds: Bounds) -> dict[str, object]:
    job, report, log = folder / "job.json", folder / "report.json", folder / "log.txt"
    job.write_text(
        json.dumps(
            {
                "file": str(file.resolve()),
                "folder": str(folder.resolve()),
                "report": str(report.resolve()),
                "ceiling_bytes": bounds.memory_bytes,
                "parent": os.getpid(),
            }
        )
    )
    with log.open("wb") as stream:
        try:
            ended = subprocess.run(
                # -P: what lies in the directory that this was started in is no module of ours.
                [sys.executable, "-P", "-m", _BUILDER, str(job.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                timeout=bounds.seconds,
                check=False,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us, and we end it
            )
        except subprocess.TimeoutExpired:
            raise PrepareFailed(f"it took longer than {bounds.seconds:.0f} s") from None
    if ended.returncode == 0 and report.exists():
        table: dict[str, object] = json.loads(report.read_text())
        return table
    said = log.read_text(errors="replace").strip().splitlines()
    last = said[-1][:600] if said else "it said nothing"
    if any(map(is_no_memory, said)):
        raise PrepareFailed(f"it needs more than its {format_bytes(bounds.memory_bytes)} of memory: {last}")
    if ended.returncode < 0:
        killed = ", as the kernel does where memory runs out" if ended.returncode == -signal.SIGKILL else ""
        raise PrepareFailed(f"it was ended by signal {-ended.returncode}{killed}: {last}")
    raise PrepareFailed(last)


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # One thread of numpy's too: the others would only hold memory.
    return inherited | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}


def _manifest(key: str, report: dict[str, object]) -> Manifest:
    figures = tuple(
        VariantFigures(**{**found, "runs": tuple(RunFigures(**run) for run in found["runs"])})
        for found in report["figures"]  # type: ignore[attr-defined]
    )
    chosen = next(found for found in figures if found.variant == report["variant"])
    return Manifest(
        key=key,
        variant=chosen.variant,
        reason=str(report["reason"]),
        resident_bytes=chosen.resident_bytes,
        peak_bytes=chosen.peak_bytes,
        weights_bytes=int(str(report["weights_bytes"])),
        tolerance=float(str(report["tolerance"])),
        figures=figures,
    )
