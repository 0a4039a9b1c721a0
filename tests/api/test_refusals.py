"""What comes in and what goes out: one test for each row of the table, driven over sockets."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import numpy as np
import pytest
from served import MB, Served, error_of, fake_request, head, tensor

from modelhost import errors
from modelhost.api.errors import STATUSES, status_of
from modelhost.runtime.fake import FakeScript

PIXELS = [0] * 64


def digits(**changes: Any) -> dict[str, Any]:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": PIXELS} | changes
    return {"inputs": [{key: value for key, value in entry.items() if value is not ...}]}


def binary(body: dict[str, Any], raw: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(body).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text))}


# --- unknown model or version: 404 -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/digit/infer", "no model 'digit'; did you mean 'digits'?"),
        ("/v2/models/digits/versions/7/infer", "model 'digits' has no version '7'; it has 1"),
        ("/v2/models/digits/versions/01/infer", "no version '01'"),
        ("/v2/models/digits/versions/one/infer", "no version 'one'"),
    ],
)
def test_an_unknown_model_or_version_is_404(ort: Served, path: str, words: str) -> None:
    response = ort.post(path, digits())
    body = error_of(response, 404)
    assert words in body["error"]
    assert body["code"] == "model_not_found"
    assert "retry-after" not in response.headers


@pytest.mark.parametrize("path", ["", "/ready", "/config", "/versions/3", "/versions/3/ready", "/versions/3/config"])
def test_every_question_about_an_unknown_model_is_404(ort: Served, path: str) -> None:
    name = "digits" if "versions" in path else "nothing"
    assert error_of(ort.get(f"/v2/models/{name}{path}"), 404)["code"] == "model_not_found"


# --- the client's mistakes: 400 --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object, got a list of 1"),
        (b"null", "must be a JSON object, got null"),
        (b'{"inputs": 3}', "'inputs' must be a list, got 3"),
        (b"{}", "the request has no 'inputs'"),
        (b'{"inputs": []}', "missing input 'image'; the model's inputs are 'image' FP32 [batch,1,8,8]"),
        (b'{"inputs": [], "id": 3}', "'id' must be a string"),
        (json.dumps(digits(name="picture")).encode(), "unknown input 'picture'; the model's inputs are 'image' FP32"),
        (json.dumps(digits() | {"outputs": [{"name": "x"}]}).encode(), "unknown output 'x'; the model's outputs are"),
        (json.dumps({"inputs": digits()["inputs"] * 2}).encode(), "input 'image' is given twice"),
        (json.dumps(digits() | {"parameters": {"timeout": -1}}).encode(), "'timeout' must be whole microseconds"),
        (json.dumps(digits()).replace("[0,", "[NaN,", 1).encode(), "not valid JSON"),
        (json.dumps(digits()).replace("[0,", "[Infinity,", 1).encode(), "not valid JSON"),
        (json.dumps(digits()).replace("[0,", "[1e999,", 1).encode(), "not valid JSON"),
    ],
)
def test_a_body_that_is_no_request_for_the_model_is_400(ort: Served, body: bytes, words: str) -> None:
    response = ort.infer("digits", body)
    found = error_of(response, 400)
    assert words in found["error"]
    assert found["code"] == "invalid_request"
    assert "retry-after" not in response.headers


@pytest.mark.parametrize(
    ("entry", "expected", "got"),
    [
        (digits(datatype="INT64"), "datatype FP32", "INT64"),
        (digits(datatype=...), "datatype FP32", "null"),
        (digits(shape=[1, 8, 8]), "FP32 [batch,1,8,8]", "shape [1, 8, 8]"),
        (digits(shape=[1, 1, 8, 9]), "FP32 [batch,1,8,8]", "shape [1, 1, 8, 9]"),
        (digits(shape=[-1, 1, 8, 8]), "sizes of 0 or more as 'shape' for FP32 [batch,1,8,8]", "-1"),
        (digits(shape=[True, 1, 8, 8]), "sizes of 0 or more as 'shape' for FP32 [batch,1,8,8]", "true"),
        (digits(shape=[1 << 62, 1, 8, 8]), f"{64 << 62} elements for shape [{1 << 62}, 1, 8, 8]", "64 elements"),
        (digits(data=PIXELS[:63]), "64 elements for shape [1, 1, 8, 8]", "63 elements"),
        (digits(data=[*PIXELS[:63], "7"]), "numbers for FP32", '"7" as element 63'),
        (digits(data=[*PIXELS[:63], True]), "numbers for FP32", "true as element 63"),
        (digits(data=[*PIXELS[:63], 1e39]), None, "1e+39 as element 63"),
        (digits(data=[[[[0] * 8] * 7 + [[0] * 7]]]), None, "7 elements in list 7"),
        (digits(data=...), "'data' or 'binary_data_size'", "neither"),
    ],
)
def test_a_wrong_tensor_is_400_and_named_with_what_was_expected_and_what_came(
    ort: Served, entry: dict[str, Any], expected: str | None, got: str
) -> None:
    body = error_of(ort.infer("digits", entry), 400)
    assert (body["code"], body["tensor"], body["got"]) == ("invalid_tensor", "image", got)
    assert body["error"] == f"tensor 'image': expected {body['expected']}, got {got}"
    assert expected is None or body["expected"] == expected


@pytest.mark.parametrize("size", [0, 252, 260])
def test_a_wrong_byte_count_is_400(ort: Served, size: int) -> None:
    entry = digits(data=..., parameters={"binary_data_size": size})
    content, headers = binary(entry, bytes(size))
    body = error_of(ort.infer("digits", content, headers=headers), 400)
    assert body["expected"] == "256 bytes for FP32 [1, 1, 8, 8]"
    assert body["got"] == f"{size} bytes"


@pytest.mark.parametrize(("declared", "sent"), [(256, 255), (256, 257), (0, 256)])
def test_binary_data_of_another_size_than_declared_is_400(ort: Served, declared: int, sent: int) -> None:
    content, headers = binary(digits(data=..., parameters={"binary_data_size": declared}), bytes(sent))
    body = error_of(ort.infer("digits", content, headers=headers), 400)
    assert f"declare {declared} bytes of binary data, but {sent} bytes follow" in body["error"]


@pytest.mark.parametrize("size", [-1, True, 256.0, "256", 1e30])
def test_a_binary_data_size_that_is_no_size_is_400(ort: Served, size: Any) -> None:
    content, headers = binary(digits(data=..., parameters={"binary_data_size": size}), bytes(256))
    assert error_of(ort.infer("digits", content, headers=headers), 400)["tensor"] == "image"


@pytest.mark.parametrize("value", ["-1", "+5", "1e3", "0x10", "5, 6", "", "9" * 5000, "99999999"])
def test_a_header_length_that_is_none_is_400(ort: Served, value: str) -> None:
    response = ort.infer("digits", digits(), headers={"Inference-Header-Content-Length": value})
    assert "Inference-Header-Content-Length" in error_of(response, 400)["error"]


@pytest.mark.parametrize(
    ("name", "datatype", "data", "got"),
    [
        ("int64", "INT64", [1, 1.5], "1.5 as element 1"),
        ("int64", "INT64", [1, True], "true as element 1"),
        ("int64", "INT64", [1, 1 << 63], f"{1 << 63} as element 1"),
        ("bool", "BOOL", [True, "true"], '"true" as element 1'),
        ("bool", "BOOL", [True, 1], "1 as element 1"),
        ("text", "BYTES", ["a", 1], "1 as element 1"),
        ("text", "BYTES", ["a", None], "null as element 1"),
    ],
)
def test_nothing_is_coerced(ort: Served, name: str, datatype: str, data: list[Any], got: str) -> None:
    assert error_of(ort.infer(name, tensor("x", datatype, [2], data)), 400)["got"] == got


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_is_a_client_error_and_the_host_lives(ort: Served, depth: int) -> None:
    text = json.dumps(digits(data=1)).replace('"data": 1', '"data": ' + "[" * depth + "]" * depth)
    assert ort.infer("digits", text.encode()).status_code in (400, 413)
    assert ort.infer("digits", digits()).status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Encoding": "gzip"}, b"no gzip", "not valid gzip"),
        ({"Content-Encoding": "br"}, b"{}", "'br' is not supported; use gzip or deflate"),
        ({"Content-Encoding": "gzip, gzip"}, b"{}", "not supported"),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_400(
    ort: Served, headers: dict[str, str], body: bytes, words: str
) -> None:
    assert words in error_of(ort.infer("digits", body, headers=headers), 400)["error"]


def test_an_output_that_json_cannot_carry_is_400_and_binary_carries_it(ort: Served) -> None:
    request = tensor("x", "FP32", [2], [1, 0])
    body = error_of(ort.infer("reciprocal", request), 400)
    assert body["code"] == "unrepresentable_output"
    assert "output 'y': element 1 is inf" in body["error"]
    response = ort.infer("reciprocal", request | {"parameters": {"binary_data_output": True}})
    length = int(response.headers["inference-header-content-length"])
    assert np.frombuffer(response.content[length:], "<f4").tolist() == [1, np.inf]


def test_fp16_in_json_is_400_and_says_binary(ort: Served) -> None:
    body = error_of(ort.infer("half", tensor("x", "FP16", [1], [1])), 400)
    assert body["expected"] == "binary data, as JSON has no FP16"


# --- too large: 413, before it is read ---------------------------------------------------------------


def test_a_stated_length_over_the_limit_is_413_before_any_of_the_body_was_sent(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 10_000})
    with served.connect() as connection:
        connection.sendall(head("/v2/models/a/infer", "Content-Length: 10001"))
        answer = connection.recv(65536)
    status, _, rest = answer.partition(b"\r\n")
    body = json.loads(rest.partition(b"\r\n\r\n")[2])
    assert b" 413 " in status
    assert (body["code"], body["size_bytes"], body["limit_bytes"]) == ("request_too_large", 10_001, 10_000)
    assert "retry_after_s" not in body
    assert served.snapshot().counters.loads == 0


def test_a_client_that_asks_first_is_not_told_to_continue_with_too_large_a_body(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 10_000})
    answer = served.exchange(
        head("/v2/models/a/infer", "Content-Length: 10001", "Expect: 100-continue", "Connection: close")
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_a_body_of_unstated_length_is_413_as_soon_as_it_passes_the_limit(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 10_000})
    with served.connect() as connection:
        connection.sendall(head("/v2/models/a/infer", "Transfer-Encoding: chunked"))
        connection.sendall(b"2711\r\n" + b" " * 0x2711 + b"\r\n")  # 10,001 bytes; the body goes on, unsent
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"limit_bytes":10000' in answer


def test_a_body_at_the_limit_is_read(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 10_000})
    body = json.dumps(fake_request()).encode().ljust(10_000)
    assert served.infer("a", body).json()["outputs"][0]["data"] == [2, 4]
    assert served.infer("a", body + b" ").status_code == 413


def test_a_small_body_that_inflates_over_the_limit_is_413(serve_fake) -> None:
    import gzip

    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 1_000_000})
    bomb = gzip.compress(b" " * 30_000_000)
    body = error_of(served.infer("a", bomb, headers={"Content-Encoding": "gzip"}), 413)
    assert body["error"].startswith("the body decompresses to at least")
    assert body["limit_bytes"] == 1_000_000


def test_values_that_take_too_much_memory_to_decode_are_413(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_decoding_bytes": "1MB", "max_request_bytes": "1MB"})
    body = error_of(served.infer("a", tensor("x", "FP32", [50_000], [0] * 50_000)), 413)
    assert "send fewer rows at once, or binary tensors" in body["error"]


def test_raw_numbers_that_need_no_copy_may_take_most_of_the_memory_for_decoding(serve_fake) -> None:
    server = {"max_decoding_bytes": "1MB", "max_request_bytes": "1MB", "compress_answers": False}
    served = serve_fake({"a": FakeScript()}, server=server)
    size = 700 << 10
    described = {"name": "x", "datatype": "FP32", "shape": [size // 4], "parameters": {"binary_data_size": size}}
    asked = {"inputs": [described], "parameters": {"binary_data_output": True}}
    text = json.dumps(asked).encode()
    text += b" " * (-len(text) % 8)
    response = served.infer("a", text + bytes(size), headers={"Inference-Header-Content-Length": str(len(text))})
    assert response.status_code == 200, response.text
    assert len(response.content) > size


# --- memory: 503 now, 507 never ------------------------------------------------------------------------


def test_no_memory_now_is_503_with_the_figures_and_when_to_come_back(serve_fake) -> None:
    may_end = threading.Event()
    busy = FakeScript(resident_bytes=100 * MB, run_may_end=may_end)
    served = serve_fake({"busy": busy, "wanted": FakeScript(resident_bytes=80 * MB)})
    running = served.later(served.infer, "busy")
    assert busy.run_started.wait(10)

    response = served.infer("wanted")

    body = error_of(response, 503)
    assert body["code"] == "insufficient_memory"
    assert response.headers["retry-after"] == str(body["retry_after_s"])
    assert body["needed_bytes"] == 80 * MB
    assert body["available_bytes"] == (192 - 60 - 100) * MB
    (holder,) = body["held_by"]
    assert (holder["name"], holder["version"]) == ("busy", "1")
    assert (holder["committed_bytes"], holder["leases"]) == (100 * MB, 1)
    assert "wanted:1 needs 80.0 MB" in body["error"]
    assert "busy 100.0 MB" in body["error"]

    may_end.set()
    assert running.result().status_code == 200
    assert served.infer("wanted").status_code == 200


def test_what_can_never_fit_is_507_without_retry_after_and_evicts_nothing(serve_fake) -> None:
    served = serve_fake({"small": FakeScript(), "giant": FakeScript(resident_bytes=132 * MB)})
    assert served.infer("small").status_code == 200

    response = served.infer("giant")

    body = error_of(response, 507)
    assert body["code"] == "never_fits"
    assert "retry-after" not in response.headers
    assert "retry_after_s" not in body
    assert (body["needed_bytes"], body["available_bytes"]) == (132 * MB, 132 * MB)
    assert [holder["name"] for holder in body["held_by"]] == ["small"]
    assert [model.name for model in served.snapshot().models] == ["small"]


# --- queues and deadlines: 503 -------------------------------------------------------------------------


def test_a_full_queue_for_threads_is_503_overloaded_at_once(serve_fake) -> None:
    may_end = threading.Event()
    script = FakeScript(run_may_end=may_end)
    served = serve_fake({"a": script}, server={"run_threads": 1, "max_queue": 1})
    first = served.later(served.infer, "a")
    assert script.run_started.wait(10)
    second = served.later(served.infer, "a")
    served.eventually(lambda snapshot: snapshot.in_flight == 2)

    response = served.infer("a")

    body = error_of(response, 503)
    assert body["code"] == "overloaded"
    assert response.headers["retry-after"] == str(body["retry_after_s"])
    assert (body["waiting"], body["limit"]) == (1, 1)
    may_end.set()
    assert {first.result().status_code, second.result().status_code} == {200}


def test_a_full_queue_for_models_is_503_overloaded_at_once(serve_fake) -> None:
    may_end = threading.Event()
    served = serve_fake({"a": FakeScript(load_may_end=may_end), "b": FakeScript()}, pool={"max_waiting": 1})
    first = served.later(served.infer, "a")
    served.eventually(lambda snapshot: snapshot.waiting == 1)
    body = error_of(served.infer("b"), 503)
    assert (body["code"], body["queue"]) == ("overloaded", "the queue for models")
    may_end.set()
    assert first.result().status_code == 200


def test_a_deadline_that_passes_during_a_load_is_503_timeout(serve_fake) -> None:
    may_end = threading.Event()
    served = serve_fake({"a": FakeScript(load_may_end=may_end)})
    response = served.infer("a", fake_request(timeout=30_000))
    body = error_of(response, 503)
    assert body["code"] == "timeout"
    assert response.headers["retry-after"] == str(body["retry_after_s"])
    assert re.fullmatch(r"loading a:1 did not finish within \d+(\.\d+)? (ms|s)", body["error"])
    assert 0.01 < body["waited_s"] < 5
    may_end.set()


def test_a_deadline_that_passes_during_a_run_is_503_timeout_and_stops_the_run(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())  # set by the cancellation only
    served = serve_fake({"a": script})
    body = error_of(served.infer("a", fake_request(timeout=30_000)), 503)
    assert body["code"] == "timeout"
    assert body["error"].startswith("the run did not finish within")
    served.eventually(lambda snapshot: snapshot.in_flight == 0 and snapshot.models[0].leases == 0)


def test_the_hosts_own_deadline_holds_where_a_request_names_a_longer_one(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(run_may_end=threading.Event())}, server={"request_timeout_s": 0.03})
    assert error_of(served.infer("a", fake_request(timeout=60_000_000)), 503)["code"] == "timeout"


# --- broken models: 500, the others unharmed ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [("unknown_operator", "NoSuchOperator"), ("torn", "truncated at byte 20000")],
)
def test_a_broken_model_is_500_with_the_reason_and_the_others_answer(ort: Served, name: str, reason: str) -> None:
    response = ort.infer(name, tensor("x", "FP32", [1], [1]))
    body = error_of(response, 500)
    assert (body["code"], body["model"], body["version"]) == ("model_broken", name, "1")
    assert reason in body["reason"]
    assert body["error"] == f"model '{name}' version 1 cannot be loaded: {body['reason']}"
    assert "retry-after" not in response.headers
    assert ort.infer("digits", digits()).status_code == 200


def test_a_broken_folder_is_500_with_what_is_wrong_with_it(ort: Served) -> None:
    body = error_of(ort.infer("empty", digits()), 500)
    assert body["code"] == "model_broken"
    assert "model.onnx" in body["reason"]


def test_a_broken_model_is_unavailable_with_the_reason_in_the_index(ort: Served) -> None:
    ort.infer("unknown_operator", tensor("x", "FP32", [1], [1]))
    entries = {entry["name"]: entry for entry in ort.post("/v2/repository/index").json()}
    assert entries["unknown_operator"]["state"] == "UNAVAILABLE"
    assert "NoSuchOperator" in entries["unknown_operator"]["reason"]
    assert entries["empty"]["state"] == "UNAVAILABLE"
    assert entries["empty"]["reason"]
    assert ort.get("/v2/models/unknown_operator/ready").status_code == 503


# --- the table itself, and the shape of every failure --------------------------------------------------------


def _all_errors() -> list[type[errors.ModelHostError]]:
    found, to_visit = [], [errors.ModelHostError]
    while to_visit:
        kind = to_visit.pop()
        found.append(kind)
        to_visit += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_of_its_own_or_of_a_named_base(kind: type[errors.ModelHostError]) -> None:
    bases = [base for base in kind.__mro__ if base in STATUSES]
    assert bases[0] is not errors.ModelHostError or kind is errors.ModelHostError
    assert status_of(kind.__new__(kind)) == STATUSES[bases[0]]
    assert STATUSES[bases[0]] >= 400
    assert kind.code


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v3", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models//ready", 404),
        ("GET", "/v2/models/digits/trace/setting", 404),
        ("GET", "/v2/models/digits/infer", 405),
        ("POST", "/v2", 405),
        ("PUT", "/v2/models/digits", 405),
        ("DELETE", "/memory", 405),
        ("OPTIONS", "/v2/health/live", 405),
        ("PATCH", "/metrics", 405),
    ],
)
def test_what_the_framework_refuses_has_our_shape(ort: Served, method: str, path: str, status: int) -> None:
    response = ort.http.request(method, path)
    assert error_of(response, status)["error"].startswith(f"{method} {path}: ")
    assert ("allow" in response.headers) == (status == 405)


def test_head_is_answered_without_a_body(ort: Served) -> None:
    response = ort.http.head("/v2/health/live")
    assert response.status_code == 200
    assert response.content == b""


def test_a_bug_is_500_in_our_shape(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": FakeScript()})

    def fail() -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(served.host.pool, "snapshot", fail)
    response = served.get("/memory")
    request_id = response.headers["x-request-id"]
    text = f"internal error; the log has it under request id {request_id}"
    assert error_of(response, 500) == {"error": text, "code": "internal"}


def test_a_failed_allocation_is_503_in_our_shape(serve_fake, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve_fake({"a": FakeScript()})

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(served.host.pool, "snapshot", fail)
    response = served.get("/memory")
    assert error_of(response, 503)["code"] == "insufficient_memory"
    assert "retry-after" in response.headers


def test_what_the_framework_finds_wrong_with_parameters_is_400_in_our_shape(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})

    async def route(count: int) -> None:
        """Needs a number."""

    served.app.add_api_route("/counted/{count}", route)
    assert "count" in error_of(served.get("/counted/many"), 400)["error"]


def test_a_run_that_fails_is_500_and_the_model_goes_on(serve_fake) -> None:
    script = FakeScript(run_error=errors.RunFailed("the run failed: a node said no"))
    served = serve_fake({"a": script})
    body = error_of(served.infer("a"), 500)
    assert (body["code"], body["error"]) == ("run_failed", "the run failed: a node said no")
    script.run_error = None
    assert served.infer("a").status_code == 200
    assert script.loads == 1


def test_a_run_that_onnx_runtime_raises_from_is_500_in_its_words_and_the_model_goes_on(ort) -> None:
    for _ in range(3):  # the third time in place, where that is known to be short
        assert ort.infer("triples", tensor("x", "FP32", [6], [1.0] * 6)).status_code == 200
        body = error_of(ort.infer("triples", tensor("x", "FP32", [4], [1.0] * 4)), 500)
        assert body["code"] == "run_failed"
        assert "Reshape" in body["error"]
        assert "onnxruntime_src" not in body["error"]
    (found,) = [model for model in ort.snapshot().models if model.name == "triples"]
    assert (found.state, found.leases) == ("ready", 0)
