"""The models of a simulation: what each holds and what its load takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Fleet:
    """Models by number; arrays of one value for each."""

    size_bytes: NDArray[np.int64]
    load_s: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.size_bytes)

    def __deepcopy__(self, memo: object) -> Fleet:
        """It is never changed: copies of what uses it share it."""
        return self

    @property
    def total_bytes(self) -> int:
        """What all would hold at the same time."""
        return int(self.size_bytes.sum())


def mixed_sizes(
    models: int,
    *,
    seed: int,
    median_bytes: int = 8 * _MB,
    spread: float = 1.2,
    overhead_s: float = 0.005,
    bytes_per_s: float = 500e6,
) -> Fleet:
    """Returns models of log-normal sizes between 256 KB and 400 MB; a load takes `overhead_s` and its bytes' time.

    `spread` is the standard deviation of the sizes' logarithm; 0: all have the median. Files of trained models are
    spread about so: most are small, most bytes lie in few.
    """
    rng = np.random.default_rng(seed)
    sizes = median_bytes * np.exp(spread * rng.standard_normal(models))
    size_bytes = np.clip(sizes, _MB / 4, 400 * _MB).astype(np.int64)
    return Fleet(size_bytes, overhead_s + size_bytes / bytes_per_s)
