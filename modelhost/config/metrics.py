"""Settings of the figures for Prometheus."""

from __future__ import annotations

from pydantic import Field

from modelhost.config.fields import Section


class MetricsSettings(Section):
    """What `GET /metrics` has."""

    max_models: int = Field(200, ge=0)
    """Models that have samples of their own, some 20 each: those used last. The others are counted by
    `modelhost_models_not_shown`, and are in the figures of all."""
