"""Serve's request router for replicas of a host: `routing.ranks` with what replicas have told of themselves.

All of it is Ray's public interface: the id of the model comes with the handle's `multiplexed_model_id`, and what a
replica has loaded by its `record_routing_stats`. Serve's own multiplexing tells its routers only of models in the cache
of `@serve.multiplexed`, which evicts what is in use and loads one model at a time.

Ray pickles this class by value; all else it comes to by import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from modelhost.cluster.routing import BUSY_AT, Standing, ranks


class ModelRouter(RequestRouter):  # type: ignore[misc]
    """Offers a request to where its model lives. Serve's router thread."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Takes `busy_at` from `request_router_kwargs`."""
        self._busy_at = int(kwargs.get("busy_at", BUSY_AT))
        self._read: dict[str, tuple[Mapping[str, Any], Standing]] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Returns the replicas in groups, the best first: Serve takes the shortest queue of the first that has room."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        model, avoided = "", ()
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else it would ask again without a pause
            model = pending_request.metadata.multiplexed_model_id
            avoided = pending_request.kwargs.get("refused_by", ())
        cache = self.replica_queue_len_cache
        queued = {name: cache.get(replica.replica_id) or 0 for name, replica in by_name.items()}
        standings = self._standings({name: replica.routing_stats for name, replica in by_name.items()})
        found = ranks(model, standings, queued, avoided=avoided, busy_at=self._busy_at)
        return [[by_name[name] for name in group] for group in found]

    def _standings(self, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Standing]:
        """Reads what replicas have told, of each once until it tells something else."""
        former = self._read
        self._read = {
            name: former[name] if name in former and former[name][0] is one else (one, Standing.of(one))
            for name, one in told.items()
        }
        return {name: standing for name, (_, standing) in self._read.items()}
