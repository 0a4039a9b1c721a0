"""The host on Ray Serve: `serve run modelhost.cluster.ray:app`, or `:build` with arguments.

    serve run modelhost.cluster.ray:build config=modelhost.toml replicas=3 memory=1GB

Two deployments: replicas, each a host within its share of memory, and an ingress that speaks V2. See docs/ray-serve.md.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from typing import Any, Final

from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, TaskCancelledError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from modelhost.api.access import Guard
from modelhost.cluster import scaling
from modelhost.cluster.arguments import Arguments
from modelhost.cluster.attempts import ReplicaLost
from modelhost.cluster.ingress import Ingress
from modelhost.cluster.messages import Answered, Asked
from modelhost.cluster.replica import Replica
from modelhost.config import Settings
from modelhost.errors import HostStarting
from modelhost.memory import allocator
from modelhost.security.keys import Key
from modelhost.security.ring import KeyRing, take_from

#: How often the controller asks replicas what they have loaded, and tells the ingress where that has changed.
_TOLD_EVERY_S: Final = 1.0

#: Serve ends a replica by force so much later than the host would have drained.
_GRACE_S: Final = 5.0

#: A resource that Ray gives the head node, and only that.
_HEAD: Final = "node:__internal_head__"

_INGRESS_REQUESTS: Final = 1024


class HostReplica:
    """A replica, as Serve starts it: an actor with one event loop for all of these."""

    async def __init__(self, settings: Settings, keys: tuple[Key, ...]) -> None:  # type: ignore[misc]
        allocator.configure()
        self._replica = Replica(serve.get_replica_context().replica_tag, settings, keys)
        await self._replica.open()

    async def answer(self, asked: Asked, body: bytes, refused_by: Collection[str] = ()) -> Answered | None:
        """Answers one request; see Replica.answer."""
        return await self._replica.answer(asked, body, refused_by=refused_by)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Told to the ingress by Serve."""
        return self._replica.standing()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Told to the autoscaler by Serve."""
        return self._replica.demand()

    async def __del__(self) -> None:
        """Called by Serve when all requests are answered."""
        if hasattr(self, "_replica"):  # not where it could not be made
            await self._replica.close()


class HostIngress:
    """The ingress, as Serve starts it."""

    def __init__(
        self, replicas: DeploymentHandle[Any], settings: Settings, keys: tuple[Key, ...], share_bytes: int
    ) -> None:
        ring = KeyRing.of(settings.security, keys)
        guard = None if ring is None else Guard(ring)
        self._ingress = Ingress(Handle(replicas), settings, share_bytes=share_bytes, guard=guard)

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._ingress


class Handle:
    """The replicas behind a Serve handle; implements attempts.Replicas, and translates what Ray raises."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def ask(self, model: str, asked: Asked, body: bytes, refused_by: Collection[str]) -> Answered | None:
        """See Replicas."""
        call = self._handle.options(multiplexed_model_id=model).answer
        try:
            found: Answered | None = await call.remote(asked, body, refused_by=refused_by)
        except DeploymentUnavailableError as error:
            raise HostStarting(f"the replicas could not be deployed: {error}") from None
        except TaskCancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # it is us who have cancelled it
                raise asyncio.CancelledError from None
            raise ReplicaLost(type(error).__name__) from None
        except (RayError, RayServeException) as error:
            if not _is_loss(error):
                raise
            raise ReplicaLost(type(error).__name__, is_gone=not isinstance(error, ActorUnavailableError)) from None
        return found

    async def ask_all(self, asked: Asked, body: bytes, *, timeout_s: float) -> list[Answered]:
        """See Replicas."""
        try:
            found = self._handle.broadcast("answer", asked, body)
            answers = await found.results_async(timeout_s=timeout_s, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            return []
        return sorted((one for one in answers if isinstance(one, Answered)), key=lambda one: one.replica)


def _is_loss(error: Exception) -> bool:
    """Says whether an error is the replica's end, and not what its code has raised, which has a cause."""
    return isinstance(error, RayActorError) or not hasattr(error, "cause")


def build(arguments: dict[str, str]) -> serve.Application:
    """Returns the application; `arguments` are those of `Arguments`. Raises ConfigError."""
    given = Arguments.of(dict(arguments))
    settings, keys = given.settings(), take_from(os.environ)
    share_bytes = settings.memory.limit
    assert share_bytes is not None
    replicas = serve.deployment(
        HostReplica,
        name="Host",
        max_ongoing_requests=given.max_ongoing_requests,
        ray_actor_options={"num_cpus": given.cpus, "memory": share_bytes},
        graceful_shutdown_timeout_s=settings.server.drain_timeout + _GRACE_S,
        request_router_config=RequestRouterConfig(
            request_router_class="modelhost.cluster.router.ModelRouter",
            request_router_kwargs={"busy_at": given.busy_at},
            request_routing_stats_period_s=_TOLD_EVERY_S,
        ),
        logging_config={"enable_access_log": settings.logging.access},
        **_number(given),
    )
    ingress = serve.deployment(
        serve.ingress()(HostIngress),
        name="Ingress",
        max_ongoing_requests=_INGRESS_REQUESTS,
        logging_config={"enable_access_log": settings.logging.access},
        **_places(given),
    )
    return ingress.bind(replicas.bind(settings, keys), settings, keys, share_bytes)


def _number(given: Arguments) -> dict[str, Any]:
    if given.replicas is not None:
        return {"num_replicas": given.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=given.min_replicas,
            max_replicas=max(given.min_replicas, given.max_replicas),
            target_ongoing_requests=given.requests_per_replica,
            upscale_delay_s=10.0,
            policy=AutoscalingPolicy(policy_function=scaling.wanted),
        )
    }


def _places(given: Arguments) -> dict[str, Any]:
    """The head node's end is the cluster's; an ingress elsewhere would end with its node, and its requests with it."""
    if given.ingress == "head":
        return {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0, "resources": {_HEAD: 0.001}}}
    return {"num_replicas": given.ingress, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0}}


def __getattr__(name: str) -> Any:
    """`app` is made when somebody asks for it: replicas import this module too, and read no settings."""
    if name == "app":
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
