"""ModelInfer over a real connection: tensors in both forms, what it refuses, and what a call leaves behind."""

from __future__ import annotations

import re
import threading
from typing import Any

import grpc
import numpy as np
import pytest
from rpc_client import RpcClient, fake_raw, floats, raw, refused, typed
from served import MB

from modelhost.api.rpc.messages import ModelInferRequest
from modelhost.errors import RunFailed
from modelhost.pool import PoolSnapshot
from modelhost.runtime.fake import FakeScript

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


def nothing_held(snapshot: PoolSnapshot) -> bool:
    return snapshot.waiting == snapshot.in_flight == 0 and all(model.leases == 0 for model in snapshot.models)


def held_bytes(client: RpcClient) -> int:
    return client.served.on_loop(lambda: client.served.app.infer.inference.budget.used_bytes)


# --- tensors -----------------------------------------------------------------------------------------------


def test_raw_inputs_are_answered_raw_with_names_version_and_id(rpc: RpcClient) -> None:
    request = raw("add", "FP32", np.array([1, 2], np.float32))
    request.id = "seven"
    answer = rpc.infer(request)
    assert (answer.model_name, answer.model_version, answer.id) == ("add", "10", "seven")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2])
    assert not output.HasField("contents")
    assert floats(answer) == [11, 12]


def test_typed_inputs_are_answered_typed(rpc: RpcClient) -> None:
    answer = rpc.infer(typed("add", "fp32_contents", [1, 2], datatype="FP32"))
    assert list(answer.outputs[0].contents.fp32_contents) == [11, 12]
    assert not answer.raw_output_contents


def test_a_version_is_served_where_one_is_named(rpc: RpcClient) -> None:
    request = raw("add", "FP32", np.array([1], np.float32))
    request.model_version = "2"
    answer = rpc.infer(request)
    assert (answer.model_version, floats(answer)) == ("2", [3])


@pytest.mark.parametrize(
    ("model", "field", "datatype", "values"),
    [
        ("int64", "int64_contents", "INT64", [-(1 << 63), (1 << 63) - 1]),
        ("bool", "bool_contents", "BOOL", [True, False, True]),
        ("text", "bytes_contents", "BYTES", [b"", "größe".encode(), b"x" * 300]),
    ],
)
def test_typed_contents_go_through_a_model_unchanged(
    rpc: RpcClient, model: str, field: str, datatype: str, values: list[Any]
) -> None:
    answer = rpc.infer(typed(model, field, values, datatype=datatype))
    assert answer.outputs[0].datatype == datatype
    assert list(getattr(answer.outputs[0].contents, field)) == values


def test_text_goes_through_a_model_raw(rpc: RpcClient) -> None:
    request = ModelInferRequest(model_name="text")
    request.inputs.add(name="x", datatype="BYTES", shape=[2])
    framed = b"\x01\x00\x00\x00a\x00\x00\x00\x00"
    request.raw_input_contents.append(framed)
    assert list(rpc.infer(request).raw_output_contents) == [framed]


def test_half_precision_goes_through_raw(rpc: RpcClient) -> None:
    half = np.array([1.5, np.inf], np.float16)
    answer = rpc.infer(raw("half", "FP16", half))
    assert (answer.outputs[0].datatype, list(answer.raw_output_contents)) == ("FP16", [half.tobytes()])


def test_inputs_in_any_order_and_values_that_json_has_not(rpc: RpcClient) -> None:
    two = np.array([2, 3], np.float32)
    assert floats(rpc.infer(raw("sum", "FP32", two, two * 10, names=("b", "a")))) == [22, 33]
    assert floats(rpc.infer(raw("reciprocal", "FP32", np.array([0, 2], np.float32)))) == [np.inf, 0.5]


def test_an_empty_tensor(rpc: RpcClient) -> None:
    assert floats(rpc.infer(raw("add", "FP32", np.empty(0, np.float32)))) == []
    answer = rpc.infer(typed("add", "fp32_contents", [], datatype="FP32"))
    assert list(answer.outputs[0].shape) == [0]


