"""Buckets of times: their width, what they have in common with Prometheus', and how far off quantiles are."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.pool.times import BOUNDS_NS, BUCKETS, empty_counts, not_over, quantiles_ms

WITHIN = st.integers(BOUNDS_NS[0] + 1, BOUNDS_NS[-1])


def counted(times_ns: list[int]) -> list[int]:
    counts = empty_counts()
    for time_ns in times_ns:
        counts[bisect_left(BOUNDS_NS, time_ns)] += 1
    return counts.tolist()


def test_buckets_are_some_12_percent_wide_and_few() -> None:
    ratios = [high / low for low, high in pairwise(BOUNDS_NS)]
    assert 1.12 < min(ratios) <= max(ratios) < 1.123
    assert (BOUNDS_NS[0], BOUNDS_NS[-1], len(BOUNDS_NS) + 1) == (10_000, 100_000_000_000, BUCKETS)
    assert empty_counts().itemsize * BUCKETS < 600


@given(st.lists(WITHIN, min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_is_within_a_bucket_of_the_truth(times_ns: list[int], share: float) -> None:
    truth_ms = sorted(times_ns)[max(0, math.ceil(share * len(times_ns)) - 1)] * 1e-6
    (found,) = quantiles_ms(counted(times_ns), (share,)) or ()
    assert truth_ms / 1.123 <= found <= truth_ms * 1.123


def test_a_quantile_of_nothing_is_unknown_and_those_beyond_all_bounds_are_the_bounds() -> None:
    assert quantiles_ms(counted([]), (0.5,)) is None
    assert quantiles_ms(counted([1]), (0.5,)) == [pytest.approx(0.01)]
    assert quantiles_ms(counted([1, 10**15]), (0.5, 0.99)) == [pytest.approx(0.01), pytest.approx(100_000)]


@given(st.lists(st.integers(0, 200_000_000_000), max_size=50))
def test_coarser_bounds_are_counted_exactly(times_ns: list[int]) -> None:
    bounds_ns = [round(bound_s * 1e9) for bound_s in (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 10)]
    expected = [sum(time_ns <= bound_ns for time_ns in times_ns) for bound_ns in bounds_ns]
    assert not_over(counted(times_ns), bounds_ns) == expected
