"""Which versions of a model are served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator

from modelhost.config.toml import parse_toml

_FORMS = 'expected "all", {latest = 2} or {specific = [1, 3]}'


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """All versions, or the highest so many, or some by name; as in Triton's configuration."""

    latest: int | None = None
    specific: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, value: Any) -> VersionPolicy:
        """Reads one as it is written in settings. Raises ValueError."""
        if isinstance(value, cls):
            return value
        if value == "all":
            return cls()
        if value == "latest":
            return cls(latest=1)
        if isinstance(value, str) and value.startswith("{"):  # from the environment
            with contextlib.suppress(ValueError):
                value = parse_toml(f"value = {value}")["value"]
        if isinstance(value, Mapping) and len(value) == 1:
            ((kind, what),) = value.items()
            if kind == "latest" and type(what) is int and what >= 1:
                return cls(latest=what)
            if kind == "specific" and isinstance(what, Sequence) and not isinstance(what, str) and what:
                return cls(specific=_versions(what))
        raise ValueError(f"{_FORMS}, got {value!r}")

    @property
    def is_all(self) -> bool:
        """Whether it leaves nothing out."""
        return self.latest is None and self.specific is None

    def choose(self, versions: Sequence[str]) -> tuple[str, ...]:
        """Returns those of `versions` (lowest first) that are served, in that order."""
        if self.specific is not None:
            return tuple([version for version in versions if version in self.specific])
        return tuple(versions if self.latest is None else versions[-self.latest :])

    def as_config(self) -> dict[str, Any]:
        """Returns it in the form of Triton's configuration."""
        if self.specific is not None:
            return {"specific": {"versions": [int(version) for version in self.specific]}}
        return {"all": {}} if self.latest is None else {"latest": {"num_versions": self.latest}}

    def __str__(self) -> str:
        if self.specific is not None:
            return f"specific {', '.join(self.specific)}"
        return "all" if self.latest is None else f"latest {self.latest}"


def _versions(values: Iterable[Any]) -> tuple[str, ...]:
    """Returns versions as the names of their folders. Raises ValueError."""
    found = tuple(str(value) for value in values)
    for version in found:
        if not (version.isascii() and version.isdigit() and version[0] != "0"):
            raise ValueError(f"a version is a number above 0, got {version!r}")
    return tuple(sorted(set(found), key=int))


Versions = Annotated[VersionPolicy, BeforeValidator(VersionPolicy.parse)]
