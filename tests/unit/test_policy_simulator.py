"""The simulator of eviction policies: its traces, its rules against their definitions, its sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import adaptive
from benchmarks.commands import memory, simulations
from benchmarks.policy import ahead, traces
from benchmarks.policy.fleet import Fleet, mixed_sizes
from benchmarks.policy.placement import PLACEMENTS
from benchmarks.policy.replay import replay
from benchmarks.policy.rules import RULES, next_uses

REQUESTS = st.lists(st.integers(0, 7), min_size=1, max_size=80).map(lambda wanted: np.array(wanted, np.int32))


def fleet_of(sizes: list[int], loads: list[float] | None = None) -> Fleet:
    return Fleet(np.array(sizes, np.int64), np.array(loads or [1.0] * len(sizes)))


@pytest.mark.parametrize("name", traces.MADE)
def test_a_made_trace_has_its_length_and_repeats_with_its_seed(name: str) -> None:
    trace = traces.MADE[name](500, 20_000, seed=3)
    assert trace.shape == (20_000,)
    assert 0 <= trace.min() <= trace.max() < 500
    assert np.array_equal(trace, traces.MADE[name](500, 20_000, seed=3))
    assert not np.array_equal(trace, traces.MADE[name](500, 20_000, seed=4))


def test_popularity_has_nothing_to_do_with_size() -> None:
    fleet = mixed_sizes(2000, seed=1)
    counts = np.bincount(traces.zipf(2000, 200_000, seed=2), minlength=2000)
    assert abs(np.corrcoef(counts, fleet.size_bytes)[0, 1]) < 0.1


@given(REQUESTS)
def test_next_uses_are_those_that_a_search_finds(trace: traces.Trace) -> None:
    wanted = trace.tolist()
    for at, (model, found) in enumerate(zip(wanted, next_uses(trace).tolist(), strict=True)):
        rest = wanted[at + 1 :]
        assert found == (at + 1 + rest.index(model) if model in rest else 2 * len(wanted))


@given(REQUESTS, st.integers(1, 6))
def test_with_one_size_nobody_loads_less_than_belady(trace: traces.Trace, places: int) -> None:
    fleet = fleet_of([10] * 8)
    loads = {name: replay(fleet, trace, rule(fleet, trace), 10 * places).cold_starts for name, rule in RULES.items()}
    assert loads["belady"] == loads["belady-size"] == min(loads.values())


@given(REQUESTS, st.lists(st.integers(1, 40), min_size=8, max_size=8), st.integers(1, 60), st.sampled_from([*RULES]))
def test_sums_add_up_and_memory_is_never_exceeded(
    trace: traces.Trace, sizes: list[int], capacity_bytes: int, name: str
) -> None:
    fleet = fleet_of(sizes)
    outcome = replay(fleet, trace, RULES[name](fleet, trace), capacity_bytes)
    assert outcome.requests == len(trace) == outcome.hits + outcome.cold_starts + outcome.refused
    assert outcome.refused == sum(sizes[model] > capacity_bytes for model in trace.tolist())
    assert outcome.peak_bytes <= capacity_bytes
    assert outcome.evictions <= outcome.cold_starts


def test_gdsf_reads_fewer_bytes_than_lru_where_sizes_are_mixed() -> None:
    fleet, trace = mixed_sizes(2000, seed=1), traces.zipf(2000, 100_000, seed=2)
    moved = {
        name: replay(fleet, trace, RULES[name](fleet, trace), fleet.total_bytes // 50, warm_up=20_000).moved_bytes
        for name in ("lru", "gdsf", "belady")
    }
    assert moved["belady"] < moved["gdsf"] < moved["lru"]


def test_a_recorded_trace_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("model,size_bytes,load_s\na,100,0.5\nb,300,1\na,,\n")
    fleet, trace = traces.read(file)
    assert fleet.size_bytes.tolist() == [100, 300]
    assert fleet.load_s.tolist() == [0.5, 1.0]
    assert trace.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,bytes\na,1\n", "missing: ['load_s', 'size_bytes']"),
        ("model,size_bytes,load_s\na,100,0.5\nb,,\n", "line 3: model 'b' is new there"),
        ("model,size_bytes,load_s\na,-1,0.5\n", "found '-1' and '0.5'"),
        ("model,size_bytes,load_s\n", "expected requests, found none"),
    ],
)
def test_what_is_no_trace_is_told_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"trace\.csv") as caught:
        traces.read(file)
    assert said in str(caught.value)


def test_the_command_line_names_what_there_is() -> None:
    assert set(simulations._TRACES) == set(traces.MADE)
    assert set(simulations._POLICIES) == set(RULES)
    assert set(simulations._PLACEMENTS) == set(PLACEMENTS)
    assert set(simulations._TIMED) == set(ahead.TRACES)
    assert set(memory._LOADS) == {load.name for load in adaptive.LOADS}


@pytest.mark.parametrize("name", ahead.TRACES)
def test_loading_ahead_costs_no_cold_start_and_evicts_nobody(name: str) -> None:
    plan = ahead.Plan(models=40, requests=1500, a_second=1.0, room=15, idle_ttl_s=60, seed=3)
    trace = ahead.TRACES[name](plan)
    without, with_it = (ahead.replay(trace, plan, predictive=predictive) for predictive in (False, True))
    assert with_it.cold_starts <= without.cold_starts
    assert with_it.evictions <= without.evictions
    assert with_it.hits + with_it.wasted <= with_it.predicted
    if name == "periodic":
        assert with_it.hits > 10 * max(1, with_it.wasted)
    assert without.predicted == 0
