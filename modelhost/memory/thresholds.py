"""From threshold settings to bytes: the arithmetic, and its complaints. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelhost.config import MemorySettings
from modelhost.errors import ConfigError
from modelhost.levels import WARNING_GAP_BYTES, default_critical_bytes, default_warning_bytes
from modelhost.units import ThresholdSpec, format_bytes

#: A level is left only this far below the threshold that entered it, so that usage which sways
#: around a threshold is one event, not a stream of them. A 64th of the limit is 4 MB at 256 MB.
_HYSTERESIS_SHARE: Final = 1 / 64
_AUTO: Final = ThresholdSpec.parse("auto")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """All in bytes on the scale of the limit."""

    limit_bytes: int
    baseline_bytes: int
    warning_bytes: int
    critical_bytes: int
    min_free_bytes: int

    @property
    def hysteresis_bytes(self) -> int:
        """How far below a threshold its level ends; never below the baseline, else it could not end."""
        room = max(0, self.warning_bytes - self.baseline_bytes)
        return min(int(self.limit_bytes * _HYSTERESIS_SHARE), room // 2)

    @property
    def activation_room_bytes(self) -> int:
        """What loads leave to runs and requests: the limit less critical."""
        return self.limit_bytes - self.critical_bytes


def resolve(settings: MemorySettings, *, limit_bytes: int, baseline_bytes: int) -> Thresholds:
    """Returns the thresholds in bytes. Raises ConfigError with the figures where they are impossible.

    Default at 256 MB: critical 192 MB (a quarter is left for activations), warning 172 MB.
    """
    if limit_bytes <= settings.min_free + baseline_bytes:
        raise ConfigError(
            f"memory.limit {format_bytes(limit_bytes)} leaves nothing for models: the host itself holds "
            f"{format_bytes(baseline_bytes)} and memory.min_free keeps {format_bytes(settings.min_free)}; "
            f"it takes at least {format_bytes(baseline_bytes + settings.min_free + WARNING_GAP_BYTES)}"
        )
    auto = default_critical_bytes(limit_bytes, min_free_bytes=settings.min_free)
    critical = _bytes(settings.critical, limit_bytes, baseline_bytes, auto=auto)
    auto = default_warning_bytes(limit_bytes, critical_bytes=critical, baseline_bytes=baseline_bytes)
    warning = _bytes(settings.warning, limit_bytes, baseline_bytes, auto=auto)
    thresholds = Thresholds(limit_bytes, baseline_bytes, warning, critical, settings.min_free)
    _check(settings, thresholds)
    return thresholds


def follow(settings: MemorySettings, *, limit_bytes: int, baseline_bytes: int) -> tuple[Thresholds, str]:
    """Returns thresholds for a limit that was changed while the host runs, and why they are not as set; "" if they are.

    Where the settings are impossible under it they are left to us; where there is no room for any model at
    all, nothing is let in and all that is idle leaves.
    """
    try:
        return resolve(settings, limit_bytes=limit_bytes, baseline_bytes=baseline_bytes), ""
    except ConfigError as error:
        reason = str(error)
    automatic = settings.model_copy(update={"warning": _AUTO, "critical": _AUTO})
    try:
        return resolve(automatic, limit_bytes=limit_bytes, baseline_bytes=baseline_bytes), reason
    except ConfigError as error:
        reason = str(error)
    critical = default_critical_bytes(limit_bytes, min_free_bytes=settings.min_free)
    return Thresholds(limit_bytes, baseline_bytes, critical, critical, settings.min_free), reason


def _bytes(spec: ThresholdSpec, limit_bytes: int, baseline_bytes: int, *, auto: int) -> int:
    match spec.kind:
        case "auto":
            return auto
        case "bytes":
            return int(spec.value)
        case "share":
            return int(limit_bytes * spec.value)
        case "offset":
            return baseline_bytes + int(spec.value)


def _check(settings: MemorySettings, found: Thresholds) -> None:
    figures = (
        f"limit {format_bytes(found.limit_bytes)}, baseline {format_bytes(found.baseline_bytes)}, "
        f"warning {format_bytes(found.warning_bytes)} (memory.warning = {settings.warning.text}), "
        f"critical {format_bytes(found.critical_bytes)} (memory.critical = {settings.critical.text}), "
        f"min_free {format_bytes(found.min_free_bytes)}"
    )
    if found.critical_bytes > found.limit_bytes - found.min_free_bytes:
        raise ConfigError(
            f"memory.critical has to leave memory.min_free below the limit, so it may be at most "
            f"{format_bytes(found.limit_bytes - found.min_free_bytes)}: {figures}"
        )
    if found.warning_bytes >= found.critical_bytes:
        raise ConfigError(f"memory.warning has to be below memory.critical: {figures}")
    if found.warning_bytes <= found.baseline_bytes:
        raise ConfigError(
            f"memory.warning has to be above the baseline, else no model could ever stay loaded: {figures}"
        )