def test_a_large_tensor_each_way_leaves_nothing_claimed(rpc: RpcClient) -> None:
    large = np.arange(MB, dtype=np.float32)
    assert floats(rpc.infer(raw("add", "FP32", large))) == (large + 10).tolist()
    answer = rpc.infer(typed("add", "fp32_contents", large.tolist(), datatype="FP32"))
    assert answer.outputs[0].contents.fp32_contents[-1] == float(large[-1] + 10)
    rpc.served.eventually(lambda _: held_bytes(rpc) == 0)


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(rpc: RpcClient, method: grpc.Compression) -> None:
    request = raw("add", "FP32", np.zeros(10_000, np.float32))
    answer = rpc.raw("ModelInfer")(request.SerializeToString(), compression=method, timeout=10)
    assert floats(answer) == [10.0] * 10_000


# --- what is wrong with it -----------------------------------------------------------------------------------


def test_a_tensor_that_does_not_fit_is_invalid_argument_with_what_was_expected(rpc: RpcClient) -> None:
    request = raw("digits", "FP32", np.zeros((1, 1, 8, 9), np.float32), names=("image",))
    code, text, figures = refused(lambda: rpc.infer(request))
    assert code is INVALID
    assert text == "tensor 'image': expected FP32 [batch,1,8,8], got shape [1, 1, 8, 9]"
    assert figures == {
        "code": "invalid_tensor",
        "tensor": "image",
        "expected": "FP32 [batch,1,8,8]",
        "got": "shape [1, 1, 8, 9]",
    }


def test_bytes_that_are_no_message_are_invalid_argument(rpc: RpcClient) -> None:
    call = rpc.raw("ModelInfer")
    for data in (b"\x0a\xff\xff\xff\xff\x7f", b"\x0a", b"\x0b", b"\x0a\x03add\x22\x03\xff\xff\xff"):
        assert refused(lambda data=data: call(data, timeout=10))[0] is INVALID
    assert refused(lambda: rpc.raw("ModelReady")(b"\x0a\xff", timeout=10))[0] is INVALID


def test_a_model_that_is_not_there(rpc: RpcClient) -> None:
    code, text, figures = refused(lambda: rpc.infer(fake_raw("nobody")))
    assert (code, figures) == (grpc.StatusCode.NOT_FOUND, {"code": "model_not_found"})
    assert "nobody" in text


def test_a_broken_model_is_a_failed_precondition_with_the_reason(rpc: RpcClient) -> None:
    code, text, figures = refused(lambda: rpc.infer(fake_raw("unknown_operator")))
    assert (code, figures["code"]) == (grpc.StatusCode.FAILED_PRECONDITION, "model_broken")
    assert "NoSuchOperator" in text


def test_a_run_that_fails_is_internal_and_the_model_goes_on(rpc_fake) -> None:
    script = FakeScript(run_error=RunFailed("the run failed: a node said no"))
    client = rpc_fake({"a": script})
    code, text, _ = refused(lambda: client.infer(fake_raw()))
    assert (code, text) == (grpc.StatusCode.INTERNAL, "the run failed: a node said no")
    script.run_error = None
    assert floats(client.infer(fake_raw())) == [2, 4]


def test_a_message_over_the_limit_is_refused_before_a_model_is_looked_at(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()}, server={"max_request_bytes": 10_000})
    code, text, _ = refused(lambda: client.infer(raw("a", "FP32", np.zeros(2_500, np.float32))))
    assert code is EXHAUSTED
    assert "10000" in text
    assert client.served.snapshot().counters.loads == 0
    assert len(floats(client.infer(raw("a", "FP32", np.zeros(2_400, np.float32))))) == 2_400


def test_hostile_messages_take_no_memory_before_they_are_refused(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()}, server={"max_request_bytes": "1MB", "max_decoding_bytes": "2MB"})
    name = b"\x0a\x01a"
    for data in (
        name + b"\x2a\x00" * 400_000,  # inputs without anything, each an object
        name + b"\x3a\x00" * 400_000,  # raw tensors
        name + b"\x22\x00" * 8_000,  # parameters, which are few enough to be looked at
        name + b"\x2a\x80\xb5\x18" + b"\x22\x00" * 200_000,  # parameters of an input
    ):
        code, _, figures = refused(lambda data=data: client.raw("ModelInfer")(data, timeout=10))
        assert code in (INVALID, EXHAUSTED)
        assert figures["code"] in ("invalid_request", "request_too_large")
    assert floats(client.infer(fake_raw())) == [2, 4]


# --- memory --------------------------------------------------------------------------------------------------


