"""What several processes say of themselves, as one answer: sums, states, labels."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelhost.api.merging import (
    merge_history,
    merge_index,
    merge_memory,
    merge_metrics,
    merge_monitor,
    merge_statistics,
)


def statistics(count: int, size: int, last: int, name: str = "m") -> dict[str, Any]:
    took = {"count": count, "ns": count * 10}
    return {
        "name": name,
        "version": "1",
        "last_inference": last,
        "inference_count": count,
        "execution_count": count,
        "inference_stats": {"success": took, "fail": {"count": 0, "ns": 0}},
        "response_stats": {},
        "batch_stats": [{"batch_size": size, "compute_infer": took}],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": 100}],
    }


def test_statistics_add_up_by_model_and_by_size_of_batch() -> None:
    said = [
        (1, {"model_stats": [statistics(3, 1, last=50)]}),
        (0, {"model_stats": [statistics(5, 1, last=40), statistics(1, 4, 9, name="a")]}),
    ]
    first, second = merge_statistics(said)["model_stats"]
    assert (first["name"], second["name"]) == ("a", "m")
    assert second["inference_count"] == 8
    assert second["inference_stats"]["success"] == {"count": 8, "ns": 80}
    assert second["last_inference"] == 50
    assert second["batch_stats"] == [{"batch_size": 1, "compute_infer": {"count": 8, "ns": 80}}]
    assert second["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 200}]


def test_batches_of_sizes_that_only_one_has_run_stay() -> None:
    said = [(0, {"model_stats": [statistics(3, 8, 1)]}), (1, {"model_stats": [statistics(5, 2, 1)]})]
    (only,) = merge_statistics(said)["model_stats"]
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in only["batch_stats"]] == [(2, 5), (8, 3)]


def test_a_version_is_ready_where_one_process_has_it() -> None:
    def entry(state: str, name: str = "m") -> dict[str, str]:
        return {"name": name, "version": "1", "state": state, "reason": ""}

    said = [(0, [entry("UNAVAILABLE"), entry("LOADING", "n")]), (1, [entry("READY"), entry("UNAVAILABLE", "n")])]
    assert [(one["name"], one["state"]) for one in merge_index(said)] == [("m", "READY"), ("n", "LOADING")]


STATES = st.sampled_from(["READY", "LOADING", "UNAVAILABLE"])
#: What a process knows: models to versions to states.
KNOWN = st.dictionaries(st.sampled_from("abcdefgh"), st.dictionaries(st.sampled_from("12"), STATES, min_size=1))


@given(st.lists(KNOWN, min_size=1, max_size=3), st.integers(1, 5), st.booleans())
def test_pages_of_several_processes_are_the_whole_index_of_all(
    known: list[dict[str, dict[str, str]]], limit: int, only_ready: bool
) -> None:
    def said(after: str = "", limit: int | None = None) -> list[tuple[int, list[dict[str, str]]]]:
        """What each answers, as a process does that is asked alone."""
        found = []
        for seat, models in enumerate(known):
            rows = {
                name: [
                    {"name": name, "version": version, "state": state, "reason": ""}
                    for version, state in sorted(models[name].items())
                    if state == "READY" or not only_ready
                ]
                for name in sorted(models)
                if name > after
            }
            names = [name for name in rows if rows[name]][:limit]
            found.append((seat, [row for name in names for row in rows[name]]))
        return found

    whole, pages, after = merge_index(said()), [], ""
    while page := merge_index(said(after, limit), limit):
        assert len({entry["name"] for entry in page}) <= limit
        pages += page
        after = page[-1]["name"]
    assert pages == whole


PAGES = (
    """# HELP modelhost_memory_usage_bytes Memory.
# TYPE modelhost_memory_usage_bytes gauge
modelhost_memory_usage_bytes 5
# HELP modelhost_loads_total Models loaded.
# TYPE modelhost_loads_total counter
modelhost_loads_total 2
# HELP nv_inference_count Rows.
# TYPE nv_inference_count counter
nv_inference_count{model="a {b}",version="1"} 7
""",
    """# HELP modelhost_memory_usage_bytes Memory.
