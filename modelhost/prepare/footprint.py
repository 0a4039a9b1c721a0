"""What one run takes, as a function of the sizes that a request may choose. Pure.

A child measured some runs and fitted a sum through them: a constant, so much for each row, so much for
each row and step of a sequence, and so on. Before a run the host fills in the sizes of its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelhost.tensors import TensorSpec

#: Inputs that do not state their rank are tried with so many dimensions.
RANK_TRIED = 2

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Term:
    """`bytes` times the sizes of the dimensions named; one that is named twice counts squared."""

    bytes: float
    dims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunPoint:
    """One measured run: the sizes of the free dimensions, and the bytes that it took at most."""

    sizes: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, slots=True)
class RunFootprint:
    """Bytes of a run by the sizes of its inputs; nowhere below what was measured."""

    terms: tuple[Term, ...]
    dims: Mapping[str, tuple[tuple[str, int], ...]]
    """Where each free dimension stands: names of inputs, and axes; in several places where they share it."""
    rows: str = ""
    """The dimension that counts the rows of a batch; empty where there is none."""
    rows_independent: bool | None = None
    """Whether a row's answer is the same whatever rows are beside it; None where that could not be tried."""
    measured: tuple[RunPoint, ...] = ()

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> RunFootprint:
        """Reads one from its JSON form. Raises ValueError, KeyError, TypeError or AttributeError where it is none."""
        footprint = cls(
            terms=tuple(Term(term["bytes"], tuple(term["dims"])) for term in table["terms"]),
            dims={name: tuple((at, axis) for at, axis in places) for name, places in table["dims"].items()},
            rows=table["rows"],
            rows_independent=table["rows_independent"],
            measured=tuple(RunPoint(dict(point["sizes"]), point["bytes"]) for point in table["measured"]),
        )
        footprint._check()
        return footprint

    def predict(self, shapes: Shapes) -> int | None:
        """Returns the bytes of a run on inputs of these shapes; None where they are not as was measured."""
        sizes = self._sizes(shapes)
        return None if sizes is None else self._bytes(sizes)

    def largest_rows(self, shapes: Shapes, ceiling_bytes: int) -> int | None:
        """Returns how many rows fit under a ceiling, the other sizes being as in `shapes`.

        0 where not even one does; None where the model has no rows, or shapes are not as was measured.
        """
        sizes = self._sizes(shapes)
        if sizes is None or not self.rows:
            return None
        low, high = 0, max(1, sizes[self.rows])
        while self._bytes({**sizes, self.rows: high}) <= ceiling_bytes and high < 1 << 40:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._bytes({**sizes, self.rows: middle}) <= ceiling_bytes:
                low = middle
            else:
                high = middle
        return low

    def _check(self) -> None:
        """Raises ValueError where a value is of another kind than it has to be."""
        places = [place for places in self.dims.values() for place in places]
        if not all(isinstance(at, str) and type(axis) is int and axis >= 0 for at, axis in places):
            raise ValueError("not a footprint: a place is no input and axis")
        if not all(self.dims.values()) or self.rows not in {"", *self.dims}:
            raise ValueError("not a footprint: a dimension stands nowhere")
        if self.rows_independent not in (None, True, False) or type(self.rows_independent) in (int, float):
            raise ValueError("not a footprint: rows_independent is neither true nor false nor null")
        numbers = [term.bytes for term in self.terms] + [point.bytes for point in self.measured]
        if any(type(number) not in (int, float) or not 0 <= number < math.inf for number in numbers):
            raise ValueError("not a footprint: bytes are no number")
        named = [name for term in self.terms for name in term.dims]
        if not set(named).union(*(point.sizes for point in self.measured)) <= set(self.dims):
            raise ValueError("not a footprint: a dimension that it does not have")
        if any(type(size) is not int or size < 0 for point in self.measured for size in point.sizes.values()):
            raise ValueError("not a footprint: a size is no number")

    def _sizes(self, shapes: Shapes) -> dict[str, int] | None:
        try:
            return {name: max(shapes[at][axis] for at, axis in places) for name, places in self.dims.items()}
        except (KeyError, IndexError):
            return None

    def _bytes(self, sizes: Mapping[str, int]) -> int:
        total = 0.0
        for term in self.terms:
            product = term.bytes
            for name in term.dims:
                product *= sizes[name]
            total += product
        return int(total)


@dataclass(frozen=True, slots=True)
class FreeDims:
    """The dimensions of a model's inputs that a request may choose: names, and where each stands."""

    places: Mapping[str, tuple[tuple[str, int], ...]]
    rows: str
    """The one that counts the rows of a batch: the first free first dimension; empty where there is none."""
    fixed_rank: bool = True
    """False where an input does not state its rank; it is then taken for one of `RANK_TRIED` dimensions."""

    @classmethod
    def of(cls, specs: Sequence[TensorSpec]) -> FreeDims:
        """Collects them. Equal symbols are one dimension, and so are first dimensions that have no name."""
        places: dict[str, list[tuple[str, int]]] = {}
        rows = ""
        for spec in specs:
            shape = spec.shape if spec.shape is not None else (-1,) * RANK_TRIED
            names = spec.dim_names if len(spec.dim_names) == len(shape) else ("",) * len(shape)
            for axis, (size, symbol) in enumerate(zip(shape, names, strict=True)):
                if size >= 0:
                    continue
                name = symbol or (rows if axis == 0 and rows else f"{spec.name}:{axis}")
                rows = rows or (name if axis == 0 else "")
                places.setdefault(name, []).append((spec.name, axis))
        found = {name: tuple(where) for name, where in places.items()}
        return cls(found, rows, all(spec.shape is not None for spec in specs))

    def with_rows_tied(self) -> FreeDims:
        """Returns the same with all dimensions that stand first somewhere being one: the rows."""
        tied = [name for name, where in self.places.items() if any(axis == 0 for _, axis in where)]
        places = {name: where for name, where in self.places.items() if name not in tied}
        if self.rows:
            places = {self.rows: tuple(place for name in tied for place in self.places[name]), **places}
        return FreeDims(places, self.rows, self.fixed_rank)

    def resolve(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Returns sizes by this value's names, given by symbol or `INPUT:AXIS`.

        Raises ValueError that names the free dimensions, where one is given that there is not.
        """
        known = {f"{at}:{axis}": name for name, where in self.places.items() for at, axis in where}
        known |= {name: name for name in self.places}
        for name in sizes:
            if name not in known:
                there_are = ", ".join(f"'{free}'" for free in self.places) or "none"
                raise ValueError(f"the model has no dimension '{name}' of any size; it has {there_are}")
        return {known[name]: size for name, size in sizes.items()}
