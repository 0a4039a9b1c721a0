"""What a load will take, from the face of the file, until it was measured.

Upper bounds, measured over convolutional, fully connected and small models with onnxruntime 1.32 and
the allocator's settings (`python -m benchmarks estimates` compares them again): a loaded session held
1.0 to 1.05 times its weights plus up to 1.5 MB. While loading, it holds copies besides: the constants
below say of what.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from modelhost.config import ModelOptions
from modelhost.prepare import Artifact, ArtifactStore
from modelhost.repository import OnnxFormatError, OnnxSummary, read_summary
from modelhost.runtime.base import Inspection, LoadError, LoadPlan, Optimization
from modelhost.tensors import DTYPES

_RESIDENT_FACTOR: Final = 1.1
_RESIDENT_EXTRA_BYTES: Final = 2 << 20
_PEAK_FACTOR: Final = 1.1
#: Copies while loading: of convolutions' weights in another layout (only at full optimisation), of
#: generated weights, and of one tensor at a time while it is packed for multiplication.
_CONV_FACTOR: Final = 1.4
_GENERATED_FACTOR: Final = 1.05
_PEAK_EXTRA_BYTES: Final = 4 << 20
#: Nodes and names in memory against the same in the file.
_STRUCTURE_FACTOR: Final = 6


def fingerprint(file: Path, store: ArtifactStore | None) -> tuple[int, ...]:
    """Returns what changes when the file, or what is prepared of it, does; empty where it is gone."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return (stat.st_size, stat.st_mtime_ns, store.token(file) if store is not None else 0)


def inspect_file(file: Path, options: ModelOptions, store: ArtifactStore | None = None) -> Inspection:
    """Reads the face of a model, in milliseconds and without its weights. Raises LoadError.

    Where it was prepared, the artifact's measured figures stand in for estimates.
    """
    try:
        found_as = fingerprint(file, store)
        summary = read_summary(file)
    except (OnnxFormatError, OSError) as error:
        raise LoadError(str(error)) from None
    _check_face(summary)
    plans = load_plans(summary, options)
    # Artifacts are made at full optimisation; a model that asks for less is loaded as it is.
    if store is not None and options.optimization in (None, "all"):
        artifact = store.find(file, summary.external_files)
        if artifact is not None:
            plans = (prepared_plan(artifact),)
            found_as = fingerprint(file, store)
    return Inspection(
        inputs={spec.name: spec for spec in summary.inputs},
        outputs={spec.name: spec for spec in summary.outputs if spec.datatype in DTYPES},
        plans=plans,
        fingerprint=found_as,
    )


def _check_face(summary: OnnxSummary) -> None:
    """Raises LoadError where the V2 protocol cannot carry what the model takes or gives."""
    if summary.non_tensor_inputs:
        names = ", ".join(f"'{name}'" for name in summary.non_tensor_inputs)
        raise LoadError(f"inputs {names} are no tensors, which the V2 protocol cannot carry")
    if not any(spec.datatype in DTYPES or spec.datatype == "UNDEFINED" for spec in summary.outputs):
        names = ", ".join(f"'{spec.name}' {spec.datatype}" for spec in summary.outputs)
        names = names or ", ".join(f"'{name}'" for name in summary.non_tensor_outputs)
        raise LoadError(f"the V2 protocol can carry none of the outputs: {names or 'there are none'}")


def prepared_plan(artifact: Artifact) -> LoadPlan:
    """Returns how a prepared model loads, by the figures of its manifest."""
    manifest = artifact.manifest
    is_mapped = manifest.variant != "heap"
    return LoadPlan(
        resident_bytes=manifest.resident_bytes,
        peak_bytes=manifest.peak_bytes,
        optimization="none" if is_mapped else "all",
        artifact=artifact.model_file if is_mapped else None,
        variant=manifest.variant,
    )


def external_files(file: Path) -> tuple[str, ...]:
    """Returns the locations of a model's external data, none where the file cannot be read."""
    try:
        return read_summary(file).external_files
    except (OnnxFormatError, OSError):
        return ()


def load_plans(summary: OnnxSummary, options: ModelOptions) -> tuple[LoadPlan, ...]:
    """Returns the ways to load, preferred first: full optimisation, then one with a lower peak."""
    weights = summary.weight_bytes
    structure = max(0, summary.file_bytes - summary.inline_weight_bytes) * _STRUCTURE_FACTOR
    resident = int(weights * _RESIDENT_FACTOR) + structure + _RESIDENT_EXTRA_BYTES
    levels: tuple[Optimization, ...] = (options.optimization,) if options.optimization else ("all", "extended")
    plans = []
    for level in levels:
        conv = summary.conv_weight_bytes * _CONV_FACTOR if level == "all" else 0
        copies = max(conv, summary.generated_weight_bytes * _GENERATED_FACTOR)
        peak = int((weights + summary.largest_weight_bytes) * _PEAK_FACTOR + copies) + structure + _PEAK_EXTRA_BYTES
        plans.append(
            LoadPlan(
                resident_bytes=options.resident_bytes or resident,
                peak_bytes=options.load_peak_bytes or max(peak, resident),
                optimization=level,
                folds_constants=not summary.grows_freely,
            )
        )
    return tuple(plans)
