"""Has a child prepare or measure a model, and takes in what it made. Blocking; see Child for threads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelhost.prepare.child import Bounds, Child, no_memory
from modelhost.prepare.failures import PrepareFailed, failed_to_read
from modelhost.prepare.footprint import FreeDims
from modelhost.prepare.manifest import Manifest
from modelhost.prepare.store import Artifact, ArtifactStore
from modelhost.repository import OnnxFormatError, read_summary

__all__ = ["Bounds", "Child", "PrepareFailed", "measure", "prepare"]

_NO_SIZES: Mapping[str, int] = {}


def prepare(
    store: ArtifactStore,
    file: Path,
    external: tuple[str, ...],
    bounds: Bounds,
    *,
    dimensions: Mapping[str, int] | None = None,
    child: Child | None = None,
    is_last: bool = True,
) -> Artifact:
    """Builds the artifact of `file` in a child process and returns it; blocks. Raises PrepareFailed.

    While another process builds the same one it is waited for, within the time that `bounds` has for a child.
    `dimensions` are sizes of free dimensions to measure with, by symbol or `INPUT:AXIS`. With `is_last`
    a variant that meets the memory ceiling is done without, and the manifest says so; else it is a failure.
    """
    sizes = dimensions or _NO_SIZES
    key = _key(store, file, external, sizes)
    former, child = store.stamp(key), child or Child()
    until = time.monotonic() + bounds.seconds

    def gives_up() -> bool:
        return child.is_killed or time.monotonic() > until

    try:
        # Hosts that share a cache prepare a model once: who comes second finds what the first has made.
        with store.turn(key, gives_up=gives_up), store.aside() as folder:
            made = store.get(key) if store.stamp(key) != former else None
            if made is not None:
                return made
            libraries = store.identity.custom_op_libraries
            job = _job(file, bounds, folder=folder, optimization="all", dimensions=sizes, libraries=libraries)
            job["is_last"] = is_last
            manifest = _reported(job, bounds, child)
            if _key(store, file, external, sizes) != key:
                raise PrepareFailed("the model's files changed while it was prepared", "changed")
            # Another host that was faster may be loading what it made.
            others = store.get(key) if store.stamp(key) != former else None
            return others or store.adopt(folder, replace(manifest, key=key))
    except OSError as error:
        raise failed_to_read(error, store.cache, "disk") from None


def measure(
    file: Path,
    bounds: Bounds,
    *,
    optimization: str = "all",
    dimensions: Mapping[str, int] | None = None,
    custom_op_libraries: tuple[Path, ...] = (),
    child: Child | None = None,
) -> Manifest:
    """Has a child open and run a model as it is, from the heap; writes nothing. Raises PrepareFailed.

    The manifest's key is empty. `optimization` is "all", "extended", "basic" or "none".
    """
    sizes = dimensions or _NO_SIZES
    job = _job(file, bounds, folder=None, optimization=optimization, dimensions=sizes, libraries=custom_op_libraries)
    return _reported(job, bounds, child or Child())


def _key(store: ArtifactStore, file: Path, external: tuple[str, ...], sizes: Mapping[str, int]) -> str:
    try:
        return store.key_of(file, external, sizes)
    except OSError as error:
        raise failed_to_read(error, file, "changed") from None


def _job(
    file: Path,
    bounds: Bounds,
    *,
    folder: Path | None,
    optimization: str,
    dimensions: Mapping[str, int],
    libraries: tuple[Path, ...],
) -> dict[str, Any]:
    try:
        summary = read_summary(file)
        FreeDims.of(summary.inputs).resolve(dimensions)
    except (OnnxFormatError, ValueError) as error:
        raise PrepareFailed(str(error), "model") from None
    except OSError as error:
        raise failed_to_read(error, file, "changed") from None
    return {
        "file": str(file.resolve()),
        "folder": None if folder is None else str(folder.resolve()),
        "inputs": [[spec.name, spec.datatype, spec.shape, spec.dim_names] for spec in summary.inputs],
        "non_tensor_inputs": summary.non_tensor_inputs,
        "external": summary.external_files,
        "weight_bytes": summary.weight_bytes,
        "dimensions": dict(dimensions),
        "optimization": optimization,
        "custom_op_libraries": [str(library) for library in libraries],
        "ceiling_bytes": bounds.memory_bytes,
        "is_last": True,
        "parent": os.getpid(),
    }


def _reported(job: Mapping[str, Any], bounds: Bounds, child: Child) -> Manifest:
    """Runs the child and reads its report. Raises PrepareFailed."""
    report = child.report(json.dumps(job).encode(), bounds)
    try:
        text = report.decode()
        table = json.loads(text)
        if "failure" not in table:
            return Manifest.from_json(text)
    except (ValueError, TypeError) as error:
        raise PrepareFailed(f"its report cannot be read: {error}", "crash") from None
    if table["kind"] == "memory":
        raise no_memory(table["failure"], bounds)
    raise PrepareFailed(table["failure"], table["kind"])
