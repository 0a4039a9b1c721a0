"""What a slot stands for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """A model and its version."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"