# TYPE modelhost_memory_usage_bytes gauge
modelhost_memory_usage_bytes 6
# HELP modelhost_loads_total Models loaded.
# TYPE modelhost_loads_total counter
modelhost_loads_total 3
# HELP modelhost_refusals_total Refused.
# TYPE modelhost_refusals_total counter
modelhost_refusals_total{code="overloaded"} 1
""",
)


def test_metrics_have_the_process_as_a_label_but_for_what_all_read_from_the_same_place() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    text = merge_metrics([(1, PAGES[0]), (0, PAGES[1])])
    assert text.count("# TYPE modelhost_loads_total counter") == 1
    found = {
        (sample.name, sample.labels.get("worker"), sample.labels.get("model")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found == {
        ("modelhost_memory_usage_bytes", None, None): 5,
        ("modelhost_loads_total", "1", None): 2,
        ("modelhost_loads_total", "0", None): 3,
        ("nv_inference_count_total", "1", "a {b}"): 7,
        ("modelhost_refusals_total", "0", None): 1,
    }


def memory(models: list[dict[str, Any]], waiting: int, condition: str) -> dict[str, Any]:
    return {
        "usage_bytes": 100,
        "activations": {"ceiling_bytes": 60, "claimed_bytes": 5, "waiting": 1},
        "page_cache": {"weights_bytes": 0, "cached_bytes": 0, "cached_share": None, "is_thrashing": False},
        "models": models,
        "conditions": [{"name": condition}],
        "waiting": waiting,
        "runs_in_flight": 2,
        "events": [{"id": waiting, "at": float(waiting)}],
    }


def model(name: str, weights: int | None, cached: int | None, committed: int = 10) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1",
        "state": "ready" if committed else "UNAVAILABLE",
        "committed_bytes": committed,
        "weights_bytes": weights,
        "cached_bytes": cached,
    }


def test_memory_has_all_models_by_process_and_counts_weights_that_are_shared_once() -> None:
    said = [
        (0, memory([model("a", 50, 20)], 2, "thrashing")),
        (1, memory([model("a", 50, 20), model("b", None, None), model("c", 30, 30)], 1, "thrashing")),
    ]
    found = merge_memory(said)
    assert [(one["name"], one["worker"]) for one in found["models"]] == [("a", 0), ("a", 1), ("b", 1), ("c", 1)]
    assert (found["waiting"], found["runs_in_flight"]) == (3, 4)
    assert found["activations"] == {"ceiling_bytes": 60, "claimed_bytes": 10, "waiting": 2}
    page_cache = found["page_cache"]
    assert (page_cache["weights_bytes"], page_cache["cached_bytes"], page_cache["cached_share"]) == (80, 50, 0.625)
    assert found["conditions"] == [{"name": "thrashing"}]
    assert [(event["at"], event["worker"]) for event in found["events"]] == [(1.0, 1), (2.0, 0)]


def monitor(seat: int, requests: int, p99_ms: float | None, committed: int) -> dict[str, Any]:
    row = model("a", 50, 20, committed) | {
        "leases": 0,
        "pinned": False,
        "last_used": None if not requests else 5.0 + seat,
        "waiting": 0,
        "requests": requests,
        "failures": 0,
        "requests_per_s": 0.5,
        "p50_ms": None,
        "p99_ms": p99_ms,
        "loads": 1,
        "evictions": 0,
        "cold_starts": 1,
        "load_seconds": 0.25,
        "run_seconds": 1.0,
    }
    return {
        "at": 1.0,
        "host": {"version": "1", "ready": True, "draining": False, "uptime_s": 1.0, "pid": 100 + seat},
        "memory": memory([], 1, "full") | {"reserved_bytes": 3},
        "bar": {"host_bytes": 80, "models_bytes": committed, "loading_bytes": 3, "activations_bytes": 5},
        "totals": {"requests": requests, "requests_per_s": 0.5, "p99_ms": p99_ms, "in_flight": 0},
        "models": [row],
        "models_known": 1,
        "events": [],
        "policy": None,
    }


def test_views_show_each_model_once_with_its_workers_and_usage_in_parts_that_add_up() -> None:
    found = merge_monitor([(1, monitor(1, 3, None, 0)), (0, monitor(0, 4, 9.0, 10))])
    (row,) = found["models"]
    assert (row["state"], row["workers"], row["requests"], row["p99_ms"]) == ("ready", [0], 7, 9.0)
    assert (row["committed_bytes"], row["weights_bytes"], row["last_used"]) == (10, 50, 6.0)
    assert [(one["worker"], one["pid"], one["models"]) for one in found["host"]["workers"]] == [
        (1, 101, 0),
        (0, 100, 1),
    ]
    assert found["totals"] == {"requests": 7, "requests_per_s": 1.0, "p99_ms": 9.0, "in_flight": 0}
    parts = [found["bar"][name] for name in ("host_bytes", "models_bytes", "loading_bytes", "activations_bytes")]
    assert sum(parts) == found["memory"]["usage_bytes"] == 100
    assert found["bar"]["weights_cached_bytes"] == 20


def test_history_adds_counts_up_from_the_newest_sample_backwards() -> None:
    def history(length: int, p99: list[float | None]) -> dict[str, Any]:
        counts = ("models_bytes", "requests", "failures", "loads", "evictions", "refusals")
        return {
            "every_s": 5,
            "at": list(range(length)),
            "usage_bytes": [7] * length,
            "cached_bytes": [None] * length,
            "level": ["normal"] * length,
            "p99_ms": p99,
            **{name: [1] * length for name in counts},
        }

    found = merge_history([(0, history(3, [1.0, None, 5.0])), (1, history(2, [None, 9.0]))])
    assert found["at"] == [1, 2]
    assert found["requests"] == [2, 2]
    assert found["usage_bytes"] == [7, 7]
    assert found["p99_ms"] == [None, 9.0]
