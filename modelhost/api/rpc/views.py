"""What there is, as messages: metadata, configuration, statistics, the repository's index."""

from __future__ import annotations

from typing import Any

from modelhost import __version__
from modelhost.api.rpc.messages import METHODS, message_class
from modelhost.host import Host
from modelhost.pool import ModelKey
from modelhost.pool.statistics import ModelStatistics
from modelhost.tensors import TensorSpec

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"

#: What is announced is what works.
EXTENSIONS = ("model_repository", "model_configuration", "statistics", "parameters")

_Tensor = message_class("ModelMetadataResponse.TensorMetadata")
_Duration = message_class("StatisticDuration")


def server_metadata() -> Any:
    """Returns name, version and extensions of the server."""
    return METHODS["ServerMetadata"][1](name="modelhost", version=__version__, extensions=EXTENSIONS)


async def model_metadata(host: Host, name: str, version: str | None) -> Any:
    """Returns versions, inputs and outputs of a model, which need not be loaded."""
    file, face = await host.pool.describe(name, version)
    return METHODS["ModelMetadata"][1](
        name=file.name,
        versions=host.pool.catalog.versions(file.name),
        platform=PLATFORM,
        inputs=[_tensor(spec) for spec in face.inputs.values()],
        outputs=[_tensor(spec) for spec in face.outputs.values()],
    )


async def model_config(host: Host, name: str, version: str | None) -> Any:
    """Returns the configuration in the form that load generators ask for."""
    file, face = await host.pool.describe(name, version)
    batch = host.pool.catalog.options(file).max_batch_size
    answer = METHODS["ModelConfig"][1]()
    config = answer.config
    config.name, config.platform, config.backend, config.max_batch_size = file.name, PLATFORM, BACKEND, batch
    config.version_policy.all.SetInParent()
    for specs, fields in ((face.inputs, config.input), (face.outputs, config.output)):
        for spec in specs.values():
            fields.add(name=spec.name, data_type=_kind(spec), dims=spec.wire_shape[1:] if batch else spec.wire_shape)
    return answer


async def model_statistics(host: Host, name: str, version: str | None) -> Any:
    """Returns totals of one model (all its versions where none is named), or of all that were ever asked for."""
    answer = METHODS["ModelStatistics"][1]()
    if name:
        await host.pool.catalog.find_fresh(name, version)
        versions = host.pool.catalog.versions(name) if version is None else (version,)
        totals = [(key, host.pool.statistics.get(key)) for key in (ModelKey(name, each) for each in versions)]
    else:
        totals = list(host.pool.statistics)
    held = {ModelKey(model.name, model.version): model.committed_bytes for model in host.pool.snapshot().models}
    for key, found in totals:
        _add_totals(answer.model_stats.add(name=key.name, version=key.version), found or ModelStatistics())
        if held.get(key):
            answer.model_stats[-1].memory_usage.add(type="CPU", byte_size=held[key])
    return answer


async def repository_index(host: Host, *, only_ready: bool) -> Any:
    """Returns every model that was found, with its state."""
    catalog = host.pool.catalog
    await catalog.scan()
    answer = METHODS["RepositoryIndex"][1]()
    names = set(catalog.names)
    for name in catalog.names:
        for version in catalog.versions(name):
            state, reason = host.pool.state_of(ModelKey(name, version))
            if state == "READY" or not only_ready:
                answer.models.add(name=name, version=version, state=state, reason=reason)
    if not only_ready:
        for name, reason in catalog.problems.items():
            if name not in names:
                answer.models.add(name=name, state="UNAVAILABLE", reason=reason)
    return answer


async def model_ready(host: Host, name: str, version: str | None) -> Any:
    """Says whether an inference request would be served; loading the model for it counts as served."""
    await host.pool.catalog.find_fresh(name, version)
    return METHODS["ModelReady"][1](ready=host.is_ready and host.pool.is_ready(name, version))


def _tensor(spec: TensorSpec) -> Any:
    return _Tensor(name=spec.name, datatype=spec.datatype, shape=spec.wire_shape)


def _kind(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"


def _add_totals(message: Any, totals: ModelStatistics) -> None:
    message.last_inference = totals.last_inference_ms
    message.inference_count = totals.inference_count
    message.execution_count = totals.execution_count
    answered = totals.success.count
    stats = message.inference_stats
    for field, count, ns in (
        (stats.success, answered, totals.success.ns),
        (stats.fail, totals.fail.count, totals.fail.ns),
        (stats.queue, answered, totals.queue_ns),
        (stats.compute_input, answered, totals.input_ns),
        (stats.compute_infer, answered, totals.infer_ns),
        (stats.compute_output, answered, totals.output_ns),
        (stats.cache_hit, 0, 0),  # there is no cache of answers, and clients read the fields all the same
        (stats.cache_miss, 0, 0),
    ):
        field.count, field.ns = count, ns
        field.SetInParent()
    for rows, took in sorted(totals.batches.items()):
        message.batch_stats.add(
            batch_size=rows,
            compute_input=_Duration(count=took.count, ns=took.input_ns),
            compute_infer=_Duration(count=took.count, ns=took.infer_ns),
            compute_output=_Duration(count=took.count, ns=took.output_ns),
        )
