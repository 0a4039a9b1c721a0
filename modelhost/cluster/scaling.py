"""How many replicas there should be: by what waits, by what was refused, and by what models need. Pure.

Ray pickles the function by value and runs it where modelhost need not be installed: it imports nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

#: What replicas tell of refusals is of the last minute: one that has been added since may have ended them.
_SETTLED_S = 60.0


class Seen(Protocol):
    """What the cluster says of the replicas: `ray.serve.config.AutoscalingContext`."""

    current_num_replicas: int
    target_num_replicas: int
    current_time: float | None
    last_scale_up_time: float | None
    config: Any

    @property
    def total_num_requests(self) -> float:
        """Requests that wait or run."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """What replicas have told of themselves (`Replica.demand`), by name and replica."""


def wanted(seen: Seen) -> tuple[float, dict[str, Any]]:
    """Returns how many replicas there should be, before bounds and delays, which are the cluster's to apply.

    The most of: as many as the requests need; one more where all replicas have refused a load lately; as many of those
    that are there as hold the models that were asked for in the last ten minutes, so that what a refusal has brought
    does not leave before its reason does.
    """
    now = seen.current_num_replicas
    if not now:
        return float(max(seen.target_num_replicas, 1 if seen.total_num_requests else 0)), {}
    told = seen.aggregated_metrics or {}
    refused = sum(told.get("refused_loads", {}).values())
    wanted_bytes = sum(told.get("wanted_bytes", {}).values())
    rooms = told.get("room_bytes", {}).values()
    room_bytes = sum(rooms) / len(rooms) if rooms else 0.0
    for_requests = seen.total_num_requests / seen.config.target_ongoing_requests
    is_growing = (seen.current_time or 0.0) - (seen.last_scale_up_time or 0.0) < _SETTLED_S
    for_refusals = 0.0 if refused <= 0 else float(seen.target_num_replicas if is_growing else now + 1)
    for_models = math.ceil(wanted_bytes / room_bytes) if room_bytes > 0 else 0
    return max(for_requests, for_refusals, float(min(now, for_models))), {}
