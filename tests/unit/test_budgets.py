"""How the room above critical is shared, and what is refused about it at the start."""

from __future__ import annotations

import pytest

from modelhost.config import MemorySettings, ServerSettings, Settings
from modelhost.errors import ConfigError
from modelhost.host import Budgets

MB = 1 << 20


def budgets(
    limit_mb: int = 256, *, memory: dict[str, str] | None = None, server: dict[str, str] | None = None
) -> Budgets:
    settings = Settings(memory=MemorySettings(**memory or {}), server=ServerSettings(**server or {}))  # type: ignore[arg-type]
    return Budgets.resolve(settings, limit_bytes=limit_mb * MB, usage_bytes=60 * MB)


@pytest.mark.parametrize(
    ("limit_mb", "ceiling_mb", "decoding_mb"),
    [(256, 64, 16), (1024, 256, 64), (128, 32, 8)],
)
def test_activations_may_take_a_quarter_of_the_limit_and_bodies_a_quarter_of_that(
    limit_mb: int, ceiling_mb: int, decoding_mb: int
) -> None:
    found = budgets(limit_mb)
    assert (found.activation_ceiling_bytes, found.decoding_bytes) == (ceiling_mb * MB, decoding_mb * MB)


def test_the_ceiling_follows_a_critical_that_leaves_less() -> None:
    assert budgets(memory={"critical": "216MB"}).activation_ceiling_bytes == 40 * MB


def test_a_larger_budget_for_bodies_leaves_the_ceiling_as_it_is() -> None:
    found = budgets(server={"max_decoding_bytes": "56MB"})
    assert (found.activation_ceiling_bytes, found.decoding_bytes) == (64 * MB, 56 * MB)


@pytest.mark.parametrize(
    ("memory", "server", "words"),
    [
        (
            {"activation_ceiling": "65MB"},
            {},
            r"memory.activation_ceiling \(65.0 MB\) cannot be over the 64.0 MB between memory.critical \(192.0 MB\)",
        ),
        ({}, {"max_decoding_bytes": "65MB"}, r"server.max_decoding_bytes \(65.0 MB\) cannot be over the 64.0 MB"),
        ({"activation_ceiling": "500KB"}, {}, r"memory.activation_ceiling \(500.0 KB\) has to be at least 1 MB"),
    ],
)
def test_what_does_not_fit_above_critical_stops_the_start(
    memory: dict[str, str], server: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        budgets(memory=memory, server=server)
