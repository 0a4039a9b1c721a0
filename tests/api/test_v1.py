"""V1 over HTTP: predictions in both forms, status and metadata, as KServe's and TensorFlow Serving's clients ask."""

from __future__ import annotations

import base64
import gzip
import threading
from typing import Any

import pytest
from served import Served, error_of

from modelhost.runtime.fake import FakeScript

ROW = [14.2, 1.71, 2.43, 15.6, 127.0, 2.8, 3.06, 0.28, 2.29, 5.64, 1.04, 3.92, 1065.0]


def predict(served: Served, name: str, body: Any, **more: Any) -> Any:
    return served.post(f"/v1/models/{name}:predict", body, **more)


# --- predictions -------------------------------------------------------------------------------------


def test_rows_in_and_rows_out(ort: Served) -> None:
    response = predict(ort, "add", {"instances": [1, 2.5]})
    assert (response.status_code, response.json()) == (200, {"predictions": [11, 12.5]})
    assert response.headers["content-type"] == "application/json"
    assert predict(ort, "add", {"instances": [{"x": 1}]}).json() == {"predictions": [11]}


def test_columns_in_and_columns_out(ort: Served) -> None:
    for body in ({"inputs": [1, 2.5]}, {"inputs": {"x": [1, 2.5]}}):
        assert predict(ort, "add", body | {"signature_name": "any"}).json() == {"outputs": [11, 12.5]}


def test_several_inputs_are_objects(ort: Served) -> None:
    assert predict(ort, "sum", {"instances": [{"a": 1, "b": 2}, {"b": 3, "a": 4}]}).json() == {"predictions": [3, 7]}
    assert predict(ort, "sum", {"inputs": {"a": [1, 2], "b": [3, 4]}}).json() == {"outputs": [4, 6]}


def test_several_outputs_are_objects(ort: Served) -> None:
    row = predict(ort, "wine", {"instances": [ROW]}).json()["predictions"]
    assert [sorted(entry) for entry in row] == [["label", "probabilities"]]
    whole = predict(ort, "wine", {"inputs": [ROW]}).json()["outputs"]
    assert whole == {name: [value] for name, value in row[0].items()}
    assert whole["label"][0].startswith("class_")


def test_it_says_what_v2_says(ort: Served) -> None:
    rows = [[value * factor for value in ROW] for factor in (1, 0.9, 1.1)]
    request = {
        "inputs": [{"name": "measurements", "datatype": "FP32", "shape": [3, 13], "data": rows}],
        "outputs": [{"name": "label"}],
    }
    labels = ort.infer("wine", request).json()["outputs"][0]["data"]
    assert [row["label"] for row in predict(ort, "wine", {"instances": rows}).json()["predictions"]] == labels


def test_texts_come_in_base64_too(ort: Served) -> None:
    encoded = {"b64": base64.b64encode("größe".encode()).decode()}
    assert predict(ort, "text", {"instances": ["a", encoded]}).json() == {"predictions": ["a", "größe"]}


def test_half_precision_is_numbers_here(ort: Served) -> None:
    assert predict(ort, "half", {"instances": [0.5, 2]}).json() == {"predictions": [0.5, 2]}


@pytest.mark.parametrize(("version", "expected"), [("", 11), ("/versions/1", 2), ("/versions/2", 3)])
def test_a_version_can_be_named(ort: Served, version: str, expected: int) -> None:
    response = ort.post(f"/v1/models/add{version}:predict", {"instances": [1]})
    assert response.json() == {"predictions": [expected]}


def test_a_name_is_decoded_once(ort: Served) -> None:
    assert predict(ort, "gr%C3%B6%C3%9Fe%20%26%20co", {"instances": [1]}).json() == {"predictions": [6]}
    assert "'%64igits'" in error_of(predict(ort, "%2564igits", {"instances": [1]}), 404)["error"]


def test_a_body_may_be_compressed(ort: Served) -> None:
    body = gzip.compress(b'{"instances":[1]}')
    assert predict(ort, "add", body, headers={"Content-Encoding": "gzip"}).json() == {"predictions": [11]}


