"""Which idle models leave. Pure: no clock, no I/O, no asyncio; may be asked as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelhost.pool.key import ModelKey


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle model: nobody holds a lease."""

    key: ModelKey
    committed_bytes: int
    pinned: bool = False


def choose_victims(idle: Sequence[Candidate], needed_bytes: float) -> tuple[Candidate, ...]:
    """Returns models in the given order (least recently used first) until they hold `needed_bytes`.

    Pinned models are never chosen. All others are returned where they do not hold enough; none where
    nothing is needed.
    """
    victims: list[Candidate] = []
    for candidate in idle:
        if needed_bytes <= 0:
            break
        if not candidate.pinned:
            victims.append(candidate)
            needed_bytes -= candidate.committed_bytes
    return tuple(victims)
