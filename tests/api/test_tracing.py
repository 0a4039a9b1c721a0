"""Requests as spans: on the short cut, over ASGI, V1 and gRPC; below the client's; sent to a receiver by OTLP."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from rpc_client import client_of, fake_raw
from served import MB, Served, error_of, fake_host, fake_request, serve
from test_webhook import receiving, until

from modelhost.api.app import create_app
from modelhost.api.traces import Asked
from modelhost.api.tracing import tracing as module
from modelhost.config import TracingSettings
from modelhost.errors import ConfigError
from modelhost.pool import ModelKey, Timing
from modelhost.runtime.fake import FakeScript

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}

Spans = list[ReadableSpan]


class Traced:
    """A served host whose spans are kept."""

    def __init__(self, served: Served, exporter: InMemorySpanExporter) -> None:
        self.served, self._exporter = served, exporter

    def requests(self, count: int) -> list[tuple[ReadableSpan, dict[str, ReadableSpan]]]:
        """So many requests, in order, each with its parts by name."""

        def roots() -> Spans:
            return [span for span in self._exporter.get_finished_spans() if span.name == "infer"]

        until(lambda: len(roots()) >= count)
        found = sorted(roots(), key=lambda span: span.start_time or 0)
        assert len(found) == count
        parts: list[dict[str, ReadableSpan]] = []
        for root in found:
            below = [
                span
                for span in self._exporter.get_finished_spans()
                if span.parent is not None and span.parent.span_id == root.context.span_id
            ]
            parts.append({span.name: span for span in sorted(below, key=lambda span: span.start_time or 0)})
        return list(zip(found, parts, strict=True))


@contextmanager
def tracing(directory: Path, scripts: dict[str, FakeScript], **sections: Any) -> Iterator[Served]:
    host = fake_host(directory, scripts, **sections)
    host.settings = host.settings.model_copy(update={"tracing": TracingSettings(enabled=True)})
    with serve(host) as served:
        yield served


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Traced]]:
    from contextlib import ExitStack

    exporter = InMemorySpanExporter()
    monkeypatch.setattr(module, "batching", lambda: SimpleSpanProcessor(exporter))
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    with ExitStack() as stack:
        yield lambda scripts, **more: Traced(stack.enter_context(tracing(tmp_path, scripts, **more)), exporter)


def test_a_cold_request_and_one_on_the_short_cut_have_their_parts_in_order(traced) -> None:
    found = traced({"a": FakeScript()})
    for _ in range(2):
        assert found.served.infer("a", headers=PARENT).status_code == 200
    (cold, cold_parts), (warm, warm_parts) = found.requests(2)
    assert list(cold_parts)[:2] == ["decode", "load"]
    assert list(cold_parts)[-2:] == ["run", "encode"]
    assert [name for name in warm_parts if name != "wait"] == ["decode", "run", "encode"]
    for root, parts in ((cold, cold_parts), (warm, warm_parts)):
        assert format(root.context.trace_id, "032x") == TRACE
        assert root.parent is not None
        assert format(root.parent.span_id, "016x") == SPAN
        assert root.context.trace_state.get("vendor") == "1"
        assert root.kind is SpanKind.SERVER
        assert root.status.status_code is StatusCode.UNSET
        end = root.start_time
        for part in parts.values():
            assert end <= part.start_time < part.end_time
            end = part.end_time
        assert end <= root.end_time
    assert dict(cold.attributes) == {
        "modelhost.model.name": "a",
        "modelhost.model.version": "1",
        "modelhost.outcome": "ok",
        "modelhost.rows": 2,
        "modelhost.run.rows": 2,
        "modelhost.cold_start": True,
    }
    assert warm.attributes["modelhost.cold_start"] is False
    assert warm.resource.attributes["service.name"] == "modelhost"


def test_without_a_parent_or_with_a_wrong_one_a_trace_begins(traced) -> None:
    found = traced({"a": FakeScript()})
    for headers in ({}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}):
        assert found.served.infer("a", headers=headers).status_code == 200
    roots = [root for root, _ in found.requests(3)]
    assert all(root.parent is None for root in roots)
    assert len({root.context.trace_id for root in roots}) == 3


def test_other_ways_in_are_traced_too(traced) -> None:
    found = traced({"a": FakeScript()}, server={"grpc_port": 0})
    served = found.served
    served.infer("a", headers=PARENT | {"Expect": "100-continue"})  # which the short cut leaves to the application
    served.post("/v1/models/a:predict", {"inputs": {"x": [1, 2]}}, headers=PARENT)
    with client_of(served) as client:
        sent = fake_raw()
        client.infer(sent, metadata=tuple(PARENT.items()))
        list(client.stream(iter([sent]), metadata=tuple(PARENT.items())))
    for root, parts in found.requests(4):
        assert format(root.context.trace_id, "032x") == TRACE
        assert {"decode", "run"} <= parts.keys()
        assert root.attributes["modelhost.outcome"] == "ok"


def test_refusals_are_errors_and_wrong_requests_are_not(traced) -> None:
    found = traced({"a": FakeScript(), "giant": FakeScript(resident_bytes=500 * MB)})
    error_of(found.served.infer("giant"), 507)
    error_of(found.served.infer("a", {"inputs": []}), 400)
    error_of(found.served.infer("nobody"), 404)
    (giant, parts), (wrong, _), (nobody, _) = found.requests(3)
    assert (giant.status.status_code, giant.status.description) == (StatusCode.ERROR, "never_fits")
    assert list(parts) == ["decode", "wait"]
    assert (wrong.status.status_code, wrong.attributes["modelhost.outcome"]) == (StatusCode.UNSET, "invalid_request")
    assert "modelhost.model.name" not in nobody.attributes


def test_requests_that_share_a_run_say_how_large_it_was(traced) -> None:
    script = FakeScript(run_may_end=threading.Event())
    found = traced({"a": script}, batching={"enabled": True}, models={"options": {"a": {"batching": True}}})
    served = found.served
    waiting = [served.later(served.infer, "a") for _ in range(6)]
    assert script.run_started.wait(10)
    served.eventually(lambda snapshot: snapshot.in_flight >= 2)
    script.run_may_end.set()
    assert {one.result().status_code for one in waiting} == {200}
    rows = [root.attributes["modelhost.run.rows"] for root, _ in found.requests(6)]
    assert (min(rows), max(rows) > 2) == (2, True)
    text = served.get("/metrics").text
    assert "modelhost_traced_requests_total 6\n" in text
    assert "modelhost_traced_requests_dropped_total 0\n" in text


def test_spans_reach_a_receiver_by_otlp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{receiver.address}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        with tracing(tmp_path, {"a": FakeScript()}) as served:
            assert served.infer("a", headers=PARENT).status_code == 200
        paths = [path for path, _, _ in receiver.taken]
        sent = ExportTraceServiceRequest.FromString(b"".join(body for _, _, body in receiver.taken))
    assert set(paths) == {"/v1/traces"}
    (resource,) = sent.resource_spans
    said = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert said["service.name"] == "ours"
    spans = [span for scope in resource.scope_spans for span in scope.spans]
    assert {"infer", "decode", "load", "run", "encode"} <= {span.name for span in spans}
    assert {span.trace_id.hex() for span in spans} == {TRACE}


def test_a_sampler_of_the_environment_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traced: Callable[..., Traced]
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    found = traced({"a": FakeScript()})
    found.served.infer("a", headers=PARENT)
    until(lambda: "modelhost_traced_requests_total 1\n" in found.served.get("/metrics").text)
    assert found.requests(0) == []


def test_where_too_many_wait_the_next_is_left_out_and_counted() -> None:
    class Kept:
        def __init__(self) -> None:
            self.asked: list[Asked] = []

        def add(self, asked: Asked, to_unix_ns: int) -> None:
            self.asked.append(asked)

        def close(self) -> None:
            self.asked.append(self.asked[0])

    kept = Kept()
    found = module.Tracing(2, lambda: kept)
    for number in range(5):
        found.add(Asked.of(Timing(number), ModelKey("a", "1"), "ok", number))
    assert (found.dropped, kept.asked) == (3, [])
    found.start()
    found._closing.set()
    assert found._thread is not None
    found._thread.join(10)
    assert [asked.arrived_ns for asked in kept.asked] == [0, 1, 0]
    assert found.traced == 2


def test_a_host_that_does_not_ask_for_traces_has_nothing_of_them(tmp_path: Path) -> None:
    app = create_app(fake_host(tmp_path, {}))
    assert not app.infer.inference.is_traced
    assert "TracedProtocol" not in [kind.__name__ for kind in type(app.infer.inference).__mro__]


def test_without_the_extra_the_start_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("modelhost.api.tracing.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    host = fake_host(tmp_path, {"a": FakeScript()})
    host.settings = host.settings.model_copy(update={"tracing": TracingSettings(enabled=True)})
    with pytest.raises(ConfigError, match=r"pip install 'modelhost\[otel\]'"):
        create_app(host)


def test_the_body_is_as_it_was(traced) -> None:
    found = traced({"a": FakeScript()})
    assert found.served.infer("a", fake_request(), headers=PARENT).json()["outputs"][0]["data"] == [2, 4]
