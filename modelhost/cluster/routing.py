"""Where a model lives: which replicas a request for it is offered to, in which order. Pure.

1. Replicas that have the model, the shortest queue first, as long as one of them is not busy.
2. The model's home: of the replicas that take work, the first by rendezvous hashing that is neither busy nor short of
   memory. Every ingress comes to the same one without asking anybody, and when a replica goes, its models spread over
   all others and nothing else moves.
3. The others that have it, busy as they are.
4. Everybody else in the order of the hash, those that are short of memory after those that are not.

A replica that has refused this request comes last, so that it is asked again only where all have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Queued and running requests from which on a replica counts as busy: a model that many want is loaded a second time.
BUSY_AT = 16


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a replica: a second old, and told by itself. Unknown ones have nothing and take work."""

    models: frozenset[str] = frozenset()
    is_tight: bool = False
    """Whether its memory is at warning or beyond: what it loads, another model has to leave for."""
    is_open: bool = True

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Standing:
        """Reads `Replica.standing`."""
        return cls(frozenset(told.get("models", ())), bool(told.get("is_tight")), bool(told.get("is_open", True)))


def ranks(
    model: str,
    standings: Mapping[str, Standing],
    queued: Mapping[str, int],
    *,
    avoided: Collection[str] = (),
    busy_at: int = BUSY_AT,
) -> list[list[str]]:
    """Returns the replicas for a request in groups, the best first; of a group the shortest queue is taken.

    `model` is empty for what is not about one. `queued` are the requests that a replica has, as far as that is known.
    """
    asked = [name for name in standings if name not in avoided and standings[name].is_open]
    last = [name for name in standings if name in avoided or not standings[name].is_open]
    if not model:
        return _groups([asked, _by_avoided(last, avoided)])

    def is_busy(name: str) -> bool:
        return queued.get(name, 0) >= busy_at

    holders = [name for name in asked if model in standings[name].models]
    others = by_hash(model, (name for name in asked if model not in standings[name].models))
    roomy = [name for name in others if not standings[name].is_tight]
    free = next((name for name in roomy if not is_busy(name)), None)
    if free is None:
        free = next((name for name in others if not is_busy(name)), None)
    quick = [name for name in holders if not is_busy(name)]
    rest = [name for name in (*roomy, *(name for name in others if standings[name].is_tight)) if name != free]
    return _groups(
        [quick, [] if free is None else [free], [name for name in holders if name not in quick]]
        + [[name] for name in rest]
        + _by_avoided_each(by_hash(model, last), avoided)
    )


def by_hash(model: str, names: Iterable[str]) -> list[str]:
    """Returns replicas in the order in which a model prefers them; whoever comes or goes, the others keep theirs."""
    return sorted(names, key=lambda name: hashlib.blake2b(f"{model}\0{name}".encode(), digest_size=8).digest())


def _by_avoided(names: Sequence[str], avoided: Collection[str]) -> list[str]:
    return sorted(names, key=lambda name: name in avoided)


def _by_avoided_each(names: Sequence[str], avoided: Collection[str]) -> list[list[str]]:
    return [[name] for name in _by_avoided(names, avoided)]


def _groups(found: Iterable[list[str]]) -> list[list[str]]:
    return [group for group in found if group]
