"""`/monitor` and its parts: what views on the host are made of, and what they change."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from served import MB, Served, error_of, fake_host, head, serve
from wire import wire

from modelhost.api import event_stream
from modelhost.runtime.fake import FakeScript

RATES = {"requests_per_s", "p50_ms", "p99_ms"}
COUNTS = {"requests", "failures", "loads", "evictions", "cold_starts"}


@contextmanager
def watching(served: Served, query: str = "", **headers: str) -> Iterator[Iterator[dict[str, str]]]:
    """Reads server-sent events, each as its fields; `data` is still text."""
    with served.http.stream("GET", f"/monitor/stream{query}", headers=headers) as answer:
        if answer.status_code != 200:
            answer.read()
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield events_of(answer)


def events_of(answer: httpx.Response) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


def next_of(events: Iterator[dict[str, str]], kind: str) -> dict[str, str]:
    return next(event for event in events if event.get("event") == kind)


# --- one object ------------------------------------------------------------------------------------------


def test_memory_is_what_memory_says(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(resident_bytes=30 * MB)})
    served.infer("a")
    served.eventually(lambda snapshot: snapshot.models[0].leases == 0)
    memory, monitor = served.get("/memory").json(), served.get("/monitor").json()
    models, events = memory.pop("models"), memory.pop("events")
    assert monitor["memory"] == memory
    assert [{key: row[key] for key in models[0]} for row in monitor["models"]] == models
    assert monitor["events"] == events


def test_the_host_its_totals_and_its_models_are_in_it(serve_fake) -> None:
    served = serve_fake({name: FakeScript(resident_bytes=30 * MB) for name in ("a", "b", "c")})
    for name in ("a", "a", "b"):
        assert served.infer(name).status_code == 200
    error_of(served.infer("a", b"{"), 400)
    error_of(served.infer("nobody"), 404)
    served.post("/v2/repository/models/b/unload")
    found = served.get("/monitor").json()
    assert found["host"] | {"pid": 0, "uptime_s": 0} == {
        "version": "0.1.0",
        "ready": True,
        "draining": False,
        "uptime_s": 0,
        "pid": 0,
    }
    assert abs(found["at"] - time.time()) < 10
    totals = found["totals"]
    assert (totals["requests"], totals["failures"], totals["cold_starts"]) == (5, 2, 2)
    assert (totals["loads"], totals["evictions"], totals["refusals"]) == (2, 0, 0)
    assert totals["requests_per_s"] == pytest.approx(totals["failures_per_s"] * 2.5, rel=0.01)
    assert 0 < totals["p50_ms"] <= totals["p99_ms"]
    a, b = found["models"]
    assert COUNTS | RATES | {"load_seconds", "run_seconds", "weights_bytes", "cached_bytes"} <= a.keys() == b.keys()
    assert (a["name"], a["state"], a["requests"], a["failures"], a["loads"]) == ("a", "ready", 3, 1, 1)
    assert (b["name"], b["state"], b["requests"], b["committed_bytes"]) == ("b", "UNAVAILABLE", 1, 0)
    assert b["last_used"] == pytest.approx(time.time(), abs=10)
    assert a["run_seconds"] > 0
    assert a["load_seconds"] > 0
    assert (found["models_known"], found["policy"]) == (3, None)


def test_the_bar_adds_up_to_usage(serve_fake) -> None:
    script = FakeScript(resident_bytes=30 * MB, load_may_end=threading.Event())
    served = serve_fake({"a": FakeScript(resident_bytes=30 * MB), "b": script})
    served.infer("a")
    loading = served.later(served.infer, "b")
    assert script.load_started.wait(10)
    for _ in range(2):
        found = served.get("/monitor").json()
        bar = found["bar"]
        parts = [bar[f"{part}_bytes"] for part in ("host", "models", "loading", "activations")]
        assert sum(parts) == found["memory"]["usage_bytes"]
        assert min(parts) >= 0
        assert bar["models_bytes"] >= 30 * MB
        script.load_may_end.set()
        loading.result()
    assert bar["models_bytes"] == 60 * MB


def test_history_has_columns_of_one_length(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    served.get("/memory")
    served.on_loop(served.app.feed.recorder._take)
    found = served.get("/monitor/history").json()
    assert found.pop("every_s") == 5
    assert {len(column) for column in found.values()} == {1}
    assert (found["level"], found["usage_bytes"]) == (["normal"], [60 * MB])


# --- all models ------------------------------------------------------------------------------------------


def test_models_are_listed_a_page_at_a_time(serve_fake) -> None:
    served = serve_fake({f"model-{number:02}": FakeScript() for number in range(12)} | {"Other": FakeScript()})
    served.infer("model-03")
    served.post("/monitor/models/model-04/pin", {"pinned": True})
    found = served.get("/monitor/models?search=MODEL&offset=3&limit=2").json()
    assert found["total"] == 12
    assert found["models"] == [
        {"name": "model-03", "versions": ["1"], "state": "ready", "pinned": False},
        {"name": "model-04", "versions": ["1"], "state": "UNAVAILABLE", "pinned": True},
    ]
    assert served.get("/monitor/models").json()["total"] == 13
    assert served.get("/monitor/models?search=o&offset=13").json() == {"total": 13, "models": []}
    assert served.get("/monitor/models?search=nothing").json() == {"total": 0, "models": []}


def test_what_cannot_be_is_400_and_says_what_was_expected(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    for query, expected in (
        ("models?limit=0", "greater than or equal to 1"),
        ("models?limit=201", "less than or equal to 200"),
        ("models?offset=-1", "greater than or equal to 0"),
        ("models?offset=x", "a valid integer"),
        (f"models?search={'x' * 257}", "at most 256 characters"),
        ("stream?interval_s=0.4", "greater than or equal to 0.5"),
        ("stream?interval_s=61", "less than or equal to 60"),
        ("stream?interval_s=nan", "query.interval_s"),
    ):
        assert expected in error_of(served.get(f"/monitor/{query}"), 400)["error"], query


# --- pins ------------------------------------------------------------------------------------------------


def test_a_model_is_pinned_by_a_request_and_stays(serve_fake) -> None:
    served = serve_fake({name: FakeScript() for name in ("a", "b")}, models={"pinned": ("b",)})
    for name in ("a", "b"):
        served.infer(name)
        served.eventually(lambda snapshot: all(model.leases == 0 for model in snapshot.models))
    assert served.post("/monitor/models/a/pin", {"pinned": True}).json() == {"name": "a", "pinned": True}
    assert served.post("/monitor/models/b/pin", {"pinned": False}).json() == {"name": "b", "pinned": False}
    assert served.post("/memory/cleanup").json()["recovered"]["victims"] == ["b:1"]
    pinned = {row["name"]: row["pinned"] for row in served.get("/monitor").json()["models"]}
    assert pinned == {"a": True, "b": False}


def test_a_pin_of_nothing_is_404_and_a_wrong_one_400(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    assert error_of(served.post("/monitor/models/x/pin", {"pinned": True}), 404)["code"] == "model_not_found"
    for body, said in (({}, "null"), ({"pinned": 1}, "1"), ({"pinned": "yes"}, '"yes"'), ([], "JSON object")):
        assert said in error_of(served.post("/monitor/models/a/pin", body), 400)["error"]


# --- the stream ------------------------------------------------------------------------------------------


def test_a_stream_begins_with_a_snapshot_and_goes_on(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    with watching(served, "?interval_s=0.5") as events:
        assert next(events) == {"retry": "2000"}
        first, second = (json.loads(next_of(events, "snapshot")["data"]) for _ in range(2))
    assert first.keys() == served.get("/monitor").json().keys()
    assert second["at"] > first["at"]
    served.eventually(lambda _: not len(served.app.feed.viewers))


def test_an_event_is_sent_as_it_happens_and_a_client_that_comes_back_goes_on_behind_it(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    with watching(served, "?interval_s=60") as events:
        next_of(events, "snapshot")
        served.host.memory.probe.other_bytes = 115 * MB
        told = next_of(events, "memory")
    assert json.loads(told["data"])["id"] == int(told["id"])
    assert json.loads(told["data"])["level"] == "warning"
    served.host.memory.probe.other_bytes = 0
    served.eventually(lambda _: served.host.memory.history.last_id > int(told["id"]))
    with watching(served, "?interval_s=60", **{"Last-Event-ID": told["id"]}) as events:
        assert int(next_of(events, "memory")["id"]) == int(told["id"]) + 1
    with watching(served, "?interval_s=60", **{"Last-Event-ID": "1000"}) as events:  # of a process before this one
        assert int(next_of(events, "memory")["id"]) == 1


def test_there_is_a_bound_for_viewers_and_a_place_for_the_next_one_where_one_leaves(tmp_path) -> None:
    with (
        serve(fake_host(tmp_path, {"a": FakeScript()}, server={"max_connections": 8})) as served,
        watching(served) as one,
    ):
        next_of(one, "snapshot")
        with watching(served) as other:
            next_of(other, "snapshot")
            refused = error_of(served.get("/monitor/stream"), 503)
            assert (refused["code"], refused["waiting"], refused["limit"]) == ("overloaded", 2, 2)
            assert "2 views are open" in refused["error"]
        served.eventually(lambda _: len(served.app.feed.viewers) == 1)
        with watching(served) as another:
            next_of(another, "snapshot")


def test_a_head_request_for_the_stream_ends(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    answer = served.http.head("/monitor/stream")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert len(served.app.feed.viewers) == 0


def test_a_stream_ends_with_the_host_at_once_and_one_that_nobody_reads_does_not_hold_it(tmp_path) -> None:
    request = head("/monitor/stream?interval_s=60", method="GET")
    with serve(fake_host(tmp_path, {"a": FakeScript()}, server={"drain_timeout": "30s"})) as served:
        viewers = served.app.feed.viewers._all
        with wire(served, request) as stuck:
            assert stuck.socket.recv(100)
            served.eventually(lambda _: len(viewers) == 1)
            for _ in range(2):  # the second one waits for the first to be taken
                served.on_loop(lambda: [viewer.show(b":" * (16 * MB) + b"\n\n") for viewer in viewers])
                served.settle()
            with wire(served, request) as reader:
                read = reader.socket.recv(65536)
                while b"event: snapshot" not in read:
                    read += reader.socket.recv(65536)
                began = time.monotonic()
                served.server.handle_exit(15, None)
                rest = b"".join(iter(lambda: reader.socket.recv(65536), b""))
                assert rest.endswith(b"0\r\n\r\n")
                served.thread.join(10)
            assert time.monotonic() - began < 15  # and not the 30 s that who answers is given


def test_a_reader_that_takes_nothing_is_left(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SLOW_S", 0.05)
    served = serve_fake({"a": FakeScript()})
    viewers = served.app.feed.viewers._all
    with wire(served, head("/monitor/stream?interval_s=60", method="GET")) as stuck:
        assert stuck.socket.recv(100)
        for _ in range(2):
            served.on_loop(lambda: [viewer.show(b":" * (16 * MB) + b"\n\n") for viewer in viewers])
            served.settle()
        served.eventually(lambda _: not viewers)
        served.eventually(lambda _: not served.server.server_state.connections)
