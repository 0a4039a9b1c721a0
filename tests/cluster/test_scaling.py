"""How many replicas are wanted: by requests, by refusals, by the models that are in use."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from modelhost.cluster.scaling import wanted


@dataclass
class Seen:
    current_num_replicas: int = 2
    target_num_replicas: int = 2
    total_num_requests: float = 8.0
    aggregated_metrics: dict[str, dict[str, float]] | None = field(default_factory=dict)
    current_time: float | None = 1000.0
    last_scale_up_time: float | None = None
    config: Any = field(default_factory=lambda: SimpleNamespace(target_ongoing_requests=8))


def told(refused: float = 0.0, wanted_bytes: float = 0.0, room_bytes: float = 100.0) -> dict[str, dict[str, float]]:
    return {
        "refused_loads": {"a": refused, "b": 0.0},
        "wanted_bytes": {"a": wanted_bytes, "b": 0.0},
        "room_bytes": {"a": room_bytes, "b": room_bytes},
    }


@pytest.mark.parametrize(
    ("seen", "replicas"),
    [
        (Seen(), 1),
        (Seen(total_num_requests=40), 5),
        (Seen(aggregated_metrics=None), 1),
        (Seen(aggregated_metrics=told(refused=1)), 3),
        (Seen(aggregated_metrics=told(refused=0.1), target_num_replicas=3, last_scale_up_time=970.0), 3),
        (Seen(aggregated_metrics=told(refused=1), last_scale_up_time=900.0), 3),
        (Seen(aggregated_metrics=told(wanted_bytes=150)), 2),
        (Seen(aggregated_metrics=told(wanted_bytes=950)), 2),  # who is there has room: some are not in use at once
        (Seen(aggregated_metrics=told(wanted_bytes=50)), 1),
        (Seen(current_num_replicas=0, target_num_replicas=0), 1),
        (Seen(current_num_replicas=0, target_num_replicas=0, total_num_requests=0), 0),
    ],
)
def test_the_most_of_what_requests_refusals_and_models_need(seen: Seen, replicas: float) -> None:
    assert wanted(seen) == (replicas, {})


def test_the_policy_takes_nothing_along_where_ray_sends_it() -> None:
    assert wanted.__code__.co_names
    assert pickle.dumps(wanted)
