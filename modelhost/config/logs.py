"""Settings of the log."""

from __future__ import annotations

from typing import Literal

from modelhost.config.fields import Section


class LoggingSettings(Section):
    """What is written to standard error, and how. Neither tensors nor keys are, at any level."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written; `POST /v2/logging` changes it while the host runs."""
    format: Literal["text", "json"] = "text"
    """`text` for people, or `json`: an object a line."""
    access: bool = False
    """A line for each request: method, path, status, bytes, milliseconds, request id, the key's name."""
