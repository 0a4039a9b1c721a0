"""Prepared models for the benchmarks: made with `modelhost prepare`, as a user makes them, outside of any limit."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.client import RequestFailed
from benchmarks.models import ARTIFACTS
from benchmarks.places import ROOT
from modelhost.prepare import ArtifactStore, Manifest

#: What the command `modelhost` does, without asking where it is installed.
_PREPARE: Final = [sys.executable, "-c", "from modelhost.cli.main import main; main()", "prepare"]
_PROGRESS_S: Final = 5.0


def prepare(models: Path, *, progress: Callable[[str], None], names: Sequence[str] = ()) -> None:
    """Prepares all models of a directory, or those that are named, where that is not done.

    Raises RequestFailed, with the end of what the command said, where one cannot be opened.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELHOST_")}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))
    total = len(names) or sum(1 for entry in models.iterdir() if not entry.name.startswith("."))
    with tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch, tempfile.TemporaryFile("w+") as said:
        # The working directory decides which modelhost.toml is read: an empty one has none.
        command = [*_PREPARE, "--models", str(models.resolve()), *names]
        process = subprocess.Popen(command, env=environ, cwd=scratch, stdout=said, stderr=said)
        try:
            while process.poll() is None:
                progress(f"{sum(1 for _ in _manifests(models))} prepared, {total} wanted")
                _wait(process, _PROGRESS_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        said.seek(0)
        if process.returncode != 0:
            raise RequestFailed(f"`modelhost prepare` ended with {process.returncode}:\n{said.read()[-1500:]}")


def manifests(models: Path) -> dict[str, Manifest]:
    """Returns what is known of each prepared model, by the name of its file below `models`."""
    from modelhost.runtime.ort import identity  # imports ONNX Runtime, which others here do without

    store = ArtifactStore(models / ARTIFACTS, models, identity())
    found = {}
    for file in sorted(models.rglob("*.onnx")):
        if ARTIFACTS not in file.parts and (artifact := store.find(file)) is not None:
            found[str(file.relative_to(models))] = artifact.manifest
    return found


def _manifests(models: Path) -> Iterator[Path]:
    return (models / ARTIFACTS).glob("*/manifest.json")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
