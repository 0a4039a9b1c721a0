"""`/memory`, `/memory/cleanup` and `/metrics`: what operators and their programs read."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from kernel import ScriptedKernel
from prometheus_client.parser import text_string_to_metric_families
from served import MB, Served, error_of

from modelhost.cli.main import cli
from modelhost.pool import ModelKey
from modelhost.runtime.fake import FakeScript

FIELDS = {
    "limit_bytes": 256 * MB,
    "limit_source": "cgroup v2",
    "baseline_bytes": 60 * MB,
    "usage_bytes": 60 * MB,
    "reserved_bytes": 0,
    "warning_bytes": 172 * MB,
    "critical_bytes": 192 * MB,
    "min_free_bytes": 30 * MB,
    "level": "normal",
    # Nothing is mapped, and the fake machine has no kernel to ask.
    "page_cache": {
        "weights_bytes": 0,
        "cached_bytes": 0,
        "cached_share": None,
        "refaulted_bytes_total": None,
        "refaulted_bytes_per_s": None,
        "major_faults_total": None,
        "major_faults_per_s": None,
        "process_major_faults_total": None,
        "psi_some_avg10": None,
        "psi_full_avg10": None,
        "psi_is_machines": False,
        "is_thrashing": False,
    },
    "models": [],
    "events": [],
}


def samples(served: Served) -> dict[tuple[str, tuple[str, ...]], float]:
    response = served.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_memory_has_every_field(serve_fake) -> None:
    body = serve_fake({"a": FakeScript()}).get("/memory").json()
    assert {key: body[key] for key in FIELDS} == FIELDS
    ceiling_bytes = body["activation_ceiling_bytes"]
    assert body["activations"] == {"ceiling_bytes": ceiling_bytes, "claimed_bytes": 0, "waiting": 0}


def test_memory_shows_a_loaded_model(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(resident_bytes=30 * MB)}, models={"pinned": ("a",)})
    served.infer("a")
    served.eventually(lambda snapshot: snapshot.models[0].leases == 0)
    body = served.get("/memory").json()
    (model,) = body["models"]
    assert isinstance(model.pop("last_used"), float)
    expected = {"name": "a", "version": "1", "state": "ready", "committed_bytes": 30 * MB, "leases": 0, "pinned": True}
    assert expected.items() <= model.items()
    assert body["usage_bytes"] == 90 * MB


def test_memory_shows_what_a_load_has_reserved(serve_fake) -> None:
    script = FakeScript(resident_bytes=30 * MB, load_may_end=threading.Event())
    served = serve_fake({"a": script})
    answer = served.later(served.infer, "a")
    assert script.load_started.wait(10)
    body = served.get("/memory").json()
    assert body["reserved_bytes"] == 30 * MB
    assert (body["models"][0]["state"], body["models"][0]["last_used"]) == ("loading", None)
    script.load_may_end.set()
    assert answer.result().status_code == 200
    assert served.get("/memory").json()["reserved_bytes"] == 0


def test_an_event_tells_a_change_of_level_and_its_cause(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    served.host.memory.probe.other_bytes = 115 * MB
    body = served.get("/memory").json()
    assert body["level"] == "warning"
    event = body["events"][-1]
    assert (event["kind"], event["level"], event["from"], event["usage_bytes"]) == (
        "level",
        "warning",
        "normal",
        175 * MB,
    )
    assert event["cause"] in ("sample", "request")


def test_a_cleanup_unloads_idle_models_and_says_what_came_back(serve_fake) -> None:
    served = serve_fake(
        {name: FakeScript(resident_bytes=30 * MB) for name in ("idle", "kept")}, models={"pinned": ("kept",)}
    )
    for name in ("idle", "kept"):
        served.infer(name)
    served.eventually(lambda snapshot: all(model.leases == 0 for model in snapshot.models))
    body = served.post("/memory/cleanup").json()
    assert body["recovered"]["victims"] == ["idle:1"]
    assert (body["recovered"]["freed_bytes"], body["recovered"]["shortfall_bytes"]) == (30 * MB, 0)
    assert [model["name"] for model in body["memory"]["models"]] == ["kept"]
    event = body["memory"]["events"][-1]
    assert event["kind"] == "recovery"
    assert {"before_bytes", "after_bytes", "freed_bytes", "expected_bytes", "duration_s"} <= event.keys()


def test_a_cleanup_of_nothing_is_no_error(serve_fake) -> None:
    response = serve_fake({"a": FakeScript()}).post("/memory/cleanup")
    assert (response.status_code, response.json()["recovered"]) == (200, None)


def test_a_cleanup_leaves_a_model_in_use_alone(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    served = serve_fake({"a": script})
    running = served.later(served.infer, "a")
    assert script.run_started.wait(10)
    assert served.post("/memory/cleanup").json()["recovered"] is None
    script.run_may_end.set()
    assert running.result().status_code == 200
    assert script.closes == 0


def test_metrics_follow_what_happens(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(resident_bytes=30 * MB), "giant": FakeScript(resident_bytes=500 * MB)})
    before = samples(served)
    assert before["modelhost_memory_limit_bytes", ()] == 256 * MB
    assert before["modelhost_loads_total", ()] == 0
    served.infer("a")
    served.infer("a")
    error_of(served.infer("nothing"), 404)
    after = samples(served)
    assert after["modelhost_loads_total", ()] == 1
    assert after["modelhost_models", ("ready",)] == 1
    assert after["modelhost_memory_resident_bytes", ()] == 30 * MB
    assert after["modelhost_model_committed_bytes", ("a", "1")] == 30 * MB
    assert after["modelhost_request_seconds_count", ("ok",)] == 2
    assert after["modelhost_request_seconds_count", ("model_not_found",)] == 1


def test_metrics_count_first_looks_and_how_far_loads_were_from_their_predictions(serve_fake) -> None:
    scripts = {
        "more": FakeScript(child_bytes=MB, resident_bytes=30 * MB, estimate_bytes=20 * MB),
        "less": FakeScript(resident_bytes=10 * MB, estimate_bytes=15 * MB),
    }
    served = serve_fake(scripts)
    served.infer("more")
    served.infer("less")
    found = samples(served)
    assert found["modelhost_preparations_total", ()] == 1
    assert found["modelhost_preparation_failures_total", ()] == 0
    assert found["modelhost_load_overshoot_bytes_total", ()] == 10 * MB
    assert found["modelhost_load_undershoot_bytes_total", ()] == 5 * MB


def test_metrics_count_refusals_by_code(serve_fake) -> None:
    served = serve_fake({"giant": FakeScript(resident_bytes=500 * MB)})
    error_of(served.infer("giant"), 507)
    assert samples(served)["modelhost_refusals_total", ("never_fits",)] == 1


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a{b}"])
def test_metrics_escape_names(serve_fake, name: str) -> None:
    served = serve_fake({name: FakeScript()})
    assert served.post("/v2/models/" + "".join(f"%{ord(char):02x}" for char in name) + "/infer", {}).status_code == 400
    assert served.host.pool.catalog.names == (name,)
    served.on_loop(lambda: None)
    served.post("/v2/repository/models/" + "".join(f"%{ord(char):02x}" for char in name) + "/load")
    assert ("modelhost_model_committed_bytes", (name, "1")) in samples(served)


# --- page cache -------------------------------------------------------------------------------------


def kernel_of(served: Served, monkeypatch: pytest.MonkeyPatch) -> ScriptedKernel:
    """Gives a host a kernel to ask; each reading is a second after the last."""
    kernel, seconds = ScriptedKernel(), itertools.count(1.0)
    monkeypatch.setattr(served.host.memory.gauge, "_clock", lambda: next(seconds))
    served.on_loop(lambda: setattr(served.host.memory.gauge, "source", kernel))
    return kernel


def terminal(served: Served) -> str:
    """What `modelhost memory` prints."""
    ended = CliRunner().invoke(cli, ["memory", "--url", served.url])
    assert ended.exit_code == 0, ended.output
    return ended.output


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[str], Path]:
    """Makes files of 3 MB and some, all of them in the page cache as they were just written."""

    def make(name: str) -> Path:
        path = tmp_path / f"{name}.bin"
        path.write_bytes(os.urandom(3 * MB + 10))
        return path

    return make


def test_memory_says_how_much_of_the_weights_is_in_cache(
    serve_fake, weights: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve_fake({name: FakeScript() for name in ("a", "b", "heap")})
    for name in ("a", "b", "heap"):
        served.infer(name)
    own, shared = weights("own"), weights("shared")
    mapped = {ModelKey("a", "1"): (own, shared), ModelKey("b", "1"): (shared,), ModelKey("heap", "1"): ()}
    monkeypatch.setattr(served.host.pool, "mapped_files", lambda: mapped)
    body, found = served.get("/memory").json(), samples(served)
    size_bytes = 3 * MB + 10
    models = {model["name"]: (model["weights_bytes"], model["cached_bytes"]) for model in body["models"]}
    assert models == {"a": (2 * size_bytes,) * 2, "b": (size_bytes,) * 2, "heap": (None, None)}
    cache = body["page_cache"]
    assert (cache["weights_bytes"], cache["cached_bytes"], cache["cached_share"]) == (*(2 * size_bytes,) * 2, 1.0)
    assert found["modelhost_page_cache_weights_bytes", ()] == 2 * size_bytes
    assert found["modelhost_page_cache_cached_bytes", ()] == 2 * size_bytes
    assert found["modelhost_model_weights_bytes", ("a", "1")] == 2 * size_bytes
    assert found["modelhost_model_cached_bytes", ("b", "1")] == size_bytes
    assert ("modelhost_model_weights_bytes", ("heap", "1")) not in found
    shown = terminal(served)
    assert "page cache: 6.0 MB of 6.0 MB of mapped weights" in shown
    assert shown.count("3.0 MB of 3.0 MB") == 1  # b's


def test_weights_that_have_gone_from_disk_are_unknown_and_no_error(
    serve_fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve_fake({"a": FakeScript()})
    served.infer("a")
    monkeypatch.setattr(served.host.pool, "mapped_files", lambda: {ModelKey("a", "1"): (tmp_path / "gone",)})
    body, found = served.get("/memory").json(), samples(served)
    assert (body["models"][0]["weights_bytes"], body["models"][0]["cached_bytes"]) == (0, None)
    assert (body["page_cache"]["cached_bytes"], body["page_cache"]["cached_share"]) == (None, None)
    assert ("modelhost_page_cache_cached_bytes", ()) not in found
    assert ("modelhost_model_cached_bytes", ("a", "1")) not in found
    assert "? of 0.0 KB" in terminal(served)


def test_what_the_kernel_says_is_shown(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": FakeScript()})
    kernel = kernel_of(served, monkeypatch)
    served.get("/memory")
    kernel.refaulted_bytes_each = MB
    shown = served.get("/memory").json()["page_cache"]
    assert shown["refaulted_bytes_total"] >= 70 * MB
    assert 0 <= shown["refaulted_bytes_per_s"] <= MB
    assert (shown["major_faults_total"], shown["process_major_faults_total"]) == (40, 30)
    assert (shown["psi_some_avg10"], shown["psi_full_avg10"]) == (2.5, 1.25)
    found = samples(served)
    assert found["modelhost_page_cache_refaulted_bytes_total", ()] >= shown["refaulted_bytes_total"]
    assert found["modelhost_major_faults_total", ()] == 40
    assert found["modelhost_process_major_faults_total", ()] == 30
    assert found["modelhost_memory_psi_some_avg10", ()] == 2.5
    assert found["modelhost_memory_psi_full_avg10", ()] == 1.25
    assert found["modelhost_page_cache_thrashing", ()] == 0


def test_thrashing_is_shown_and_is_an_event(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": FakeScript()})
    kernel = kernel_of(served, monkeypatch)
    kernel.refaulted_bytes_each = 60 * MB
    for _ in range(4):
        body = served.get("/memory").json()
    assert body["page_cache"]["is_thrashing"] is True
    assert samples(served)["modelhost_page_cache_thrashing", ()] == 1
    (event,) = [event for event in body["events"] if event["kind"] == "thrashing"]
    assert event["refaulted_bytes_per_s"] > 0
    assert (event["cache_bytes"], event["psi_full_avg10"]) == (100 * MB, 1.25)
    shown = terminal(served)
    assert "page cache, THRASHING: " in shown
    assert "0 major faults/s, stalled 1 %" in shown
    assert " thrashing: level normal" in shown
    kernel.refaulted_bytes_each = 0
    for _ in range(15):
        body = served.get("/memory").json()
    assert body["page_cache"]["is_thrashing"] is False
    assert [event["kind"] for event in body["events"]] == ["thrashing", "thrashing_over"]


def test_figures_that_the_kernel_does_not_have_are_not_in_the_metrics(serve_fake) -> None:
    found = {name for name, _ in samples(serve_fake({"a": FakeScript()}))}
    assert "modelhost_page_cache_weights_bytes" in found
    missing = {"modelhost_memory_psi_full_avg10", "modelhost_page_cache_refaulted_bytes_total"}
    assert not found & missing


def test_metrics_and_memory_show_what_runs_have_claimed(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    served = serve_fake({"a": script})
    running = served.later(served.infer, "a")
    assert script.run_started.wait(10)
    claimed_bytes = served.get("/memory").json()["activations"]["claimed_bytes"]
    assert claimed_bytes > 0
    found = samples(served)
    assert found["modelhost_activation_claimed_bytes", ()] == claimed_bytes
    assert found["modelhost_activation_waiting", ()] == 0
    assert found["modelhost_activation_refusals_total", ()] == 0
    assert found["modelhost_activation_misses_total", ()] == 0
    script.run_may_end.set()
    assert running.result().status_code == 200
    served.eventually(lambda snapshot: snapshot.models[0].leases == 0)
    assert served.get("/memory").json()["activations"]["claimed_bytes"] == 0
