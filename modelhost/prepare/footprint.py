"""What one run takes, as a function of the sizes that a request may choose. Pure.

A child measured some runs and fitted a sum through them: a constant, so much for each row, so much for
each row and step of a sequence, and so on. Before a run the host fills in the sizes of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
