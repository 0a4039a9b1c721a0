"""What the server says of itself and its models, as plain values: the same for every front end."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelhost import __version__
from modelhost.errors import ModelBroken, ModelNotFound
from modelhost.host import Host
from modelhost.pool import ModelKey
from modelhost.pool.statistics import BatchTook, ModelStatistics
from modelhost.security.texts import without_paths
from modelhost.tensors import TensorSpec

#: What is announced is what works.
EXTENSIONS: Final = (
    "binary_tensor_data",
    "model_repository",
    "model_repository(unload_dependents)",
    "model_configuration",
    "parameters",
    "statistics",
    "logging",
)

#: Models that the index goes through in one turn of the event loop: some 5 to 10 us each.
_MODELS_A_TURN: Final = 200

_PLATFORM: Final = "onnxruntime_onnx"

#: What a model has that nobody has asked for.
_NEVER_ASKED: Final = ModelStatistics()


def readiness(host: Host) -> dict[str, Any]:
    """Returns whether requests are served, and by name what is not as it should be; anybody may ask."""
    names = [condition.name for condition in host.conditions.snapshot()]
    return {"ready": host.is_ready, **({"conditions": names} if names else {})}


def server_metadata() -> dict[str, Any]:
    """Returns name, version and extensions of the server."""
    return {"name": "modelhost", "version": __version__, "extensions": EXTENSIONS}


async def model_metadata(host: Host, name: str, version: str | None = None) -> dict[str, Any]:
    """Returns versions, inputs and outputs of a model, which need not be loaded.

    Raises ModelNotFound or ModelBroken.
    """
    file, face = await host.pool.describe(name, version)
    return {
        "name": file.name,
        "versions": list(host.pool.catalog.versions(file.name)),
        "platform": _PLATFORM,
        "inputs": [_tensor(spec) for spec in face.inputs.values()],
        "outputs": [_tensor(spec) for spec in face.outputs.values()],
    }


async def model_is_ready(host: Host, name: str, version: str | None = None) -> bool:
    """Says whether an inference request would be served; loading the model for it counts as served.

    Raises ModelNotFound or ModelBroken.
    """
    await host.pool.catalog.find_fresh(name, version)
    return host.is_ready and host.pool.is_ready(name, version)


async def model_config(host: Host, name: str, version: str | None = None) -> dict[str, Any]:
    """Returns the model's configuration in the form that load generators ask for.

    Raises ModelNotFound or ModelBroken.
    """
    file, face = await host.pool.describe(name, version)
    batch = host.pool.catalog.options(file).max_batch_size
    rule = host.pool.batch_rule(file, face)
    shared = (
        {} if rule is None else {"dynamic_batching": {"max_queue_delay_microseconds": round(rule.max_delay_s * 1e6)}}
    )
    return {
        "name": file.name,
        "platform": _PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": batch,
        "input": [_configured(spec, batch) for spec in face.inputs.values()],
        "output": [_configured(spec, batch) for spec in face.outputs.values()],
        "version_policy": host.pool.catalog.policy(name).as_config(),
        **shared,
    }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the index is wanted: all of it, or a page."""

    only_ready: bool = False
    limit: int = sys.maxsize
    """Models on a page; a model's versions are on one page, however many they are."""
    after: str = ""
    """The page begins with the first name after this one; the first page has none."""


async def repository_index(host: Host, wanted: Wanted) -> AsyncIterator[list[dict[str, str]]]:
    """Yields what is wanted of every version that the disk has, with its state, by name: in parts, between which others
    have a turn of the event loop.

    The disk is looked at for the first page; the others go on in what is known.
    """
    if not wanted.after:
        await host.pool.catalog.scan()
    names, left = _names(host, wanted), wanted.limit
    for begin in range(0, len(names), _MODELS_A_TURN):
        if begin:
            await asyncio.sleep(0)
        entries: list[dict[str, str]] = []
        for name in names[begin : begin + _MODELS_A_TURN]:
            found = [entry for entry in _entries(host, name) if not wanted.only_ready or entry["state"] == "READY"]
            entries += found
            left -= bool(found)
            if not left:
                break
        yield entries
        if not left:
            return


