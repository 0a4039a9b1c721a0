"""Which variant is served, and what its runs take: pure, from what was measured.

The rule: a variant is as slow as its worst run against the fastest of all variants' runs with as many
rows; of the variants whose outputs agree and which are within 10 % (and 0.2 ms) of the least slow one,
the one that holds the least memory; where two are within 128 KB, the one that loads faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from modelhost.prepare.footprint import RunFootprint, RunPoint
from modelhost.prepare.manifest import RunFigures, Variant, VariantFigures
from modelhost.runtime.building_fit import fit
from modelhost.runtime.building_questions import Asking

_SLOWER: Final = 1.10
_SLOWER_MS: Final = 0.2
#: A host may hold a thousand models: a megabyte for each would not be the same.
_SAME_BYTES: Final = 128 << 10


def footprint(
    asking: Asking, points: Sequence[RunPoint], runs: Sequence[RunFigures], independent: bool | None
) -> RunFootprint | None:
    """Returns the line through the measured runs; None where an input's rank is open, as sizes are then."""
    if not asking.dims.fixed_rank:
        return None
    known = [RunPoint(asking.sizes_with(found.rows), found.bytes) for found in runs]
    sizes = [point.sizes for point in points]
    measured = (*(point for point in known if point.sizes not in sizes), *points)
    dims = asking.dims
    return RunFootprint(
        fit(measured, dims.rows, rows_independent=independent), dims.places, dims.rows, independent, measured
    )


def choose(usable: Sequence[VariantFigures], stock: VariantFigures) -> tuple[Variant, str]:
    """Returns the variant to serve, and why: see the rule above."""
    best = [min(found.runs[index].ms for found in [*usable, stock]) for index in range(len(stock.runs))]

    def slowness(found: VariantFigures) -> float:
        return max([1.0, *((run.ms - _SLOWER_MS) / ms for run, ms in zip(found.runs, best, strict=True))])

    if not usable:
        return "heap", "no variant opened and answered as the original does"
    least_slow = min(map(slowness, usable))
    candidates = [found for found in usable if slowness(found) <= least_slow * _SLOWER]
    least = min(found.resident_bytes for found in candidates)
    chosen = min(
        (found for found in candidates if found.resident_bytes <= least + _SAME_BYTES), key=lambda found: found.load_ms
    )
    if chosen.resident_bytes >= stock.resident_bytes:
        return "heap", f"mapping saves nothing: {chosen.resident_bytes} bytes against {stock.resident_bytes}"
    return chosen.variant, (
        f"{chosen.resident_bytes} bytes held against {stock.resident_bytes} from the heap, loaded in "
        f"{chosen.load_ms:.1f} ms against {stock.load_ms:.1f}"
    )
