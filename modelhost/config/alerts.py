"""Settings of what is told to others when something is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from modelhost.config.fields import Duration, PositiveDuration, PositiveInt, Section

AlertKind: TypeAlias = Literal[
    "memory_level", "shortfall", "thrashing", "growth", "condition", "refusals", "load_failed", "worker_crashed"
]

#: All of them, in the order of the documentation.
ALERT_KINDS: tuple[AlertKind, ...] = get_args(AlertKind)


def _check_url(url: str) -> str:
    """Says what is wrong with a URL without repeating it: it may have a password, or be one."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right or not url.isascii() or any(char <= " " for char in url):
        raise ValueError("expected http://HOST[:PORT][/PATH] or https://..., got something else")
    return url


class AlertsSettings(Section):
    """Alerts: lines in the log, figures in the metrics, and, where a webhook is named, a request for each."""

    webhook_url: Annotated[str, AfterValidator(_check_url)] | None = Field(None, repr=False)
    """Where each alert is posted, as JSON; unset: nowhere. A password before the host's name is sent as it is meant to
    be; whatever may be read by others belongs into the environment, and not here."""
    secret_file: Path | None = None
    """File whose text signs what is posted (HMAC-SHA256, `X-Modelhost-Signature`); unset: that of the environment
    variable MODELHOST_ALERTS_SECRET, and without that one nothing is signed."""
    kinds: tuple[AlertKind, ...] = ALERT_KINDS
    """Which alerts there are."""
    min_interval: Duration = 60.0
    """Least time between two alerts of one kind about one thing: those in between are one alert, with their number."""
    max_waiting: PositiveInt = 100
    """Alerts that may wait to be posted; one more takes the place of the oldest."""
    timeout: PositiveDuration = 5.0
    """Longest wait for a connection, and for each part of the answer."""
    retries: int = Field(5, ge=0, le=20)
    """Times that one is posted again where that failed or was answered 408, 429 or 5xx: after a second, and twice as
    long each further time, up to a minute."""
    drain_timeout: Duration = 2.0
    """Time that those that wait get at shutdown."""
