"""What a slot stands for."""

from __future__ import annotations

from dataclasses import dataclass

from modelhost.repository import ModelFile


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """A model and its version."""

    name: str
    version: str

    @classmethod
    def of(cls, file: ModelFile) -> ModelKey:
        """Returns the key of a model that was found on disk."""
        return cls(file.name, file.version)

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
