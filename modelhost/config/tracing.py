"""Settings of traces."""

from __future__ import annotations

from modelhost.config.fields import PositiveInt, Section


class TracingSettings(Section):
    """Requests as OpenTelemetry's spans. Where they are sent, and which, is said by its own environment variables
    (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER` and others)."""

    enabled: bool = False
    """Whether requests become spans; the extra `modelhost[otel]` has to be installed for it."""
    max_waiting: PositiveInt = 4096
    """Requests that may wait to become spans, which happens five times a second; one more is left out, and counted."""
