"""What is known of a prepared model, as it stands beside it in `manifest.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, get_args

from modelhost.prepare.footprint import RunFootprint

#: Raised whenever the meaning of a field changes; an artifact of another schema is made again.
SCHEMA: Final = 2

#: How the weights get into memory: as pages of the file with their packed copies, as pages of the
#: file without packing, or (where neither serves) the original model from the heap.
Variant = Literal["mapped", "mapped_unpacked", "mapped_prepacked", "heap"]


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One measured run: `rows` in the first dimension, bytes that it took at most, milliseconds."""

    rows: int
    bytes: int
    ms: float


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """What was measured of one variant; the choice rests on these."""

    variant: Variant
    load_ms: float
    resident_bytes: int
    peak_bytes: int
    runs: tuple[RunFigures, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One artifact. `files` gives size, modification time (ns) and SHA-256 of each file."""

    key: str
    variant: Variant
    reason: str
    """Why this variant: in words, with figures."""
    resident_bytes: int
    peak_bytes: int
    weights_bytes: int
    tolerance: float
    """Largest difference to the original's outputs on the same inputs, as a share of the largest number
    in the tensor; 0 where they are equal."""
    figures: tuple[VariantFigures, ...]
    run: RunFootprint | None = None
    """What runs of the chosen variant take; None where the model could not be run on made-up inputs."""
    ceiling_bytes: int = 0
    """The memory ceiling that a variant met, which might have been the better one; 0 where none did."""
    files: Mapping[str, tuple[int, int, str]] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Returns the manifest as it is written."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads a manifest. Raises ValueError where it is not one of this schema."""
        try:
            table: dict[str, Any] = json.loads(text)
            if table.get("schema") != SCHEMA:
                raise ValueError(f"schema {table.get('schema')!r}, expected {SCHEMA}")
            table["figures"] = tuple(
                VariantFigures(**{**figures, "runs": tuple(RunFigures(**run) for run in figures["runs"])})
                for figures in table["figures"]
            )
            table["run"] = None if table["run"] is None else RunFootprint.from_table(table["run"])
            table["files"] = {
                name: (int(size), int(mtime_ns), str(digest))
                for name, (size, mtime_ns, digest) in table["files"].items()
            }
            manifest = cls(**table)
            manifest._check()
        except (AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a manifest: {error!r}") from None
        return manifest

    def _check(self) -> None:
        """Raises ValueError where a value is of another kind than it has to be."""
        numbers = [self.resident_bytes, self.peak_bytes, self.weights_bytes, self.tolerance, self.ceiling_bytes]
        for figures in self.figures:
            numbers += [figures.load_ms, figures.resident_bytes, figures.peak_bytes]
            numbers += [number for run in figures.runs for number in (run.rows, run.bytes, run.ms)]
        if any(type(number) not in (int, float) or not 0 <= number < math.inf for number in numbers):
            raise ValueError("not a manifest: a figure is no number")
        variants = [figures.variant for figures in self.figures]
        if not all(isinstance(text, str) for text in (self.key, self.reason, *variants)):
            raise ValueError("not a manifest: a name is no text")
        if not set(variants) <= set(get_args(Variant)) or not {"heap", self.variant} <= set(variants):
            raise ValueError("not a manifest: the figures are not those of its variants")
