"""The only importer of OpenTelemetry: spans of requests that are over, sampled and exported as its variables say."""

from __future__ import annotations

import logging
import time
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from modelhost import __version__
from modelhost.api.traces import Asked

log = logging.getLogger("modelhost")

_NAME: Final = "infer"

#: Outcomes that are no errors of this host: what was asked for was wrong, or nobody waited for it.
_CLIENTS: Final = frozenset(
    {
        "ok",
        "client_gone",
        "invalid_request",
        "invalid_tensor",
        "model_not_found",
        "request_too_large",
        "run_too_large",
        "unrepresentable_output",
    }
)


def batching() -> SpanProcessor:
    """Returns what exports spans by OTLP over HTTP, in batches and on its own thread: OTEL_EXPORTER_OTLP_* say where
    to, OTEL_BSP_* how many at once."""
    return BatchSpanProcessor(OTLPSpanExporter())


class Spans:
    """Makes spans. One thread at a time."""

    def __init__(self, processor: SpanProcessor) -> None:
        resource = Resource.create()
        own = {SERVICE_VERSION: __version__}
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):  # OTEL_SERVICE_NAME says no other
            own[SERVICE_NAME] = "modelhost"
        self._provider = TracerProvider(resource=resource.merge(Resource(own)), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("modelhost", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def add(self, asked: Asked, to_unix_ns: int) -> None:
        """Makes the spans of a request, below its client's where it named one; `to_unix_ns` is added to its times."""
        root = self._tracer.start_span(
            _NAME,
            context=self._context(asked),
            kind=SpanKind.SERVER,
            start_time=asked.arrived_ns + to_unix_ns,
            attributes=_attributes(asked),
        )
        if root.is_recording():
            if asked.outcome not in _CLIENTS:
                root.set_status(Status(StatusCode.ERROR, asked.outcome))
            within = set_span_in_context(root, Context())
            for name, began_ns, ended_ns in asked.parts():
                span = self._tracer.start_span(name, context=within, start_time=began_ns + to_unix_ns)
                span.end(ended_ns + to_unix_ns)
        root.end(asked.ended_ns + to_unix_ns)

    def close(self) -> None:
        """Exports what there is left; may take as long as the exporter tries."""
        self._provider.shutdown()

    def _context(self, asked: Asked) -> Context:
        if asked.trace is None:
            return Context()
        carrier = {"traceparent": asked.trace.parent}
        if asked.trace.state:
            carrier["tracestate"] = asked.trace.state
        return self._propagator.extract(carrier, Context())


def unix_offset_ns() -> int:
    """Returns what makes Unix time of the clock of requests, now."""
    return time.time_ns() - time.perf_counter_ns()


def _attributes(asked: Asked) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool] = {
        "modelhost.outcome": asked.outcome,
        "modelhost.rows": asked.rows,
        "modelhost.cold_start": asked.load_ns > 0,
    }
    if asked.key is not None:
        found |= {"modelhost.model.name": asked.key.name, "modelhost.model.version": asked.key.version}
    if asked.infer_ns:
        found["modelhost.run.rows"] = asked.run_rows or asked.rows
    return found
