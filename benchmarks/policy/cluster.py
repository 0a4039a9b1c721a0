"""Several hosts with a memory budget each: who holds what, who has had how many requests, what that came to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy.fleet import Fleet
from benchmarks.policy.rules import Rule

#: Load, count, age of a host that has left: nobody chooses the most of all.
_GONE: Final = math.inf

#: Age of a host that has made no room yet: less than any victim's worth.
_NOBODY_LEFT: Final = -1.0


class Placement(Protocol):
    """Says which host gets a request. It reads the cluster that it was made for, and changes nothing there."""

    def choose(self, model: int) -> int:
        """Returns the host that is to serve a request for a model."""

    def changed(self) -> int | None:
        """Notes that a host has left or joined; returns how many models have another home; None: models have none."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What has happened so far, by host; the difference of two is what happened in between."""

    requests: NDArray[np.int64]
    cold_starts: NDArray[np.int64]
    moved_bytes: NDArray[np.int64]
    refused: int
    evictions: int

    def since(self, earlier: Sums) -> Sums:
        """Returns what has happened after `earlier`; a host that has joined meanwhile had nothing then."""
        padded = np.zeros((3, len(self.requests)), np.int64)
        padded[:, : len(earlier.requests)] = earlier.requests, earlier.cold_starts, earlier.moved_bytes
        return Sums(
            self.requests - padded[0],
            self.cold_starts - padded[1],
            self.moved_bytes - padded[2],
            self.refused - earlier.refused,
            self.evictions - earlier.evictions,
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What the hosts of a cluster have in common."""

    hosts: int
    budget_bytes: int
    """Of each host."""
    bound: float
    """How many times the mean load a host may have before requests go elsewhere; 0: any."""
    window: int
    """A host's load is how many of the last `window * hosts` requests it has had."""


class Cluster:
    """Serves requests one after another, as `replay` does with one host: nothing overlaps, nothing is in use.

    `place` makes the placement, once the hosts are there. Hosts keep their numbers: one that joins has the next.
    """

    def __init__(
        self, fleet: Fleet, terms: Terms, rule: Callable[[], Rule], place: Callable[[Cluster], Placement]
    ) -> None:
        self.fleet, self.terms = fleet, terms
        self.sizes: list[int] = fleet.size_bytes.tolist()
        self.holders: dict[int, tuple[int, ...]] = {}
        """Of each model that is held anywhere, the hosts; the one that loaded it first, first."""
        # By host, and never replaced: placements keep these lists.
        self.loads: list[float] = [terms.window] * terms.hosts  # as if all had been asked in turns before
        self.counts: list[float] = [0] * terms.hosts
        self.free_bytes: list[float] = [terms.budget_bytes] * terms.hosts
        self.ages: list[float] = [_NOBODY_LEFT] * terms.hosts
        """What the last model that had to leave was worth to the rule: who has the least has most to give."""
        self._rule = rule
        self._rules = [rule() for _ in range(terms.hosts)]
        self._recent = deque(index % terms.hosts for index in range(terms.window * terms.hosts))
        self._requests, self._cold_starts, self._moved = ([0] * terms.hosts for _ in range(3))
        self._refused = self._evictions = self._at = 0
        self.bound = self._bound()
        self._placement = place(self)

    @property
    def living(self) -> list[int]:
        """The hosts that have not left."""
        return [host for host, load in enumerate(self.loads) if load != _GONE]

    @property
    def held_bytes(self) -> NDArray[np.int64]:
        """What each living host holds."""
        return np.array([self.terms.budget_bytes - self.free_bytes[host] for host in self.living], np.int64)

    @property
    def distinct_bytes(self) -> int:
        """What would be held if each model that is held were held once."""
        return sum(self.sizes[model] for model in self.holders)

    def sums(self) -> Sums:
        """Returns what has happened so far."""
        requests, cold_starts, moved = np.array([self._requests, self._cold_starts, self._moved], np.int64)
        return Sums(requests, cold_starts, moved, self._refused, self._evictions)

    def serve(self, wanted: Iterable[int]) -> None:
        """Serves requests for these models."""
        choose, uses = self._placement.choose, [rule.use for rule in self._rules]
        loads, requests = self.loads, self._requests
        note, forget = self._recent.append, self._recent.popleft
        at = self._at
        for model in wanted:
            host = choose(model)
            loads[forget()] -= 1
            loads[host] += 1
            note(host)
            requests[host] += 1
            if not uses[host](model, at):
                self._load(host, model, at)
            at += 1
        self._at = at

    def leave(self, host: int) -> int | None:
        """Takes a host away with all that it holds; returns how many models have another home, or lost the only one."""
        held = [model for model, hosts in self.holders.items() if host in hosts]
        lost = sum(len(self.holders[model]) == 1 for model in held)
        for model in held:
            self._not_there(host, model)
        self.loads[host] = self.counts[host] = self.ages[host] = _GONE
        self.free_bytes[host] = -_GONE
        self.bound = self._bound()
        rehomed = self._placement.changed()
        return lost if rehomed is None else rehomed

    def join(self) -> int | None:
        """Adds an empty host; returns how many models have another home now."""
        age = min(self.ages)
        self.loads.append(0)
        self.counts.append(0)
        self.free_bytes.append(self.terms.budget_bytes)
        self.ages.append(age)
        self._rules.append(self._rule())
        self._rules[-1].age = max(0, age)  # the new host's models are worth what they would be elsewhere
        for column in (self._requests, self._cold_starts, self._moved):
            column.append(0)
        self.bound = self._bound()
        return self._placement.changed() or 0

    def resize(self, change_bytes: int) -> None:
        """Gives the first host more memory or less; who does not fit any more leaves."""
        self.free_bytes[0] += change_bytes
        while self.free_bytes[0] < 0:
            self._evict(0)

    # --- inside ----------------------------------------------------------------------------------

    def _bound(self) -> float:
        """A host gets no more requests than this in a window, rounded up: so somebody is always below it."""
        if not self.terms.bound:
            return _GONE
        return math.ceil(self.terms.bound * self.terms.window * self.terms.hosts / len(self.living))

    def _load(self, host: int, model: int, at: int) -> None:
        size_bytes = self.sizes[model]
        if size_bytes > self.terms.budget_bytes:
            self._refused += 1
            return
        while self.free_bytes[host] < size_bytes:
            self._evict(host)
        self._rules[host].load(model, at)
        self.free_bytes[host] -= size_bytes
        self.counts[host] += 1
        self.holders[model] = (*self.holders.get(model, ()), host)
        self._cold_starts[host] += 1
        self._moved[host] += size_bytes

    def _evict(self, host: int) -> None:
        rule = self._rules[host]
        model = rule.leave()
        self.ages[host] = rule.age
        self.free_bytes[host] += self.sizes[model]
        self.counts[host] -= 1
        self._evictions += 1
        self._not_there(host, model)

    def _not_there(self, host: int, model: int) -> None:
        others = tuple(other for other in self.holders[model] if other != host)
        if others:
            self.holders[model] = others
        else:
            del self.holders[model]
