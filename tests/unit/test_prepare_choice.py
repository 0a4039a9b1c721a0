"""Which variant is chosen from which figures."""

from __future__ import annotations

import pytest

from modelhost.prepare.manifest import RunFigures, Variant, VariantFigures
from modelhost.runtime.building_choice import choose, doubted, with_fastest

_MB = 1 << 20


ROOM = 256 * _MB


def figures(
    variant: Variant, held_mb: float, *run_ms: float, load_ms: float = 5.0, peak_mb: float = 0.0
) -> VariantFigures:
    runs = tuple(RunFigures(rows, 4096, ms) for rows, ms in zip((1, 8), run_ms, strict=True))
    return VariantFigures(variant, load_ms, int(held_mb * _MB), int(max(held_mb, peak_mb) * _MB), runs)


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
    chosen, reason = choose(usable, HEAP, room_bytes=ROOM)
    assert chosen == expected
    assert reason


LARGE = figures("heap", 800, 50, 300, load_ms=900, peak_mb=1600)


@pytest.mark.parametrize(
    ("usable", "room_mb", "expected"),
    [
        # What does not fit is not served where something does, however slow that is …
        ([figures("mapped", 784, 50, 300), figures("mapped_unpacked", 0.1, 150, 900)], 256, "mapped_unpacked"),
        ([figures("mapped", 50, 5, 30, peak_mb=784), figures("mapped_unpacked", 1, 50, 300)], 256, "mapped_unpacked"),
        # … and is where nothing does: another host may have the room.
        ([figures("mapped", 784, 50, 300)], 256, "mapped"),
        ([figures("mapped", 784, 50, 300), figures("mapped_unpacked", 0.1, 150, 900)], 2048, "mapped"),
        # A multiple of the memory is not paid for less than half of the time …
        ([figures("mapped", 784, 50, 300), figures("mapped_prepacked", 0.1, 70, 410)], 2048, "mapped_prepacked"),
        (
            [figures("mapped", 1, 50, 300, peak_mb=784), figures("mapped_prepacked", 9, 70, 410)],
            2048,
            "mapped_prepacked",
        ),
        ([figures("mapped", 90, 50, 300), figures("mapped_prepacked", 50, 70, 410)], 2048, "mapped"),
        ([figures("mapped", 30, 50, 300), figures("mapped_prepacked", 0.1, 70, 410)], 2048, "mapped_prepacked"),
        # … but for what is the same to any host.
        ([figures("mapped", 7, 50, 300), figures("mapped_prepacked", 0.1, 70, 410)], 2048, "mapped"),
        # Of several that take so much less, the one that holds the least.
        (
            [
                figures("mapped", 784, 50, 300),
                figures("mapped_prepacked", 40, 60, 360),
                figures("mapped_unpacked", 0.1, 70, 400),
            ],
            2048,
            "mapped_unpacked",
        ),
    ],
)
def test_memory_counts_for_more_than_a_little_time(usable: list[VariantFigures], room_mb: int, expected: str) -> None:
    assert choose(usable, LARGE, room_bytes=room_mb * _MB)[0] == expected


def test_what_takes_much_less_goes_for_its_time_only_when_that_was_measured_again() -> None:
    mapped = figures("mapped", 19, 5, 30)
    packed, unpacked = figures("mapped_prepacked", 0.1, 12, 66), figures("mapped_unpacked", 0.1, 5, 150)
    usable = [mapped, packed, unpacked]
    assert choose(usable, HEAP, room_bytes=ROOM)[0] == "mapped"
    assert doubted(usable, HEAP, room_bytes=ROOM) == packed  # the least slow of them
    again = with_fastest(packed, figures("mapped_prepacked", 0.1, 13, 31).runs)
    assert [run.ms for run in again.runs] == [12, 31]
    assert doubted([mapped, again, unpacked], HEAP, room_bytes=ROOM) == again
    again = with_fastest(again, figures("mapped_prepacked", 0.1, 5, 70).runs)
    assert [run.ms for run in again.runs] == [5, 31]
    assert choose([mapped, again, unpacked], HEAP, room_bytes=ROOM)[0] == "mapped_prepacked"
    assert doubted([mapped, again, unpacked], HEAP, room_bytes=ROOM) is None


@pytest.mark.parametrize(
    "usable",
    [
        [],
        [figures("mapped", 20, 5, 30)],
        [
            figures("mapped", 7, 5, 30),
            figures("mapped_prepacked", 0.1, 12, 66),
        ],  # a host may well hold it
        [figures("mapped", 300, 5, 30), figures("mapped_prepacked", 0.1, 12, 66)],  # only one fits
    ],
)
def test_nothing_is_measured_again_where_no_time_decided(usable: list[VariantFigures]) -> None:
    assert doubted(usable, HEAP, room_bytes=ROOM) is None