def test_a_large_body_is_decoded_beside_the_loop(ort: Served) -> None:
    rows = [float(number) for number in range(30_000)]
    assert predict(ort, "add", {"instances": rows}).json()["predictions"] == [row + 10 for row in rows]


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("add", b"{", "not valid JSON"),
        ("add", b"", "not valid JSON"),
        ("add", {"instances": [1, "2"]}, 'expected numbers for FP32, got "2" as element 0 of instance 1'),
        ("add", {"instances": [1, [2]]}, "in instance 1"),
        ("sum", {"instances": [{"a": 1, "b": 1}, {"a": 1}]}, "instance 1: missing input 'b'"),
        ("reciprocal", {"instances": [1, 0]}, "element 1 is inf"),
    ],
)
def test_what_is_wrong_is_400_and_named(ort: Served, name: str, body: Any, words: str) -> None:
    assert words in error_of(predict(ort, name, body), 400)["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/nothing:predict", 404),
        ("/v1/models/add/versions/7:predict", 404),
        ("/v1/models/:predict", 404),
        ("/v1/models/add:explain", 405),
        ("/v1/models/add", 405),
    ],
)
def test_a_prediction_of_what_is_not_there_is_refused(ort: Served, path: str, status: int) -> None:
    error_of(ort.post(path, {"instances": [1]}), status)


def test_a_body_that_is_too_large_is_413(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 100})
    assert error_of(predict(served, "a", {"instances": [0.5] * 100}), 413)["code"] == "request_too_large"


def test_a_broken_model_is_500(ort: Served) -> None:
    assert error_of(predict(ort, "unknown_operator", {"instances": [1]}), 500)["code"] == "model_broken"


def test_a_client_that_goes_away_ends_its_run(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    served = serve_fake({"a": script})
    body = b'{"instances":[1,2]}'
    with served.connect() as connection:
        head = f"POST /v1/models/a:predict HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert script.run_started.wait(10)
    served.eventually(lambda snapshot: snapshot.in_flight == 0)
    assert 'outcome="client_gone"' in served.get("/metrics").text


# --- status and metadata -----------------------------------------------------------------------------


def test_the_root_says_that_the_host_lives(ort: Served) -> None:
    assert ort.get("/").json() == {"status": "alive"}


def test_the_names_of_all_models_are_listed(serve_fake) -> None:
    served = serve_fake({"b": FakeScript(), "a": FakeScript()})
    assert served.get("/v1/models").json() == {"models": ["a", "b"]}


def test_a_status_says_ready_and_the_state_of_each_version(ort: Served) -> None:
    body = ort.get("/v1/models/add").json()
    assert (body["name"], body["ready"]) == ("add", True)
    ok = {"error_code": "OK", "error_message": ""}
    assert body["model_version_status"] == [
        {"version": version, "state": "AVAILABLE", "status": ok} for version in ("1", "2", "10")
    ]
    body = ort.get("/v1/models/add/versions/2").json()
    assert [status["version"] for status in body["model_version_status"]] == ["2"]


def test_a_model_that_was_unloaded_is_not_ready(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    served.post("/v2/repository/models/a/unload")
    response = served.get("/v1/models/a")
    assert (response.status_code, response.json()["ready"]) == (503, False)
    assert response.json()["model_version_status"][0]["state"] == "END"


def test_a_model_that_could_not_be_loaded_says_why(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(load_error="no such operator")}, pool={"failure_backoff_s": 60})
    served.infer("a")
    response = served.get("/v1/models/a")
    (status,) = response.json()["model_version_status"]
    assert (response.status_code, status["state"]) == (503, "END")
    assert status["status"]["error_code"] == "UNKNOWN"
    assert "no such operator" in status["status"]["error_message"]


def test_a_load_in_progress_is_shown(serve_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    served = serve_fake({"a": script})
    answer = served.later(served.infer, "a")
    assert script.load_started.wait(10)
    assert served.get("/v1/models/a").json()["model_version_status"][0]["state"] == "LOADING"
    script.load_may_end.set()
    assert answer.result().status_code == 200


def test_metadata_has_the_signature(ort: Served) -> None:
    body = ort.get("/v1/models/wine/metadata").json()
    assert body["model_spec"] == {"name": "wine", "signature_name": "", "version": "1"}
    signature = body["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["measurements"] == {
        "name": "measurements",
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "13", "name": ""}], "unknown_rank": False},
    }
    assert signature["outputs"]["label"]["dtype"] == "DT_STRING"
    assert ort.get("/v1/models/add/versions/2/metadata").json()["model_spec"]["version"] == "2"


@pytest.mark.parametrize("path", ["/v1/models/nothing", "/v1/models/add/versions/7", "/v1/models/nothing/metadata"])
def test_what_is_not_there_is_404(ort: Served, path: str) -> None:
    assert error_of(ort.get(path), 404)["code"] == "model_not_found"


def test_a_prediction_is_no_model_to_ask_for(ort: Served) -> None:
    for path in ("/v1/models/wine:predict", "/v1/models/wine/versions/1:predict"):
        response = ort.get(path)
        error_of(response, 405)
        assert response.headers["allow"] == "POST"
