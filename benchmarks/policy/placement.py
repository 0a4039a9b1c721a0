"""Which host gets a request: placements as a router in front of many hosts would decide them.

All but `one` keep to the cluster's bound on load: a host that has it gets no request that another can have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy.cluster import Cluster, Placement

#: Of splitmix64, by S. Vigna.
_BITS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))
_ODD: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class One:
    """The first host: the yardstick is one that has the memory of all."""

    def __init__(self, cluster: Cluster) -> None:
        pass

    def choose(self, model: int) -> int:
        """See Placement."""
        return 0

    def changed(self) -> int | None:
        """See Placement."""
        return None


class Turns:
    """Each host in turn, whatever is wanted: what a balancer does that does not know models, such as a Service."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._living = cluster.living
        self._turn = 0

    def choose(self, model: int) -> int:
        """See Placement."""
        self._turn = turn = (self._turn + 1) % len(self._living)
        return self._living[turn]

    def changed(self) -> int | None:
        """See Placement."""
        self._living = self._cluster.living
        return None


class Multiplexing:
    """Where it is held, by the less busy of two; else the host with the fewest models, whatever they hold.

    The routing of Ray Serve for multiplexed models (`MultiplexMixin` in its request router): replicas that have the
    model, of which two are drawn; then those with the fewest models. Its bound is `max_ongoing_requests`.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._loads, self._counts = cluster, cluster.loads, cluster.counts
        self._holders = cluster.holders
        self._random = random.Random(0)

    def choose(self, model: int) -> int:
        """See Placement."""
        loads, bound = self._loads, self._cluster.bound
        held = self._holders.get(model)
        if held is not None:
            host = held[0]
            if len(held) > 1:
                host, other = held if len(held) == 2 else self._random.sample(held, 2)
                if loads[other] < loads[host]:
                    host = other
            if loads[host] < bound:
                return host
        counts = self._counts
        host = counts.index(min(counts))
        if loads[host] < bound:
            return host
        return min(_below(loads, bound), key=counts.__getitem__)

    def changed(self) -> int | None:
        """See Placement."""
        return None


class Rendezvous:
    """The host whose hash with the model is highest (D. G. Thaler, C. V. Ravishankar, "Using Name-Based Mappings to
    Increase Hit Rates", IEEE/ACM Transactions on Networking 6, 1998), with bounded load: at its bound the next highest.

    The bound is that of V. Mirrokni, M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018,
    on requests in place of keys, as HAProxy has it. Nothing has to be known of what hosts hold.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._loads = cluster, cluster.loads
        self._models = np.arange(len(cluster.fleet), dtype=np.uint64)
        self._orders: dict[int, list[int]] = {}
        """Of models that met a bound, the hosts by their hashes."""
        self._homes: list[int] = self._found().tolist()

    def choose(self, model: int) -> int:
        """See Placement."""
        host = self._homes[model]
        loads, bound = self._loads, self._cluster.bound
        return host if loads[host] < bound else self._next(model, bound)

    def _next(self, model: int, bound: float) -> int:
        loads = self._loads
        order = self._orders.get(model)
        if order is None:
            living = np.array(self._cluster.living)
            order = living[np.argsort(~hashes(np.uint64(model), living.astype(np.uint64)), kind="stable")].tolist()
            self._orders[model] = order
        return next(host for host in order if loads[host] < bound)

    def changed(self) -> int:
        """See Placement."""
        self._orders.clear()
        found = self._found()
        rehomed = int((found != np.array(self._homes)).sum())
        self._homes = found.tolist()
        return rehomed

    def _found(self) -> NDArray[np.int64]:
        best = np.zeros(len(self._models), np.uint64)
        homes = np.full(len(self._models), -1)
        for host in self._cluster.living:
            scores = hashes(self._models, np.array([host], np.uint64))
            is_better = (scores > best) | (homes < 0)
            best[is_better], homes[is_better] = scores[is_better], host
        return homes


class HeldOrHome(Rendezvous):
    """Where it is held, by the least busy; else its home, as `Rendezvous` has it: the routing of `modelhost[ray]`.

    Its bound is `busy_at`. That a home is short of memory counts for nothing here: all are, all the time.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._holders = cluster.holders

    def choose(self, model: int) -> int:
        """See Placement."""
        held = self._holders.get(model)
        if held is not None:
            host = held[0] if len(held) == 1 else min(held, key=self._loads.__getitem__)
            if self._loads[host] < self._cluster.bound:
                return host
        return super().choose(model)


class MemoryAware:
    """Where it is held, by the least busy; else the host with most free memory, where it fits; else the one whose last
    victim was worth least (`lru`: was not used for longest).

    A model whose hosts are all at their bound gets a further one: the hot ones have copies, others have none.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self._loads, self._sizes = cluster, cluster.loads, cluster.sizes
        self._holders, self._free, self._ages = cluster.holders, cluster.free_bytes, cluster.ages

    def choose(self, model: int) -> int:
        """See Placement."""
        loads, bound = self._loads, self._cluster.bound
        held = self._holders.get(model)
        if held is not None:
            host = held[0] if len(held) == 1 else min(held, key=loads.__getitem__)
            if loads[host] < bound:
                return host
        free = self._free
        most = max(free)
        if most >= self._sizes[model]:
            host = free.index(most)
            if loads[host] < bound:
                return host
            below = _below(loads, bound)
            host = max(below, key=free.__getitem__)
            return host if free[host] >= self._sizes[model] else min(below, key=self._ages.__getitem__)
        host = self._ages.index(min(self._ages))
        return host if loads[host] < bound else min(_below(loads, bound), key=self._ages.__getitem__)

    def changed(self) -> int | None:
        """See Placement."""
        return None


def hashes(models: NDArray[np.uint64] | np.uint64, hosts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 bits for each model with a host, or a model with each host: two rounds of splitmix64."""
    mixed = models ^ (hosts * _ODD[1])
    for _ in range(2):
        mixed = mixed + _ODD[0]
        mixed = (mixed ^ (mixed >> _BITS[0])) * _ODD[1]
        mixed = (mixed ^ (mixed >> _BITS[1])) * _ODD[2]
        mixed = mixed ^ (mixed >> _BITS[2])
    return mixed


def _below(loads: list[float], bound: float) -> list[int]:
    return [host for host, load in enumerate(loads) if load < bound]


#: By the name that the command line has for them.
PLACEMENTS: Final[Mapping[str, Callable[[Cluster], Placement]]] = {
    "turns": Turns,
    "multiplexing": Multiplexing,
    "rendezvous": Rendezvous,
    "homes": HeldOrHome,
    "memory": MemoryAware,
}
