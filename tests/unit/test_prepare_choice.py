"""Which variant is chosen from which figures."""

from __future__ import annotations

import pytest

from modelhost.prepare.manifest import RunFigures, Variant, VariantFigures
from modelhost.runtime.building_choice import choose

_MB = 1 << 20


def figures(variant: Variant, held_mb: float, *run_ms: float, load_ms: float = 5.0) -> VariantFigures:
    runs = tuple(RunFigures(rows, 4096, ms) for rows, ms in zip((1, 8), run_ms, strict=True))
    return VariantFigures(variant, load_ms, int(held_mb * _MB), int(held_mb * _MB), runs)


HEAP = figures("heap", 20, 5, 30, load_ms=60)


@pytest.mark.parametrize(
    ("usable", "expected"),
    [
        ([], "heap"),
        ([figures("mapped", 0.1, 5, 30)], "mapped"),
        # The least memory, as long as it is about as fast …
        ([figures("mapped", 20, 5, 30), figures("mapped_prepacked", 0.1, 5.2, 31)], "mapped_prepacked"),
        ([figures("mapped_prepacked", 0.1, 5, 30), figures("mapped_unpacked", 0.0, 5, 45)], "mapped_prepacked"),
        ([figures("mapped_prepacked", 5, 5, 30), figures("mapped_unpacked", 0.1, 5, 45)], "mapped_prepacked"),
        # … in each batch, to a tenth and 0.2 ms …
        ([figures("mapped_prepacked", 5, 5, 30), figures("mapped_unpacked", 0.1, 9, 30)], "mapped_prepacked"),
        ([figures("mapped_prepacked", 5, 5, 30), figures("mapped_unpacked", 0.1, 5.6, 33)], "mapped_unpacked"),
        ([figures("mapped_prepacked", 5, 0.01, 0.01), figures("mapped_unpacked", 0.1, 0.1, 0.15)], "mapped_unpacked"),
        # … and then the one that loads faster.
        (
            [figures("mapped_prepacked", 0.1, 5, 30), figures("mapped_unpacked", 0.15, 5, 30, load_ms=1)],
            "mapped_unpacked",
        ),
        ([figures("mapped", 1.0, 5, 30, load_ms=1), figures("mapped_prepacked", 0.1, 5, 30)], "mapped_prepacked"),
        # A mapping that saves nothing is not worth its files.
        ([figures("mapped", 20, 5, 30)], "heap"),
    ],
)
def test_the_least_memory_of_the_fast_ones_is_chosen(usable: list[VariantFigures], expected: str) -> None:
    chosen, reason = choose(usable, HEAP)
    assert chosen == expected
    assert reason
