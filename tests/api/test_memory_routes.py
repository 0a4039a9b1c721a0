"""`/memory`, `/memory/cleanup` and `/metrics`: what operators and their programs read."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import MB, Served, error_of

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
