"""What `serve run modelhost.cluster.ray:build key=value …` takes, and what it makes of the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelhost.config import Settings, load_settings
from modelhost.errors import ConfigError
from modelhost.host import Budgets
from modelhost.units import parse_size

#: A replica's share where neither the arguments nor the settings say one.
DEFAULT_SHARE = "1GB"


class Arguments(BaseModel):
    """Everything else stands in modelhost.toml, as for one host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path | None = None
    """Settings file; by default `modelhost.toml`, where there is one."""
    models: Path | None = None
    """Directory with the models, in the same place on every node (`models.directory`)."""
    memory: str | None = None
    """Each replica's share, as `1GB` (`memory.limit`); what Ray books on the node for it, too."""
    replicas: int | None = Field(None, ge=1)
    """So many, always; else as many as are wanted, from `min_replicas` to `max_replicas`."""
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    cpus: float = Field(1.0, ge=0)
    """What Ray books of a node's processors for each replica."""
    requests_per_replica: int = Field(8, ge=1)
    """Requests that wait or run, of each replica, from which on there should be more replicas."""
    busy_at: int = Field(16, ge=1)
    """Requests at one replica from which on a model that it has is loaded by another one as well."""
    max_ongoing_requests: int = Field(256, ge=1)
    """Requests that a replica is given at one moment."""
    ingress: Literal["head"] | int = "head"
    """`head`: one ingress, on the head node; else so many, at most one on each node."""

    @classmethod
    def of(cls, given: dict[str, Any]) -> Arguments:
        """Reads what was given on the command line. Raises ConfigError that names what is wrong."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ConfigError(f"arguments of the application: {found}") from None

    def settings(self) -> Settings:
        """Returns the settings of each replica. Raises ConfigError.

        Paths are those of this machine, made absolute: a replica starts elsewhere. What a replica counts goes with it,
        and what listens is Serve: the sections `server` and `state` have little to say.
        """
        found = load_settings(file=self.config, flags={"models.directory": self.models, "memory.limit": self.memory})
        if found.server.workers != 1 or found.server.grpc_port is not None:
            raise ConfigError("server.workers and server.grpc_port are for hosts that listen: leave them out here")
        if found.memory.policy == "adaptive":
            raise ConfigError("memory.policy is adaptive, which learns from one process: a replica has a fixed share")
        share_bytes = found.memory.limit or parse_size(DEFAULT_SHARE)
        memory = _with(found.memory, limit=share_bytes)
        models = _with(found.models, directory=found.models.directory.resolve())
        cache = found.prepare.cache
        prepare = found.prepare if cache is None else _with(found.prepare, cache=cache.resolve())
        state = _with(found.state, keep_statistics=False, keep_learnt=False)
        keys = found.security.keys_file
        security = found.security if keys is None else _with(found.security, keys_file=keys.resolve())
        made = found.model_copy(
            update={"memory": memory, "models": models, "prepare": prepare, "state": state, "security": security}
        )
        Budgets.resolve(made, limit_bytes=share_bytes, usage_bytes=0)  # what cannot be is said here, not by a replica
        return made


def _with(section: Any, **changes: Any) -> Any:
    """Returns a section with other values, checked as those of a file are."""
    return type(section).model_validate({**section.model_dump(exclude_unset=True), **changes})
