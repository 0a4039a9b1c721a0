"""How values of the settings are written: sizes, times, thresholds; and what all sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from modelhost.units import ThresholdSpec, parse_duration, parse_size


def _size_or_auto(value: Any) -> Any:
    return value if value == "auto" else parse_size(value)


def _threshold(value: Any) -> Any:
    return value if isinstance(value, ThresholdSpec) else ThresholdSpec.parse(value)


Size = Annotated[int, BeforeValidator(parse_size)]
SizeOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_size_or_auto)]
Threshold = Annotated[ThresholdSpec, BeforeValidator(_threshold)]
PositiveInt = Annotated[int, Field(ge=1, le=(1 << 63) - 1)]
PositiveIntOrAuto = PositiveInt | Literal["auto"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
PositiveDuration = Annotated[Duration, Field(gt=0)]
Isolation = Literal["none", "process"]


class Section(BaseModel):
    """One table of the settings file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
