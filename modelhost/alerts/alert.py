"""One alert, as a value."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias, get_args

from modelhost.config import AlertKind

Severity: TypeAlias = Literal["info", "warning", "critical"]

#: Whether it holds from here on, does no longer, or has happened.
State: TypeAlias = Literal["begun", "ended", "happened"]

#: Why one was not posted: too many waited; the webhook does not want it; it never answered well; the host has ended.
DropReason: TypeAlias = Literal["queue_full", "refused", "unreachable", "shutdown"]
DROP_REASONS: Final[tuple[DropReason, ...]] = get_args(DropReason)

#: Models that one alert names, at most.
_MODELS_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Alert:
    """What happened, once or (`count`) several times. Times are Unix seconds."""

    kind: AlertKind
    subject: str
    """What of that kind: a level, a code, a condition's name; empty where there is only one."""
    severity: Severity
    state: State
    text: str
    at: float
    """When it happened last."""
    details: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    count: int = 1
    first_at: float = 0.0
    """When it happened first of those times; 0 for the only one."""
    id: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)
    """The same however often it is posted."""

    @property
    def topic(self) -> tuple[str, str]:
        """Kind and subject: what is not told of too often."""
        return self.kind, self.subject

    def after(self, earlier: Alert) -> Alert:
        """Returns this one and an earlier one as one."""
        return replace(
            self,
            count=earlier.count + self.count,
            first_at=earlier.first_at or earlier.at,
            models=tuple(dict.fromkeys((*earlier.models, *self.models)))[-_MODELS_NAMED:],
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return {
            "id": self.id,
            "kind": self.kind,
            "subject": self.subject,
            "severity": self.severity,
            "state": self.state,
            "text": self.text,
            "at": round(self.at, 3),
            "first_at": round(self.first_at or self.at, 3),
            "count": self.count,
            "models": list(self.models),
            "details": dict(self.details),
        }
