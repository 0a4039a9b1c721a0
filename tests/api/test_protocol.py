"""What real clients read: health, metadata, versions, the repository extension, both encodings of infer."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from served import MB, Served, error_of, fake_request, tensor

from modelhost.runtime.fake import FakeScript


def states(served: Served, body: Any = None) -> dict[tuple[str, str], tuple[str, str]]:
    """The index as name and version to state and reason."""
    entries = served.post("/v2/repository/index", body).json()
    return {(entry["name"], entry["version"]): (entry["state"], entry["reason"]) for entry in entries}


# --- server and health -------------------------------------------------------------------------------


def test_the_server_names_itself_and_announces_only_what_works(ort: Served) -> None:
    body = ort.get("/v2").json()
    assert body["name"] == "modelhost"
    assert body["version"]
    assert "binary_tensor_data" in body["extensions"]
    assert {"statistics", "logging", "model_repository(unload_dependents)"} <= set(body["extensions"])
    assert not {"trace", "sequence", "system_shared_memory"} & set(body["extensions"])


@pytest.mark.parametrize(("path", "body"), [("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True})])
def test_health_is_json_that_clients_read(ort: Served, path: str, body: dict[str, bool]) -> None:
    response = ort.get(path)
    assert (response.status_code, response.json()) == (200, body)
    assert response.headers["content-type"] == "application/json"


def test_the_server_is_ready_only_after_the_preloads(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(), "b": FakeScript()}, models={"preload": ("b",)})
    assert served.get("/v2/health/ready").status_code == 200
    assert [(model.name, model.state) for model in served.snapshot().models] == [("b", "ready")]


# --- metadata and configuration ------------------------------------------------------------------------


def test_metadata_has_versions_and_faces_without_loading_the_model(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    assert served.get("/v2/models/a").json() == {
        "name": "a",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    assert served.snapshot().models == ()


def test_metadata_is_the_same_loaded_or_not(ort: Served) -> None:
    ort.post("/v2/repository/models/wine/unload")
    before = ort.get("/v2/models/wine").json()
    ort.post("/v2/repository/models/wine/load")
    assert ort.get("/v2/models/wine").json() == before
    assert [output["datatype"] for output in before["outputs"]] == ["BYTES", "FP32"]


def test_configuration_has_what_load_generators_read(ort: Served) -> None:
    body = ort.get("/v2/models/wine/config").json()
    assert isinstance(body["platform"], str)
    assert body["max_batch_size"] == 0
    assert body["input"] == [{"name": "measurements", "data_type": "TYPE_FP32", "dims": [-1, 13]}]
    assert {output["data_type"] for output in body["output"]} == {"TYPE_STRING", "TYPE_FP32"}


def test_a_batch_size_from_the_settings_takes_the_batch_dimension_off(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, models={"options": {"a": {"max_batch_size": 8}}})
    body = served.get("/v2/models/a/config").json()
    assert (body["max_batch_size"], body["input"][0]["dims"]) == (8, [])


# --- versions and names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "expected"), [(None, 11.0), ("1", 2.0), ("2", 3.0), ("10", 11.0)])
def test_the_highest_version_answers_by_default_and_any_by_path(
    ort: Served, version: str | None, expected: float
) -> None:
    path = "/v2/models/add" + (f"/versions/{version}" if version else "")
    body = ort.post(f"{path}/infer", tensor("x", "FP32", [1], [1])).json()
    assert body["outputs"][0]["data"] == [expected]
    assert body["model_version"] == (version or "10")
    assert ort.get(path).json()["versions"] == ["1", "2", "10"]
    assert ort.get(f"{path}/ready").status_code == 200
    assert ort.get(f"{path}/config").status_code == 200


def test_a_percent_encoded_name_is_decoded_once(ort: Served) -> None:
    path = "/v2/models/gr%C3%B6%C3%9Fe%20%26%20co"
    assert ort.get(path).json()["name"] == "größe & co"
    assert ort.post(f"{path}/infer", tensor("x", "FP32", [1], [1])).json()["outputs"][0]["data"] == [6]
    assert ort.get("/v2/models/%64igits").status_code == 200
    assert error_of(ort.get("/v2/models/%2564igits"), 404)["error"].startswith("no model '%64igits'")


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "%2e%2e%2fzoo%2fdigits",
        "..%2f..%2f..%2fetc%2fpasswd",
        "digits%00",
        "digits%0a",
        "digits%20",
        "DIGITS",
        "%F0%9F%98%80",
        "%ff%fe",
        "a" * 10_000,
        "digits%2f1",
        "*",
    ],
)
def test_a_name_is_looked_up_and_never_a_path(ort: Served, name: str) -> None:
    for path in (f"/v2/models/{name}/ready", f"/v2/models/{name}/config"):
        assert len(error_of(ort.get(path), 404)["error"]) < 20_000
    for verb in ("load", "unload"):
        error_of(ort.post(f"/v2/repository/models/{name}/{verb}"), 404)
    assert ort.infer(name, tensor("x", "FP32", [1], [1])).status_code in (404, 405)


# --- infer -------------------------------------------------------------------------------------------------


def test_an_answer_names_model_version_and_id_and_has_each_output(ort: Served) -> None:
    request = tensor("measurements", "FP32", [1, 13], [0] * 13) | {"id": "q-1", "model_name": "ignored"}
    body = ort.infer("wine", request).json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("wine", "1", "q-1")
    label, probabilities = body["outputs"]
    assert (label["datatype"], label["shape"]) == ("BYTES", [1])
    assert label["data"][0].startswith("class_")
    assert (probabilities["shape"], pytest.approx(1)) == ([1, 3], sum(probabilities["data"]))


def test_an_id_that_was_not_given_is_left_out(ort: Served) -> None:
    assert "id" not in ort.infer("add", tensor("x", "FP32", [1], [1])).json()


def test_outputs_come_in_the_order_asked_for(ort: Served) -> None:
    request = tensor("measurements", "FP32", [1, 13], [0] * 13)
    asked = request | {"outputs": [{"name": "probabilities"}, {"name": "label"}]}
    assert [out["name"] for out in ort.infer("wine", asked).json()["outputs"]] == ["probabilities", "label"]
    asked = request | {"outputs": [{"name": "label"}]}
    assert [out["name"] for out in ort.infer("wine", asked).json()["outputs"]] == ["label"]


def test_each_outputs_own_wish_for_binary_wins_over_the_requests(ort: Served) -> None:
    request = tensor("measurements", "FP32", [1, 13], [0] * 13) | {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "label"}, {"name": "probabilities", "parameters": {"binary_data": False}}],
    }
    response = ort.infer("wine", request)
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    document, raw = json.loads(response.content[:length]), response.content[length:]
    label, probabilities = document["outputs"]
    assert label["parameters"]["binary_data_size"] == len(raw)
    assert raw[4:].decode().startswith("class_")
    assert "parameters" not in probabilities
    assert len(probabilities["data"]) == 3


def test_a_pure_json_answer_has_no_binary_header(ort: Served) -> None:
    response = ort.infer("add", tensor("x", "FP32", [1], [1]))
    assert response.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in response.headers


def test_the_binary_header_may_state_that_all_is_json(ort: Served) -> None:
    content = json.dumps(tensor("x", "FP32", [1], [1])).encode()
    response = ort.infer("add", content, headers={"INFERENCE-Header-Content-Length": str(len(content))})
    assert response.json()["outputs"][0]["data"] == [11]


def test_a_whole_body_may_be_one_raw_tensor(ort: Served) -> None:
    pixels = np.zeros((3, 1, 8, 8), "<f4")
    response = ort.infer("digits", pixels.tobytes(), headers={"Inference-Header-Content-Length": "0"})
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:length])["outputs"][0]["shape"] == [3, 10]
    assert len(response.content) - length == 3 * 10 * 4


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "text/plain", "nonsense"])
def test_the_content_type_of_a_request_does_not_matter(ort: Served, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    assert ort.infer("add", tensor("x", "FP32", [1], [1]), headers=headers).status_code == 200


def test_an_empty_batch_gets_an_empty_answer(ort: Served) -> None:
    body = ort.infer("digits", tensor("image", "FP32", [0, 1, 8, 8], [])).json()
    assert (body["outputs"][0]["shape"], body["outputs"][0]["data"]) == ([0, 10], [])


@pytest.mark.parametrize("texts", [["", "a"], ["größe", "\x00"], ["😀" * 100, ""]])
def test_texts_of_any_length_come_back_in_both_encodings(ort: Served, texts: list[str]) -> None:
    request = tensor("x", "BYTES", [2], texts)
    assert ort.infer("text", request).json()["outputs"][0]["data"] == texts
    response = ort.infer("text", request | {"parameters": {"binary_data_output": True}})
    raw = response.content[int(response.headers["inference-header-content-length"]) :]
    assert raw == b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)


def test_the_last_of_duplicate_json_keys_counts(ort: Served) -> None:
    body = b'{"inputs": [], "inputs": [{"name":"x","datatype":"FP32","shape":[9],"shape":[1],"data":[1]}]}'
    assert ort.infer("add", body).json()["outputs"][0]["data"] == [11]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", "GZIP"])
def test_a_compressed_body_is_a_body(ort: Served, coding: str) -> None:
    import gzip
    import zlib

    content = json.dumps(tensor("x", "FP32", [1], [1])).encode()
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[coding.lower()]
    response = ort.infer("add", compress(content), headers={"Content-Encoding": coding})
    assert response.json()["outputs"][0]["data"] == [11]


def test_simultaneous_requests_for_one_cold_model_cause_one_load(serve_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    served = serve_fake({"a": script})
    answers = [served.later(served.infer, "a") for _ in range(32)]
    served.eventually(lambda snapshot: snapshot.waiting == 32)
    script.load_may_end.set()
    assert {answer.result().status_code for answer in answers} == {200}
    assert script.loads == 1


def test_two_hundred_requests_at_once_are_all_answered(ort: Served) -> None:
    bodies = [tensor("x", "FP32", [1], [number]) for number in range(200)]
    answers = [ort.later(ort.infer, "add", body) for body in bodies]
    assert [answer.result().json()["outputs"][0]["data"] for answer in answers] == [[n + 10.0] for n in range(200)]


# --- index, load, unload --------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [None, {}, {"ready": False}, {"parameters": None}])
def test_the_index_lists_everything_with_state_and_reason(serve_fake, body: Any) -> None:
    served = serve_fake({"a": FakeScript(), "b": FakeScript()})
    served.infer("a")
    assert states(served, body) == {("a", "1"): ("READY", ""), ("b", "1"): ("UNAVAILABLE", "")}


def test_the_index_lists_only_loaded_models_where_asked_to(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(), "b": FakeScript()})
    served.infer("a")
    assert states(served, {"ready": True}) == {("a", "1"): ("READY", "")}
    assert served.post("/v2/repository/any/index", {"ready": True}).status_code == 200


def test_the_index_shows_a_load_in_progress(serve_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    served = serve_fake({"a": script})
    answer = served.later(served.infer, "a")
    assert script.load_started.wait(10)
    assert states(served) == {("a", "1"): ("LOADING", "")}
    script.load_may_end.set()
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v2/repository/index", b"{", "the body is not JSON"),
        ("/v2/repository/index", b"  ", "the body is not JSON"),
        ("/v2/repository/index", b"[]", "expected a JSON object"),
        ("/v2/repository/index", {"ready": "yes"}, "'ready': expected true or false"),
        ("/v2/repository/index", {"limit": 0}, "'limit': expected a whole number from 1"),
        ("/v2/repository/index", {"limit": 1.5}, "'limit': expected a whole number from 1"),
        ("/v2/repository/index", {"limit": True}, "'limit': expected a whole number from 1"),
        ("/v2/repository/index", {"limit": "5"}, "'limit': expected a whole number from 1"),
        ("/v2/repository/index", {"limit": 1e300}, "'limit': expected a whole number from 1"),
        ("/v2/repository/index", {"after": 5}, "'after': expected the name of a model"),
        ("/v2/repository/models/a/load", b"nope", "the body is not JSON"),
        ("/v2/repository/models/a/load", b"[" * 5000, "the body is not JSON"),
        ("/v2/repository/models/a/load", {"parameters": [1]}, "'parameters': expected an object"),
        ("/v2/repository/models/a/load", {"parameters": {"config": "{}"}}, "load parameter 'config' is not supported"),
        ("/v2/repository/models/a/load", {"parameters": {"file:1/model.onnx": ""}}, "file:1/model.onnx"),
        ("/v2/repository/models/a/unload", b"1", "expected a JSON object"),
    ],
)
def test_a_body_of_the_repository_extension_that_is_wrong_is_400(serve_fake, path: str, body: Any, words: str) -> None:
    served = serve_fake({"a": FakeScript()})
    assert words in error_of(served.post(path, body), 400)["error"]
    assert served.snapshot().models == ()


def test_a_load_answers_when_the_model_is_ready(serve_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    served = serve_fake({"a": script})
    answer = served.later(served.post, "/v2/repository/models/a/load", {"parameters": {}})
    assert script.load_started.wait(10)
    assert not answer.done()
    script.load_may_end.set()
    assert answer.result().status_code == 200
    assert answer.result().json()["state"] == "ready"
    (model,) = served.snapshot().models
    assert (model.state, model.leases) == ("ready", 0)


def test_an_unload_answers_when_the_memory_is_back(serve_fake) -> None:
    script = FakeScript(resident_bytes=30 * MB, close_may_end=threading.Event())
    served = serve_fake({"a": script})
    served.infer("a")
    answer = served.later(served.post, "/v2/repository/models/a/unload", {"parameters": {"unload_dependents": False}})
    assert script.close_started.wait(10)
    served.settle()
    assert not answer.done()
    assert states(served) == {("a", "1"): ("UNLOADING", "")}
    script.close_may_end.set()
    body = answer.result().json()
    assert (body["name"], body["unload"]) == ("a", True)
    assert [recovery["freed_bytes"] for recovery in body["recovered"]] == [30 * MB]
    assert served.snapshot().reservations == 0


def test_an_unload_waits_for_the_run_in_progress(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    served = serve_fake({"a": script})
    running = served.later(served.infer, "a")
    assert script.run_started.wait(10)
    unloading = served.later(served.post, "/v2/repository/models/a/unload")
    served.eventually(lambda snapshot: snapshot.models[0].state == "draining")
    assert script.closes == 0
    script.run_may_end.set()
    assert (running.result().status_code, unloading.result().status_code) == (200, 200)
    assert script.closes == 1
    assert script.violations == []


def test_an_unloaded_model_is_not_ready_until_a_load_or_a_request_wants_it(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    assert served.get("/v2/models/a/ready").json() == {"name": "a", "ready": True}
    for want in (served.infer, lambda name: served.post(f"/v2/repository/models/{name}/load")):
        assert served.post("/v2/repository/models/a/unload").status_code == 200
        response = served.get("/v2/models/a/ready")
        assert (response.status_code, response.json()["ready"]) == (503, False)
        assert states(served) == {("a", "1"): ("UNAVAILABLE", "unloaded")}
        assert want("a").status_code == 200
        assert served.get("/v2/models/a/ready").status_code == 200
        assert states(served) == {("a", "1"): ("READY", "")}


def test_an_evicted_model_stays_ready_since_the_next_request_loads_it(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    served.infer("a")
    assert served.post("/memory/cleanup").status_code == 200
    assert states(served) == {("a", "1"): ("UNAVAILABLE", "")}
    assert served.get("/v2/models/a/ready").status_code == 200


def test_unloading_what_is_not_loaded_is_no_error(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    assert served.post("/v2/repository/models/a/unload").json()["recovered"] == []


def test_an_unload_takes_all_versions(ort: Served) -> None:
    for version in ("1", "2"):
        ort.post(f"/v2/models/add/versions/{version}/infer", tensor("x", "FP32", [1], [1]))
    assert {("add", "1"), ("add", "2")} <= states(ort, {"ready": True}).keys()
    ort.post("/v2/repository/models/add/unload")
    assert {name for name, _ in states(ort, {"ready": True})}.isdisjoint({"add"})


def test_a_load_tries_a_broken_model_again_where_a_request_meets_the_remembered_failure(serve_fake) -> None:
    script = FakeScript(load_error="no")
    served = serve_fake({"a": script}, pool={"failure_backoff_s": 60})
    for _ in range(3):
        error_of(served.infer("a"), 500)
    assert script.loads == 1
    error_of(served.post("/v2/repository/models/a/load"), 500)
    assert script.loads == 2
    script.load_error = None
    assert served.post("/v2/repository/models/a/load").status_code == 200
    assert served.infer("a", fake_request()).status_code == 200


def test_a_model_that_was_added_meanwhile_is_found(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    folder = served.host.settings.models.directory / "late" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"fake")
    assert ("late", "1") in states(served)
    assert served.infer("late").status_code == 200
