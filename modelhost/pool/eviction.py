"""Which idle models leave. Pure: no clock, no I/O, no asyncio; may be asked as often as one likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelhost.pool.key import ModelKey


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idle model: nobody holds a lease."""

    key: ModelKey
    committed_bytes: int
    pinned: bool = False


#: A model that holds less than this share of what is needed is slight: it hardly helps, and is asked for again at once
#: where it is in use all the time. Prepared models are, beside those that lie on the heap.
_SLIGHT_SHARE: Final = 1 / 8


def choose_victims(idle: Sequence[Candidate], needed_bytes: float) -> tuple[Candidate, ...]:
    """Returns models in the given order (those that are to leave first, first) until they hold `needed_bytes`.

    Slight ones that it does not take in the end stay, the last ones first. Pinned models are never chosen. All
    others are returned where they do not hold enough; none where nothing is needed.
    """
    victims: list[Candidate] = []
    missing_bytes = needed_bytes
    for candidate in idle:
        if missing_bytes <= 0:
            break
        if not candidate.pinned:
            victims.append(candidate)
            missing_bytes -= candidate.committed_bytes
    if missing_bytes >= 0:
        return tuple(victims)
    chosen = []
    for victim in reversed(victims):
        if _is_slight(victim, needed_bytes) and missing_bytes + victim.committed_bytes <= 0:
            missing_bytes += victim.committed_bytes
        else:
            chosen.append(victim)
    return tuple(reversed(chosen))


def without_slight(victims: Sequence[Candidate], needed_bytes: float) -> tuple[Candidate, ...]:
    """Returns those that are worth it where all of them together do not hold what is needed."""
    return tuple(victim for victim in victims if not _is_slight(victim, needed_bytes))


def _is_slight(candidate: Candidate, needed_bytes: float) -> bool:
    return candidate.committed_bytes < needed_bytes * _SLIGHT_SHARE
