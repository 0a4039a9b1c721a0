"""Everything but inference: health, metadata, configuration, statistics, the repository, and what is not served."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from rpc_client import RpcClient, fake_raw, refused
from served import MB

from modelhost.api.rpc.messages import METHODS, SERVICE
from modelhost.pool import ModelKey
from modelhost.runtime.fake import FakeScript


def test_health(rpc: RpcClient) -> None:
    assert rpc.call("ServerLive").live
    assert rpc.call("ServerReady").ready
    assert rpc.call("ModelReady", name="digits").ready
    assert refused(lambda: rpc.call("ModelReady", name="nobody"))[0] is grpc.StatusCode.NOT_FOUND


def test_server_metadata_announces_what_works(rpc: RpcClient) -> None:
    answer = rpc.call("ServerMetadata")
    assert (answer.name, bool(answer.version)) == ("modelhost", True)
    announced = set(rpc.served.get("/v2").json()["extensions"])
    assert set(answer.extensions) == announced - {"binary_tensor_data", "logging"}
    assert {"model_repository", "model_configuration", "statistics"} <= set(answer.extensions)


def test_model_metadata_is_what_http_says(rpc: RpcClient) -> None:
    answer = rpc.call("ModelMetadata", name="digits")
    said = rpc.served.get("/v2/models/digits").json()
    assert (answer.name, list(answer.versions), answer.platform) == (said["name"], said["versions"], said["platform"])
    for field in ("inputs", "outputs"):
        tensors = [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            for tensor in getattr(answer, field)
        ]
        assert tensors == said[field]
    assert rpc.call("ModelMetadata", name="add", version="2").name == "add"
    assert refused(lambda: rpc.call("ModelMetadata", name="add", version="3"))[0] is grpc.StatusCode.NOT_FOUND


def test_model_config_is_what_http_says(rpc: RpcClient) -> None:
    config = rpc.call("ModelConfig", name="digits").config
    said = rpc.served.get("/v2/models/digits/config").json()
    assert (config.name, config.platform, config.backend) == (said["name"], said["platform"], said["backend"])
    assert config.max_batch_size == said["max_batch_size"]
    assert config.version_policy.WhichOneof("policy_choice") == "all"
    (given,) = config.input
    assert (given.name, given.data_type, list(given.dims)) == ("image", 11, said["input"][0]["dims"])
    assert rpc.call("ModelConfig", name="text").config.input[0].data_type == 13


def test_the_batch_dimension_is_left_out_of_a_config_that_has_one(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()}, models={"options": {"a": {"max_batch_size": 8}}})
    config = client.call("ModelConfig", name="a").config
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (8, [], [])


@pytest.mark.parametrize("enabled", [True, False])
def test_a_model_whose_requests_share_runs_says_so_loaded_or_not(rpc_fake, enabled: bool) -> None:
    script = FakeScript(width=2)
    client = rpc_fake(
        {"a": script, "alone": FakeScript(width=2)},
        models={"options": {"a": {"batching": True}}},
        batching={"enabled": enabled, "max_delay": 0.0025},
    )
    for _ in range(2):
        said = client.served.get("/v2/models/a/config").json()
        config = client.call("ModelConfig", name="a").config
        assert (config.max_batch_size, said["max_batch_size"], said["input"][0]["dims"]) == (0, 0, [-1, 2])
        if enabled:
            assert said["dynamic_batching"] == {"max_queue_delay_microseconds": 2500}
            assert config.dynamic_batching.max_queue_delay_microseconds == 2500
        assert ("dynamic_batching" in said) is enabled
        assert config.HasField("dynamic_batching") is enabled
        assert not client.call("ModelConfig", name="alone").config.HasField("dynamic_batching")
        client.served.post("/v2/repository/models/a/load")
    assert script.loads == 1


def test_a_batch_without_delay_is_said_as_well(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript(width=2)}, models={"options": {"a": {"batching": True}}})
    assert client.served.get("/v2/models/a/config").json()["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    assert client.call("ModelConfig", name="a").config.HasField("dynamic_batching")


def test_statistics_are_the_pools_totals(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript(resident_bytes=20 * MB), "b": FakeScript()})
    client.infer(fake_raw())

    def count() -> None:
        totals = client.served.host.pool.statistics.of(ModelKey("a", "1"))
        totals.success.count, totals.success.ns, totals.last_inference_ms = 3, 900, 1_700_000_000_000
        totals.inference_count, totals.execution_count, totals.infer_ns = 6, 2, 500
        totals.fail.count, totals.fail.ns = 1, 70

    client.served.on_loop(count)
    (stats,) = client.call("ModelStatistics", name="a").model_stats
    assert (stats.name, stats.version, stats.last_inference) == ("a", "1", 1_700_000_000_000)
    assert (stats.inference_count, stats.execution_count) == (6, 2)
    assert (stats.inference_stats.success.count, stats.inference_stats.success.ns) == (3, 900)
    assert (stats.inference_stats.compute_infer.count, stats.inference_stats.compute_infer.ns) == (3, 500)
    assert (stats.inference_stats.fail.count, stats.inference_stats.fail.ns) == (1, 70)
    assert stats.inference_stats.HasField("cache_miss")
    assert [(entry.type, entry.byte_size) for entry in stats.memory_usage] == [("CPU", 20 * MB)]
    (unused,) = client.call("ModelStatistics", name="b").model_stats
    assert (unused.name, unused.inference_count) == ("b", 0)
    every = client.call("ModelStatistics").model_stats
    said = client.served.get("/v2/models/stats").json()["model_stats"]
    assert [(entry.name, entry.version) for entry in every] == [(entry["name"], entry["version"]) for entry in said]
    assert [entry.inference_count for entry in every] == [entry["inference_count"] for entry in said]
    assert [[(rows.batch_size, rows.compute_infer.ns) for rows in entry.batch_stats] for entry in every] == [
        [(rows["batch_size"], rows["compute_infer"]["ns"]) for rows in entry["batch_stats"]] for entry in said
    ]
    assert refused(lambda: client.call("ModelStatistics", name="c"))[0] is grpc.StatusCode.NOT_FOUND


def test_the_index_is_https(rpc: RpcClient) -> None:
    entries = [
        {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
        for entry in rpc.call("RepositoryIndex").models
    ]
    assert entries == rpc.served.post("/v2/repository/index").json()
    ready = rpc.call("RepositoryIndex", ready=True).models
    assert {entry.state for entry in ready} <= {"READY"}


def test_load_and_unload(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()})
    client.call("RepositoryModelLoad", model_name="a")
    assert [model.state for model in client.served.snapshot().models] == ["ready"]
    client.call("RepositoryModelUnload", model_name="a", parameters={"unload_dependents": {"bool_param": False}})
    assert client.served.snapshot().models == ()
    assert not client.call("ModelReady", name="a").ready
    (entry,) = client.call("RepositoryIndex").models
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "unloaded")
    assert refused(lambda: client.call("RepositoryModelUnload", model_name="b"))[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "parameters", [{"config": {"string_param": "{}"}}, {"file:1/model.onnx": {"bytes_param": b""}}]
)
def test_a_load_of_what_is_not_in_the_repository_is_refused(rpc: RpcClient, parameters: dict[str, Any]) -> None:
    code, text, _ = refused(lambda: rpc.call("RepositoryModelLoad", model_name="add", parameters=parameters))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"'{next(iter(parameters))}' is not supported" in text


def test_an_unload_of_dependents_is_asked_for_by_a_flag(rpc: RpcClient) -> None:
    parameters = {"unload_dependents": {"string_param": "yes"}}
    code, text, _ = refused(lambda: rpc.call("RepositoryModelUnload", model_name="add", parameters=parameters))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "unload parameter 'unload_dependents': expected true or false, got \"yes\""


def test_a_small_call_takes_no_large_message(rpc: RpcClient) -> None:
    code, _, figures = refused(lambda: rpc.call("ModelReady", name="x" * (2 * MB)))
    assert (code, figures["code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "request_too_large")


@pytest.mark.parametrize(
    "method",
    ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"],
)
def test_what_is_not_served_says_so(rpc: RpcClient, method: str) -> None:
    code, text, _ = refused(lambda: rpc.raw(method)(b"", timeout=10))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert text.startswith(f"{method}: this server")


def test_every_described_method_is_answered(rpc: RpcClient) -> None:
    for method in METHODS.keys() - {"ModelStreamInfer"}:
        try:
            rpc.raw(method)(b"", timeout=10)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND, method  # there is no model without a name
    assert list(rpc.stream(iter([]))) == []


def test_a_call_without_a_message_is_invalid(rpc: RpcClient) -> None:
    call = rpc.channel.stream_unary(f"/{SERVICE}/ModelInfer")
    code, text, _ = refused(lambda: call(iter(()), timeout=10))
    assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")


def test_a_call_that_sends_nothing_ends_with_its_time(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()}, server={"request_timeout_s": 0.05})
    never = threading.Event()

    def silence() -> Iterator[bytes]:
        never.wait(10)
        yield b""

    call = client.channel.stream_unary(f"/{SERVICE}/ModelInfer")
    code, text, _ = refused(lambda: call(silence(), timeout=10))
    never.set()
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert text.startswith("receiving the request")
