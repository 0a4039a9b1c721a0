"""What the launcher asks of a child, as it comes in through stdin, and how it is told that there is nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelhost.prepare.failures import Kind
from modelhost.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Job:
    """What the launcher asks for. Without a `folder` the model is only measured."""

    file: Path
    external: tuple[str, ...]
    """The model's other files, as it names them."""
    folder: Path | None
    inputs: tuple[TensorSpec, ...]
    non_tensor_inputs: tuple[str, ...]
    weight_bytes: int
    dimensions: Mapping[str, int]
    optimization: str
    custom_op_libraries: tuple[Path, ...]
    ceiling_bytes: int
    is_last: bool
    """Whether no higher ceiling will come, so that a variant that met it is done without."""
    parent: int

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Job:
        """Reads a job from its JSON form."""
        inputs = [
            TensorSpec(name, datatype, None if shape is None else tuple(shape), tuple(symbols))
            for name, datatype, shape, symbols in table.pop("inputs")
        ]
        folder = table.pop("folder")
        return cls(
            file=Path(table.pop("file")),
            folder=None if folder is None else Path(folder),
            external=tuple(table.pop("external")),
            inputs=tuple(inputs),
            non_tensor_inputs=tuple(table.pop("non_tensor_inputs")),
            custom_op_libraries=tuple(map(Path, table.pop("custom_op_libraries"))),
            **table,
        )


class BuildFailed(Exception):
    """There is nothing to report but this text, and of which kind it is."""

    def __init__(self, text: str, kind: Kind) -> None:
        super().__init__(text)
        self.kind: Kind = kind
