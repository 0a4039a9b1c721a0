"""Settings of what the host remembers of its own runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from modelhost.config.fields import Section


class StateSettings(Section):
    """What is kept from one start to the next, besides the artifacts."""

    keep_statistics: bool = True
    """Whether the totals of `/stats` go on after a restart."""
    keep_learnt: bool = True
    """Whether what `memory.policy = "adaptive"` has learnt is taken up after a restart."""
    directory: Path | None = None
    """Where they lie; unset: `state` in the artifacts' cache. Of several hosts that share it, the first one keeps
    its totals."""
    interval_s: Annotated[float, Field(ge=0.1)] = 10.0
    """They are written so often where they have changed, and at the end: what a killed host forgets at most."""
