"""The simulator of many hosts: small cases that were worked out by hand, and what holds for any requests."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policy import hosts
from benchmarks.policy.cluster import Cluster, Terms
from benchmarks.policy.fleet import Fleet, mixed_sizes
from benchmarks.policy.placement import PLACEMENTS, One, Rendezvous
from benchmarks.policy.replay import replay
from benchmarks.policy.rules import RULES
from benchmarks.report import Report

REQUESTS = st.lists(st.integers(0, 7), min_size=1, max_size=80)
SIZES = st.lists(st.integers(1, 12), min_size=8, max_size=8)
NOTHING = np.empty(0, np.int32)


def fleet_of(sizes: Sequence[int]) -> Fleet:
    return Fleet(np.array(sizes, np.int64), np.ones(len(sizes)))


def cluster_of(
    placement: str,
    sizes: Sequence[int],
    *,
    count: int = 2,
    budget: int = 10,
    bound: float = 0,
    window: int = 10,
    rule: str = "lru",
) -> Cluster:
    fleet = fleet_of(sizes)
    return Cluster(
        fleet, Terms(count, budget, bound, window), lambda: RULES[rule](fleet, NOTHING), PLACEMENTS[placement]
    )


def test_what_fits_goes_where_most_is_free_and_what_does_not_where_the_last_victim_had_rested_longest() -> None:
    cluster = cluster_of("memory", [6, 6, 3, 3, 6])
    cluster.serve([0, 1, 2, 3])
    assert cluster.holders == {0: (0,), 1: (1,), 2: (0,), 3: (1,)}
    assert cluster.free_bytes == [1, 1]
    cluster.serve([4])  # nobody has room; of two that have never made any the first, where 0 leaves
    assert cluster.holders == {4: (0,), 1: (1,), 2: (0,), 3: (1,)}
    cluster.serve([0])  # the second has still made none: 1 leaves
    assert cluster.holders == {4: (0,), 0: (1,), 2: (0,), 3: (1,)}
    cluster.serve([1])  # victims were last used at 0 and at 1: the first again, where 2 and then 4 leave
    assert cluster.holders == {1: (0,), 0: (1,), 3: (1,)}
    assert cluster.ages == [4, 1]


def test_multiplexing_counts_models_and_not_bytes() -> None:
    sizes = [9, 1, 1, 1, 2]
    by_count, by_bytes = cluster_of("multiplexing", sizes), cluster_of("memory", sizes)
    for cluster in (by_count, by_bytes):
        cluster.serve([0, 1, 2, 3, 4])
    assert by_count.holders == {1: (1,), 2: (0,), 3: (1,), 4: (0,)}  # two on each: the first, where 0 had to leave
    assert by_bytes.holders == {0: (0,), 1: (1,), 2: (1,), 3: (1,), 4: (1,)}


def test_turns_load_a_model_on_every_host() -> None:
    cluster = cluster_of("turns", [5, 5], count=3)
    cluster.serve([0] * 6)
    assert cluster.sums().cold_starts.tolist() == [1, 1, 1]
    assert cluster.distinct_bytes == 5
    assert cluster.held_bytes.tolist() == [5, 5, 5]


@pytest.mark.parametrize("placement", ["multiplexing", "memory", "rendezvous", "homes"])
def test_one_model_that_all_want_has_as_many_copies_as_the_bound_asks_for(placement: str) -> None:
    """Of four hosts each may have a quarter and a quarter of that: three have at most 15 of 16, so that all four get
    one; without a bound one is enough."""
    cluster = cluster_of(placement, [5], count=4, bound=1.25, window=40)
    cluster.serve([0] * 800)
    assert cluster.sums().cold_starts.tolist() == [1, 1, 1, 1]
    assert max(cluster.loads) <= 50
    alone = cluster_of(placement, [5], count=4, window=40)
    alone.serve([0] * 800)
    assert sorted(alone.sums().cold_starts.tolist()) == [0, 0, 0, 1]


def test_a_host_that_leaves_takes_along_what_only_it_held() -> None:
    cluster = cluster_of("memory", [5, 4, 3])
    cluster.serve([0, 1, 2])
    assert cluster.holders == {0: (0,), 1: (1,), 2: (1,)}
    assert cluster.leave(1) == 2
    assert cluster.living == [0]
    cluster.serve([1, 0, 2])  # 5 + 4 fit; for 2 the one that was not used for longest, 1, leaves
    assert cluster.holders == {0: (0,), 2: (0,)}
    assert cluster.sums().cold_starts.tolist() == [3, 2]


def test_a_host_that_joins_gets_what_comes_next_and_has_the_next_number() -> None:
    cluster = cluster_of("memory", [5, 5, 5, 5, 5])
    cluster.serve([0, 1, 2, 3])
    assert cluster.join() == 0
    cluster.serve([4, 0])
    assert cluster.holders[4] == (2,)
    assert cluster.sums().cold_starts.tolist() == [2, 2, 1]


def test_rendezvous_moves_only_what_the_host_has_that_leaves_or_joins() -> None:
    models, count = 20_000, 20
    cluster = cluster_of("rendezvous", [1] * models, count=count)
    rendezvous = cluster._placement
    assert isinstance(rendezvous, Rendezvous)
    before = np.array(rendezvous._homes)
    assert abs(np.bincount(before) - models / count).max() < 5 * (models / count) ** 0.5
    moved = cluster.leave(7)
    without = np.array(rendezvous._homes)
    assert moved == (before == 7).sum() == (before != without).sum()
    assert abs(np.bincount(without)[np.r_[0:7, 8:20]] - models / (count - 1)).max() < 5 * (models / count) ** 0.5
    moved = cluster.join()
    after = np.array(rendezvous._homes)
    assert moved == (after != without).sum() == (after == count).sum()
    assert moved is not None
    assert abs(moved / models - 1 / count) < 0.008  # five deviations


def test_a_model_at_its_bound_goes_to_the_host_that_would_have_it_next() -> None:
    """Its second choice is its home where the first has left."""
    cluster = cluster_of("rendezvous", [1] * 200, count=5, bound=1.25, window=10)
    rendezvous = cluster._placement
    assert isinstance(rendezvous, Rendezvous)
    homes = list(rendezvous._homes)
    cluster.loads[homes[0]] = cluster.bound
    spilled = {model: rendezvous.choose(model) for model in range(200) if homes[model] == homes[0]}
    cluster.leave(homes[0])
    assert spilled == {model: rendezvous._homes[model] for model in spilled}
    assert len(set(spilled.values())) == 4


def test_what_is_held_stays_where_it_is_while_its_home_joins() -> None:
    cluster = cluster_of("homes", [1] * 40, count=3, budget=100)
    cluster.serve(range(40))
    held = dict(cluster.holders)
    assert {len(hosts) for hosts in held.values()} == {1}
    assert (cluster.join() or 0) > 0
    cluster.serve(range(40))
    assert cluster.holders == held
    rendezvous = cluster_of("rendezvous", [1] * 40, count=3, budget=100)
    rendezvous.serve(range(40))
    assert rendezvous.holders == held
    moved = rendezvous.join()
    rendezvous.serve(range(40))
    assert sum(len(hosts) == 2 for hosts in rendezvous.holders.values()) == moved


@given(REQUESTS, SIZES, st.integers(1, 30), st.sampled_from(["lru", "gdsf"]))
def test_a_cluster_of_one_host_is_a_host(wanted: list[int], sizes: list[int], budget: int, rule: str) -> None:
    fleet, trace = fleet_of(sizes), np.array(wanted, np.int32)
    alone = replay(fleet, trace, RULES[rule](fleet, trace), budget)
    cluster = Cluster(fleet, Terms(1, budget, 0, 10), lambda: RULES[rule](fleet, trace), One)
    cluster.serve(wanted)
    found = cluster.sums()
    assert found.requests.tolist() == [alone.requests]
    assert found.cold_starts.tolist() == [alone.cold_starts]
    assert found.moved_bytes.tolist() == [alone.moved_bytes]
    assert (found.refused, found.evictions) == (alone.refused, alone.evictions)


@given(
    REQUESTS,
    REQUESTS,
    SIZES,
    st.sampled_from([*PLACEMENTS]),
    st.sampled_from(["lru", "gdsf"]),
    st.sampled_from([0, 1.01, 1.25, 3]),
    st.sampled_from(["leaves", "joins", ""]),
)
def test_books_are_right_and_the_bound_is_kept(
    wanted: list[int], then: list[int], sizes: list[int], placement: str, rule: str, bound: float, event: str
) -> None:
    cluster = cluster_of(placement, sizes, count=3, bound=bound, window=4, rule=rule)
    cluster.serve(wanted)
    if event == "leaves":
        cluster.leave(1)
    elif event == "joins":
        cluster.join()
    for model in then:
        loads = list(cluster.loads)
        cluster.serve([model])
        raised = [host for host, load in enumerate(cluster.loads) if load > loads[host]]
        assert placement == "turns" or all(cluster.loads[host] <= cluster.bound for host in raised)
    found = cluster.sums()
    assert found.requests.sum() == len(wanted) + len(then)
    assert min(cluster.free_bytes[host] for host in cluster.living) >= 0
    by_host = {host: sum(sizes[model] for model, at in cluster.holders.items() if host in at) for host in range(4)}
    assert [by_host[host] for host in cluster.living] == cluster.held_bytes.tolist()
    assert sum(len(at) for at in cluster.holders.values()) == sum(cluster.counts[host] for host in cluster.living)
    too_large = sum(sizes[model] > 10 for model in wanted + then)
    assert found.refused == too_large


def test_a_copy_goes_on_by_itself() -> None:
    cluster = cluster_of("memory", [5, 5, 5, 5, 5], bound=1.25)
    cluster.serve([0, 1, 2])
    copied = copy.deepcopy(cluster)
    copied.leave(0)
    copied.serve([4, 3, 0])
    assert cluster.living == [0, 1]
    cluster.serve([3])
    assert set(cluster.holders) == {0, 1, 2, 3}


def rows_of(seed: int, *placements: str) -> list[dict[str, object]]:
    report = Report("hosts", {}, io.StringIO())
    plan = hosts.Plan(
        trace="zipf",
        models=300,
        requests=10_000,
        hosts=4,
        budget_bytes=None,
        placements=placements,
        policy="lru",
        bound=1.25,
        window=50,
        seed=seed,
    )
    hosts.run(report, plan)
    hosts.tables(report)
    assert not report.violations
    return [{name: value for name, value in row.items() if name != "took_s"} for row in report.rows]


def test_a_run_says_the_same_again_and_stays_beside_its_yardstick() -> None:
    few = rows_of(1, "multiplexing")
    assert json.dumps(few) == json.dumps(rows_of(1, "multiplexing"))
    assert few != rows_of(2, "multiplexing")
    rows = rows_of(1, *PLACEMENTS)
    steady = {row["placement"]: row for row in rows if row["kind"] == "hosts"}
    assert list(steady) == [hosts.YARDSTICK, *PLACEMENTS]
    for row in steady.values():
        assert row["requests"] == 8_000
        assert row["hits"] + row["cold_starts"] + row["refused"] == 8_000  # type: ignore[operator]
    assert steady[hosts.YARDSTICK]["moved_to_one"] == 1
    assert steady["memory"]["moved_to_one"] < steady["turns"]["moved_to_one"]  # type: ignore[operator]
    events = {(row["placement"], row["event"]): row for row in rows if row["kind"] == "event"}
    assert len(events) == 2 * len(steady)
    assert events["memory", "joins"]["rehomed"] == 0
    assert 40 < events["rendezvous", "leaves"]["rehomed"] < 120  # type: ignore[operator]
    assert events[hosts.YARDSTICK, "leaves"]["more_bytes"] > 0  # type: ignore[operator]


def test_how_uneven_hosts_are_is_the_most_by_the_mean() -> None:
    assert hosts.uneven([1, 2, 3]) == 1.5
    assert hosts.uneven([0, 0]) == 1


def test_sizes_of_hosts_follow_from_the_models() -> None:
    fleet = mixed_sizes(300, seed=2)
    report = Report("hosts", {}, io.StringIO())
    hosts.run(report, hosts.Plan("zipf", 300, 10_000, 4, None, (), "lru", 0, 50, 1))
    assert report.rows[0]["budget_bytes"] == fleet.total_bytes // 10 // 4