async def model_statistics(host: Host, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Returns what the requests of a model took; of all its versions where none is named.

    Without a name: of all models that are loaded or were asked for. Every key is always there, since
    clients index without looking. Raises ModelNotFound or ModelBroken.
    """
    pool = host.pool
    committed: Counter[ModelKey] = Counter()
    for model in pool.snapshot().models:  # one that is being replaced is there twice
        committed[ModelKey(model.name, model.version)] += model.committed_bytes
    if name is None:
        keys = sorted({key for key, _ in pool.statistics} | committed.keys(), key=_by_version)
    else:
        file = await pool.catalog.find_fresh(name, version)
        versions = pool.catalog.versions(name) if version is None else (file.version,)
        keys = [ModelKey(name, known) for known in versions]
    return {"model_stats": [_statistics(key, pool.statistics.get(key), committed.get(key, 0)) for key in keys]}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.wire_shape}


def _configured(spec: TensorSpec, max_batch_size: int) -> dict[str, Any]:
    """`dims` leave the batch dimension out where there is one, as the configuration's form has it."""
    shape = spec.wire_shape
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": shape[1:] if max_batch_size else shape}


def _names(host: Host, wanted: Wanted) -> Sequence[str]:
    """Returns the names of what can be served and of what cannot, sorted; where only loaded ones are, those."""
    if wanted.only_ready:
        return sorted({model.name for model in host.pool.snapshot().models if model.name > wanted.after})
    catalog = host.pool.catalog
    names: Sequence[str] = catalog.names
    if catalog.problems:
        names = sorted({*names, *catalog.problems})
    return names[bisect_right(names, wanted.after) :] if wanted.after else names


def _entries(host: Host, name: str) -> Iterator[dict[str, str]]:
    catalog = host.pool.catalog
    try:
        versions = catalog.versions(name)
    except ModelNotFound:  # a scan in between has not found it again
        return
    except ModelBroken:
        yield _entry(name, "", "UNAVAILABLE", catalog.problems.get(name, ""))
        return
    for version in versions:
        yield _entry(name, version, *host.pool.state_of(ModelKey(name, version)))


def _entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": without_paths(reason)}


# --- statistics ------------------------------------------------------------------------------------


def _by_version(key: ModelKey) -> tuple[str, int, str]:
    return key.name, int(key.version) if key.version.isdecimal() else 0, key.version


def _statistics(key: ModelKey, found: ModelStatistics | None, committed_bytes: int) -> dict[str, Any]:
    totals = found or _NEVER_ASKED
    answered = totals.success.count
    return {
        "name": key.name,
        "version": key.version,
        "last_inference": totals.last_inference_ms,
        "inference_count": totals.inference_count,
        "execution_count": totals.execution_count,
        "inference_stats": {
            "success": _took(answered, totals.success.ns),
            "fail": _took(totals.fail.count, totals.fail.ns),
            "queue": _took(answered, totals.queue_ns),
            "compute_input": _took(answered, totals.input_ns),
            "compute_infer": _took(answered, totals.infer_ns),
            "compute_output": _took(answered, totals.output_ns),
            "cache_hit": _took(0, 0),
            "cache_miss": _took(0, 0),
        },
        "response_stats": {},
        "batch_stats": [_batch(size, took) for size, took in sorted(totals.batches.items())],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": committed_bytes}],
    }


def _batch(size: int, took: BatchTook) -> dict[str, Any]:
    return {
        "batch_size": size,
        "compute_input": _took(took.count, took.input_ns),
        "compute_infer": _took(took.count, took.infer_ns),
        "compute_output": _took(took.count, took.output_ns),
    }


def _took(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
