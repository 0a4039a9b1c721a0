"""Which variant is served, and what its runs take: pure, from what was measured.

The rule: a variant is as slow as its worst run against the fastest of all variants' runs with as many
rows. Of the variants whose outputs agree, those that fit into the room that there is, where any does;
of these, those within 10 % (and 0.2 ms) of the least slow one; of these, the one that holds the least
memory; where two are within 128 KB, the one that loads faster. Unless that one takes a multiple of
another's memory for a little time: what takes less than half, and 8 MB less, is served where it is not
slower by half.

The machine's other work gets into times, and not into bytes. So what so much less memory speaks for and
only its time against is measured again before that is believed (`doubted`, `with_fastest`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from modelhost.prepare.footprint import RunFootprint, RunPoint
from modelhost.prepare.manifest import RunFigures, Variant, VariantFigures
from modelhost.runtime.building_fit import fit
from modelhost.runtime.building_questions import Asking

_SLOWER: Final = 1.10
_SLOWER_MS: Final = 0.2
#: A host may hold a thousand models: a megabyte for each would not be the same.
_SAME_BYTES: Final = 128 << 10
#: How much slower may be what takes so much less, as a share of it and by itself.
_MUCH_SLOWER: Final = 1.5
_MUCH_LESS: Final = 0.5
_MUCH_LESS_BYTES: Final = 8 << 20


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


def choose(usable: Sequence[VariantFigures], stock: VariantFigures, *, room_bytes: int) -> tuple[Variant, str]:
    """Returns the variant to serve, and why: see the rule above. A load may take `room_bytes`."""
    if not usable:
        return "heap", "no variant opened and answered as the original does"
    chosen = _chosen(usable, stock, room_bytes)
    if chosen.resident_bytes >= stock.resident_bytes:
        return "heap", f"mapping saves nothing: {chosen.resident_bytes} bytes against {stock.resident_bytes}"
    return chosen.variant, (
        f"{chosen.resident_bytes} bytes held against {stock.resident_bytes} from the heap, loaded in "
        f"{chosen.load_ms:.1f} ms against {stock.load_ms:.1f}"
    )


def doubted(usable: Sequence[VariantFigures], stock: VariantFigures, *, room_bytes: int) -> VariantFigures | None:
    """Returns the least slow of what takes so much less than what would be chosen, and is not for its time."""
    if not usable:
        return None
    smaller = _much_smaller(usable, _chosen(usable, stock, room_bytes))
    slowness = _slowness(usable, stock)
    return min(smaller, key=lambda found: slowness[found.variant]) if smaller else None


def with_fastest(found: VariantFigures, again: Sequence[RunFigures]) -> VariantFigures:
    """Returns the figures with the less of two times for each run."""
    pairs = zip(found.runs, again, strict=True)
    return replace(found, runs=tuple(replace(run, ms=min(run.ms, other.ms)) for run, other in pairs))


def _chosen(usable: Sequence[VariantFigures], stock: VariantFigures, room_bytes: int) -> VariantFigures:
    slowness = _slowness(usable, stock)
    usable = [found for found in usable if _taken_bytes(found) <= room_bytes] or usable
    least_slow = min(slowness[found.variant] for found in usable)
    chosen = _smallest([found for found in usable if slowness[found.variant] <= least_slow * _SLOWER])
    smaller = [found for found in _much_smaller(usable, chosen) if slowness[found.variant] <= least_slow * _MUCH_SLOWER]
    return _smallest(smaller or [chosen])


def _slowness(usable: Sequence[VariantFigures], stock: VariantFigures) -> dict[Variant, float]:
    best = [min(found.runs[index].ms for found in [*usable, stock]) for index in range(len(stock.runs))]
    return {
        found.variant: max([1.0, *((run.ms - _SLOWER_MS) / ms for run, ms in zip(found.runs, best, strict=True))])
        for found in usable
    }


def _much_smaller(usable: Sequence[VariantFigures], chosen: VariantFigures) -> list[VariantFigures]:
    most_bytes = min(_taken_bytes(chosen) * _MUCH_LESS, _taken_bytes(chosen) - _MUCH_LESS_BYTES)
    return [found for found in usable if _taken_bytes(found) <= most_bytes]


def _taken_bytes(found: VariantFigures) -> int:
    """What a host has to have for it: a load is refused where its peak does not fit, however little stays."""
    return max(found.resident_bytes, found.peak_bytes)


def _smallest(candidates: Sequence[VariantFigures]) -> VariantFigures:
    """Returns what holds the least; of those that hold about as much, what loads faster."""
    least = min(found.resident_bytes for found in candidates)
    return min(
        (found for found in candidates if found.resident_bytes <= least + _SAME_BYTES), key=lambda found: found.load_ms
    )
