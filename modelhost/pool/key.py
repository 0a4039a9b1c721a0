"""What a slot stands for."""

from __future__ import annotations

from typing import NamedTuple

from modelhost.repository import ModelFile


class ModelKey(NamedTuple):
    """A model and its version. A tuple, whose hash each request needs several times."""

    name: str
    version: str

    @classmethod
    def of(cls, file: ModelFile) -> ModelKey:
        """Returns the key of a model that was found on disk."""
        return cls(file.name, file.version)

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
