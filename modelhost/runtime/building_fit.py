"""A sum of terms through measured runs: few of them, none negative, nowhere below a measured point. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from modelhost.prepare.footprint import RunPoint, Term

_Floats = NDArray[np.float64]

#: So much of a figure may be noise of the process, not the model's: pages of code, of lists, of counters. It
#: is a term of its own, so that a small run's noise is not taken for what rows take.
_NOISE_BYTES: Final = 64 << 10
#: A further term has to make the worst point better by so much.
_WORTH: Final = 0.02
_MAX_TERMS: Final = 4
#: Combinations tried; with more candidates, one term at a time is added.
_MAX_SUBSETS: Final = 2000


def fit(points: Sequence[RunPoint], rows: str, *, rows_independent: bool | None) -> tuple[Term, ...]:
    """Returns the terms of bytes by sizes; empty where nothing was measured.

    With a dimension that only one size was measured of, bytes are taken to grow in proportion.
    """
    if not points:
        return ()
    steady = {
        name: size for name, size in points[0].sizes.items() if all(point.sizes[name] == size for point in points)
    }
    noise, *terms = _fit_varied(points, rows, rows_independent=rows_independent)
    share = 1.0
    for size in steady.values():
        share /= max(1, size)
    return (noise, *(Term(term.bytes * share, (*term.dims, *steady)) for term in terms))


def _fit_varied(points: Sequence[RunPoint], rows: str, *, rows_independent: bool | None) -> tuple[Term, ...]:
    """Returns the noise and the terms of the dimensions that were varied."""
    measured = np.array([point.bytes for point in points], float)
    candidates = _candidates(points, rows, rows_independent=rows_independent)
    columns = np.array([[_product(point, dims) for dims in candidates] for point in points], float)
    # Relative errors count: a small run matters as much as a large one, as far as it is not noise.
    unit = measured + _NOISE_BYTES
    # The largest run is taken as it is: noise is the least of it, and what larger ones take is seen there.
    noise = _NOISE_BYTES * (1 - measured / max(1.0, measured.max()))
    problem = _Problem(columns / unit[:, None], measured / unit, np.maximum(0, measured - noise) / unit)
    best: tuple[int, ...] = ()
    best_cost = np.inf if problem.needed.any() else 0.0
    for subset in _subsets(problem) if problem.needed.any() else ():
        cost = _cost(problem, subset)[0]
        if cost < best_cost:
            best, best_cost = subset, cost
    if not np.isfinite(best_cost):  # nothing fits: as much as was ever seen
        return (Term(float(_NOISE_BYTES)), Term(float(measured.max())))
    values = _cost(problem, best)[1] if best else np.zeros(0)
    # A bound, so rounded up: what is cut off here would put a point above it.
    return (
        Term(float(_NOISE_BYTES)),
        *(
            Term(float(np.ceil(value * 1000) / 1000), candidates[index])
            for index, value in zip(best, values, strict=True)
            if value > 0
        ),
    )


def _candidates(points: Sequence[RunPoint], rows: str, *, rows_independent: bool | None) -> list[tuple[str, ...]]:
    """Returns the products that bytes may grow with: of dimensions that were varied, two beside the rows."""
    varied = [name for name in points[0].sizes if len({point.sizes[name] for point in points}) > 1]
    others = [name for name in varied if name != rows]
    products: list[tuple[str, ...]] = [(), *((name,) for name in others), *itertools.combinations(others, 2)]
    squares = [(name, name) for name in others]
    if rows not in varied:
        return products + squares
    # What each row has for itself grows with the rows. Scratch space need not, but has no squares.
    found = [*products, *((rows, *product) for product in products + squares)]
    return found if rows_independent is True else [*found, *squares, (rows, rows)]


def _product(point: RunPoint, dims: tuple[str, ...]) -> float:
    product = 1.0
    for name in dims:
        product *= point.sizes[name]
    return product


@dataclass(frozen=True, slots=True)
class _Problem:
    """Rows are points, in shares of each: what the candidates give, what was measured, what a sum has to reach."""

    columns: _Floats
    measured: _Floats
    needed: _Floats


def _subsets(problem: _Problem) -> list[tuple[int, ...]]:
    points, count = problem.columns.shape
    sizes = range(1, min(_MAX_TERMS, points) + 1)
    found = [subset for size in sizes for subset in itertools.combinations(range(count), size)]
    if len(found) <= _MAX_SUBSETS:
        return found
    grown: list[tuple[int, ...]] = [()]
    for _ in sizes:  # many dimensions: the best one more, again and again
        tried = [(*grown[-1], index) for index in range(count) if index not in grown[-1]]
        grown.append(min(tried, key=lambda subset: _cost(problem, subset)[0]))
    return grown[1:]


def _cost(problem: _Problem, subset: tuple[int, ...]) -> tuple[float, _Floats]:
    """Returns how far the lifted sum is above the points, with a price for each term, and its factors."""
    part = problem.columns[:, subset]
    values: _Floats = np.linalg.lstsq(part, problem.measured, rcond=None)[0].astype(np.float64)
    reached, is_needed = part @ values, problem.needed > 0
    if (values < 0).any() or (reached[is_needed] <= 0).any():
        return np.inf, values
    values = values * (problem.needed[is_needed] / reached[is_needed]).max()
    over = np.abs(part @ values - problem.measured)
    return float(over.max() + over.mean()) / 2 + _WORTH * len(subset), values
