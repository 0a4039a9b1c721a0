"""Whether a model may load now. Pure: figures in, a decision out; may be asked as often as one likes.

The cases, in the order in which they are tried:

1. It would not fit with nothing else loaded: refuse for good, before anything is evicted.
2. It fits below warning as things are: load.
3. Runs may have left free memory in the arena: trim, and ask again.
4. Idle models that leave bring the projection below warning, or all of them at least below critical:
   evict, and ask again with the figures read anew. Those that hold next to nothing stay where they do not bring
   it below warning, and critical does not need them; or where it does, and a child is about to give back more: they
   are in use all the time, if any are, and would be back in a moment, in each other's place.
5. What stands in the way is in use, loading or leaving: wait.
6. Nothing that could come free would help: refuse.

What is free inside the heap is part of usage, and most of what a victim holds would stay there too: a load
that the first does not help would take them all. So a load of small blocks, which is served from there,
counts it as free against warning. Any other load may go above warning for it by half of the way to
critical, no further, since that does raise usage. Critical is hard: there a load of small blocks only adds
less, by what it will find inside, and nothing loads where usage itself is critical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from modelhost.pool.eviction import Candidate, choose_victims, without_slight

#: While a child is at work, who holds next to nothing is measured by this where less is needed.
_LITTLE_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Figures:
    """What the decision rests on. Bytes on the scale of the limit."""

    usage_bytes: int
    reserved_bytes: int
    """Claims of loads that may not show in usage yet."""
    baseline_bytes: int
    warning_bytes: int
    critical_bytes: int
    idle: Sequence[Candidate]
    """Those that are to leave first, first: see `pool.eviction`."""
    in_use_bytes: int
    """May come free when leases end: unpinned models in use, and what their runs hold."""
    can_trim: bool
    """Runs have ended since the last trim."""
    reusable_bytes: int = 0
    """Of usage: free inside the process's heap, where loads of small blocks take it before usage grows."""
    passing_bytes: int = 0
    """Of those in use: what a child gives back for sure, when it has opened a model."""


@dataclass(frozen=True, slots=True)
class Load:
    """Reserve and load."""


@dataclass(frozen=True, slots=True)
class Trim:
    """Return what finished runs left, then ask again."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Let these go, then ask again."""

    victims: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again when a lease ends or memory changes; refuse with these figures when patience ends."""

    available_bytes: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not load; `never`: nor later."""

    available_bytes: int
    never: bool


Decision = Load | Trim | Evict | Wait | Refuse


def decide(figures: Figures, *, resident_bytes: int, peak_bytes: int, in_small_blocks: bool = False) -> Decision:
    """Decides on a load that holds `resident_bytes` afterwards and `peak_bytes` at its highest.

    `in_small_blocks`: what it holds comes from the heap, not from mappings of its own.
    """
    largest = figures.critical_bytes - figures.baseline_bytes
    if peak_bytes >= largest:  # 1
        return Refuse(largest, never=True)
    base = figures.usage_bytes + figures.reserved_bytes
    if in_small_blocks:
        spared_bytes = found_bytes = figures.reusable_bytes
    else:
        spared_bytes, found_bytes = (
            min(figures.reusable_bytes, (figures.critical_bytes - figures.warning_bytes) // 2),
            0,
        )
    over_warning = base - spared_bytes + resident_bytes - figures.warning_bytes + 1
    over_critical = base + max(0, peak_bytes - found_bytes) - figures.critical_bytes + 1
    if over_warning <= 0 and over_critical <= 0:  # 2
        return Load()
    if figures.can_trim:  # 3
        return Trim()
    needed = max(over_warning, over_critical)
    victims = choose_victims(figures.idle, needed)
    freed = _held_bytes(victims)
    if over_critical <= freed:  # 4
        worthy = without_slight(victims, needed)
        if freed < needed and over_critical <= _held_bytes(worthy):
            victims = worthy
        if figures.passing_bytes:
            lasting_bytes = _held_bytes(without_slight(victims, max(needed, _LITTLE_BYTES)))
            if lasting_bytes < over_critical <= lasting_bytes + figures.passing_bytes:
                return Wait(max(0, figures.critical_bytes - base + lasting_bytes))
        return Evict(victims) if victims else Load()
    available = max(0, figures.critical_bytes - base + freed)
    if over_critical <= freed + figures.in_use_bytes:  # 5
        return Wait(available)
    return Refuse(available, never=False)  # 6


def fits_beside(figures: Figures, *, resident_bytes: int, peak_bytes: int) -> bool:
    """Whether a load that nobody waits for leaves usage below warning as things are, without anybody leaving for it."""
    base = figures.usage_bytes + figures.reserved_bytes
    return base + resident_bytes < figures.warning_bytes and base + peak_bytes < figures.critical_bytes


def _held_bytes(victims: Sequence[Candidate]) -> int:
    return sum(victim.committed_bytes for victim in victims)