def test_no_memory_now_is_resource_exhausted_with_the_figures(rpc_fake) -> None:
    may_end = threading.Event()
    busy = FakeScript(resident_bytes=100 * MB, run_may_end=may_end)
    client = rpc_fake({"busy": busy, "wanted": FakeScript(resident_bytes=80 * MB)})
    running = client.later("ModelInfer", fake_raw("busy"))
    assert busy.run_started.wait(10)

    code, text, figures = refused(lambda: client.infer(fake_raw("wanted")))

    assert code is EXHAUSTED
    assert "wanted:1 needs 80.0 MB" in text
    assert (figures["code"], figures["needed_bytes"]) == ("insufficient_memory", 80 * MB)
    assert figures["available_bytes"] == (192 - 60 - 100) * MB
    assert figures["retry_after_s"] == 2
    assert [holder["name"] for holder in figures["held_by"]] == ["busy"]
    may_end.set()
    assert floats(running.result()) == [2, 4]
    assert floats(client.infer(fake_raw("wanted"))) == [2, 4]


def test_what_can_never_fit_is_resource_exhausted_too(rpc_fake) -> None:
    client = rpc_fake({"giant": FakeScript(resident_bytes=132 * MB)})
    code, _, figures = refused(lambda: client.infer(fake_raw("giant")))
    assert (code, figures["code"], figures["needed_bytes"]) == (EXHAUSTED, "never_fits", 132 * MB)
    assert "retry_after_s" not in figures


def test_a_full_queue_is_unavailable_which_clients_try_again(rpc_fake) -> None:
    may_end = threading.Event()
    script = FakeScript(run_may_end=may_end)
    client = rpc_fake({"a": script}, server={"run_threads": 1, "max_queue": 1})
    first = client.later("ModelInfer", fake_raw())
    assert script.run_started.wait(10)
    second = client.later("ModelInfer", fake_raw())
    client.served.eventually(lambda snapshot: snapshot.in_flight == 2)
    code, _, figures = refused(lambda: client.infer(fake_raw()))
    assert (code, figures["code"]) == (grpc.StatusCode.UNAVAILABLE, "overloaded")
    may_end.set()
    assert floats(first.result()) == floats(second.result()) == [2, 4]


# --- time, and clients that leave -----------------------------------------------------------------------------


def test_a_request_that_asks_for_a_time_has_it(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript(run_may_end=threading.Event())})  # set by the cancellation only
    code, text, figures = refused(lambda: client.infer(fake_raw(timeout=30_000)))
    assert (code, figures["code"]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "timeout")
    assert text.startswith("the run did not finish within")
    client.served.eventually(nothing_held)


def test_the_deadline_of_the_call_ends_the_run(rpc_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    client = rpc_fake({"a": script})
    code, *_ = refused(lambda: client.infer(fake_raw(), timeout_s=0.05))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    client.served.eventually(nothing_held)
    client.served.eventually(lambda _: held_bytes(client) == 0)


def test_a_client_that_cancels_ends_its_run_its_lease_and_its_claim(rpc_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    client = rpc_fake({"a": script})
    call = client.later("ModelInfer", fake_raw())
    assert script.run_started.wait(10)
    assert client.served.snapshot().models[0].leases == 1
    call.cancel()
    client.served.eventually(nothing_held)
    client.served.eventually(lambda _: held_bytes(client) == 0)
    assert script.violations == []


def test_a_client_that_cancels_while_its_model_loads_drops_out_of_the_line(rpc_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    client = rpc_fake({"a": script})
    call = client.later("ModelInfer", fake_raw())
    client.served.eventually(lambda snapshot: snapshot.waiting == 1)
    call.cancel()
    client.served.eventually(lambda snapshot: snapshot.waiting == 0)
    assert script.runs == 0


def test_calls_count_in_the_metrics_with_their_outcome(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()})
    client.infer(fake_raw())
    refused(lambda: client.infer(fake_raw("nobody")))
    text = client.served.get("/metrics").text
    assert 'modelhost_request_seconds_count{outcome="ok"} 1\n' in text
    assert 'modelhost_request_seconds_count{outcome="model_not_found"} 1\n' in text


def test_a_bug_is_internal_and_is_said(rpc_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    client = rpc_fake({"a": FakeScript()})

    def fail() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(client.served.host.pool, "snapshot", fail)
    code, text, figures = refused(lambda: client.call("ModelStatistics"))
    assert code is grpc.StatusCode.INTERNAL
    assert re.fullmatch(r"internal error; the log has it under request id [0-9a-f]{16}", text)
    assert figures == {"code": "internal"}
