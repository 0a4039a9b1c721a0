"""Inputs made up for a model: sizes for its free dimensions that it runs with, and seeded values."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from modelhost.prepare.footprint import RANK_TRIED, FreeDims
from modelhost.runtime.building_steps import StepFailed, reason
from modelhost.tensors import BF16, DTYPES, Array, TensorSpec, to_bfloat16

#: Sizes tried for free dimensions that are not rows, until the model runs with one; the second is for
#: the channels of what may be an image.
_SIZES: Final = ((16, 16), (1, 1), (8, 8), (32, 3), (64, 64), (64, 3), (224, 3), (32, 1), (224, 1))
_TRYING_S: Final = 60.0
#: The larger batch has so many times the rows of the smaller one; fewer where that takes more memory than there is.
_MORE_ROWS: Final = (8, 2)


@dataclass(frozen=True, slots=True)
class Asking:
    """How to make inputs that a model runs on. `batches` are the numbers of rows that it took."""

    specs: tuple[TensorSpec, ...]
    dims: FreeDims
    sizes: Mapping[str, int]
    is_random: bool
    batches: tuple[int, ...] = (1,)

    def feed_of(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Returns seeded inputs of these sizes; the same ones each time."""
        at = {place: sizes[name] for name, places in self.dims.places.items() for place in places}
        random = np.random.default_rng(list(sizes.values()))
        feed = {}
        for spec in self.specs:
            dims = spec.shape if spec.shape is not None else (-1,) * RANK_TRIED
            shape = [at.get((spec.name, axis), size) for axis, size in enumerate(dims)]
            feed[spec.name] = _value(DTYPES[spec.datatype], shape, random, is_random=self.is_random)
        return feed

    def question(self, rows: int) -> dict[str, Array]:
        """Returns seeded inputs with so many rows."""
        return self.feed_of(self.sizes_with(rows))

    def sizes_with(self, rows: int) -> dict[str, int]:
        """Returns the sizes with so many rows."""
        return {**self.sizes, self.dims.rows: rows} if self.dims.rows else dict(self.sizes)


def find_asking(session: Any, specs: Sequence[TensorSpec], given: Mapping[str, int]) -> Asking:
    """Finds sizes and values that the model runs with, those of `given` (by symbol or `INPUT:AXIS`) fixed.

    Raises StepFailed where there are none, and ValueError where `given` names no dimension.
    """
    free = FreeDims.of(specs)
    tied = free.with_rows_tied()
    layouts = [free] if tied.places == free.places else [free, tied]
    failure, deadline = "", time.monotonic() + _TRYING_S
    for sizes, is_random in ((sizes, is_random) for sizes in _SIZES for is_random in (True, False)):
        found: list[Asking] = []
        for asking in _askings(specs, layouts, sizes, given, is_random=is_random):
            batches: tuple[int, ...] = ()
            for tried in _batches(asking):
                try:
                    session.run(None, asking.question(tried[-1]))
                except Exception as error:
                    failure = failure or reason(error)
                    if not batches:
                        break
                else:
                    batches = tried
                    if len(tried) > 1:
                        break
            if batches:
                found.append(Asking(asking.specs, asking.dims, asking.sizes, is_random, batches))
        if found:
            return max(found, key=lambda asking: len(asking.batches))  # the first of those that took most
        if time.monotonic() > deadline:
            break
    raise StepFailed(f"it ran on none of the inputs made up for it: {failure}")


def _askings(
    specs: Sequence[TensorSpec],
    layouts: Sequence[FreeDims],
    sizes: tuple[int, int],
    given: Mapping[str, int],
    *,
    is_random: bool,
) -> Iterator[Asking]:
    ranks = {spec.name: len(spec.shape) for spec in specs if spec.shape is not None}
    for dims in layouts:
        guess = {name: _guess(places, sizes, ranks) for name, places in dims.places.items()}
        if dims.rows:
            guess[dims.rows] = 1
        yield Asking(tuple(specs), dims, guess | dims.resolve(given), is_random)


def _guess(places: Sequence[tuple[str, int]], sizes: tuple[int, int], ranks: Mapping[str, int]) -> int:
    size, channels = sizes
    return channels if any(axis == 1 and ranks.get(at) == 4 for at, axis in places) else size


def _batches(asking: Asking) -> Iterator[tuple[int, ...]]:
    """Yields the numbers of rows to try: the last of each, after those before it."""
    rows = asking.sizes.get(asking.dims.rows, 1)
    yield (rows,)
    if asking.dims.rows:
        for factor in _MORE_ROWS:
            yield (rows, rows * factor)


def _value(dtype: np.dtype[Any], shape: Sequence[int], random: np.random.Generator, *, is_random: bool) -> Array:
    """Makes up a value; what is not random is all ones, which sizes, scales and counts may have to be."""
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if dtype == BF16:
        return to_bfloat16(_value(np.dtype(np.float32), shape, random, is_random=is_random))
    if not is_random:
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        values: Array = random.standard_normal(shape, np.float32)
        return np.asarray(values).astype(dtype, copy=False)
    # Numbers may be indices, of which 0 and 1 are there most often.
    return np.asarray(random.integers(0, 2, shape, np.int8)).astype(dtype)
