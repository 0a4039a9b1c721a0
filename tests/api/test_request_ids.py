"""Request ids, lines of the log, and what is in neither answers nor lines: paths, tensors, keys."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from rpc_client import RpcClient, client_of, fake_raw, refused
from served import Served, error_of, fake_host, fake_request, head, serve, tensor
from test_access import bearer, write_keys
from wire import infer, post, quick_script, wire

from modelhost.api.logs import JsonFormatter
from modelhost.api.rpc.messages import METHODS, SERVICE
from modelhost.runtime.fake import FakeScript

CANARY = "canary31415926535"
NUMBER = 31415926.0
MADE = re.compile(r"[0-9a-f]{16}")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process would write to its log, at the lowest level, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, ours = logging.getLogger(), logging.getLogger("modelhost")
    before = root.level, ours.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    ours.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        ours.setLevel(before[1])


def written(lines: io.StringIO, logger: str = "modelhost") -> list[dict[str, Any]]:
    return [found for line in lines.getvalue().splitlines() if (found := json.loads(line))["logger"] == logger]


# --- ids ----------------------------------------------------------------------------------------------------


def test_errors_have_the_clients_id_or_one_of_ours_on_every_way(serve_fake) -> None:
    served: Served = serve_fake({"a": quick_script(), "bad": FakeScript(load_error="torn")})
    served.infer("a")
    wrong = json.dumps(tensor("x", "FP32", [1], ["text"]))
    asked = [
        ("GET", "/v2/models/none", b""),
        ("GET", "/nowhere", b""),
        ("PUT", "/v2/models/a/infer", b""),
        ("GET", "/v1/models/a:predict", b""),
        ("POST", "/v1/models/a:predict", b"{}"),
        ("POST", "/v2/models/a/infer", wrong.encode()),
        ("POST", "/v2/models/bad/infer", json.dumps(fake_request()).encode()),
        ("POST", "/v2/models/none/infer", b"{}"),
        ("POST", "/v2/logging", b"[]"),
        ("GET", "/v2/models/a%2fb", b""),
    ]
    for method, path, body in asked:
        for sent in ("mine-1", None, "not sane", "x" * 200):
            headers = {} if sent is None else {"X-Request-Id": sent}
            answer = served.http.request(method, path, content=body, headers=headers)
            assert answer.status_code >= 400, path
            found = answer.headers["x-request-id"]
            assert found == sent if sent == "mine-1" else MADE.fullmatch(found), (path, sent)
    assert "x-request-id" not in served.infer("a", headers={"X-Request-Id": "mine"}).headers


def test_grpc_errors_have_ids_too(rpc_fake) -> None:
    client: RpcClient = rpc_fake({"a": FakeScript()})
    for method, request in (
        ("ModelInfer", fake_raw("none")),
        ("ModelMetadata", METHODS["ModelMetadata"][0](name="none")),
    ):
        for sent in ("mine-1", None, "not sane"):
            metadata = () if sent is None else (("x-request-id", sent),)
            with pytest.raises(grpc.RpcError) as caught:
                client.raw(method)(request.SerializeToString(), metadata=metadata, timeout=10)
            found = dict(caught.value.trailing_metadata())["x-request-id"]
            assert found == sent if sent == "mine-1" else MADE.fullmatch(found)


def test_a_bug_says_its_id_to_the_client_and_the_rest_to_the_log(serve_fake, lines: io.StringIO) -> None:
    served: Served = serve_fake({"bug": quick_script(run_error=RuntimeError(f"{CANARY} in /srv/secret/model.onnx"))})
    for path in ("/v2/models/bug/infer", "/v2/models/bug/infer", "/v1/models/bug:predict"):
        body = fake_request() if "v2" in path else {"instances": [1, 2]}
        answer = served.post(path, body, headers={"X-Request-Id": "mine-7"})
        assert error_of(answer, 500)["error"] == "internal error; the log has it under request id mine-7"
        assert answer.headers["x-request-id"] == "mine-7"
    bugs = [line for line in written(lines) if line["level"] == "error"]
    assert [line["request_id"] for line in bugs] == ["mine-7"] * 3
    assert all("RuntimeError" in line["exception"] for line in bugs)
    assert CANARY not in lines.getvalue()


# --- lines for requests -------------------------------------------------------------------------------------


def test_access_lines_are_written_for_every_way_where_they_are_wanted(tmp_path: Path, lines: io.StringIO) -> None:
    key = write_keys(tmp_path / ".keys", "infer")["infer"]
    sections = {"logging": {"access": True}, "security": {"keys_file": tmp_path / ".keys"}, "server": {"grpc_port": 0}}
    with serve(fake_host(tmp_path, {"a": quick_script()}, **sections)) as served:
        with wire(served) as connection:
            connection.send(infer("a", bearer(key), "X-Request-Id: on-the-socket"))
            assert connection.must().data == [2]
        with wire(served, head(f"/v2?{CANARY}", bearer(key), "X-Request-Id: by-the-app", method="GET")) as connection:
            assert connection.must().status == 200
        assert served.get("/v2/models/a").status_code == 401
        with client_of(served) as client:
            metadata = (("authorization", f"Bearer {key}"), ("x-request-id", "by-grpc"))
            client.raw("ModelInfer")(fake_raw("a").SerializeToString(), metadata=metadata, timeout=10)
            refused(lambda: client.infer(fake_raw("a")))
    found = written(lines, "modelhost.access")
    by_id = {line["request_id"]: line for line in found}
    shown = {name: by_id["on-the-socket"][name] for name in ("method", "path", "status", "key")}
    assert shown == {"method": "POST", "path": "/v2/models/a/infer", "status": 200, "key": "the-infer"}
    assert by_id["on-the-socket"]["bytes"] > 50
    assert by_id["on-the-socket"]["ms"] > 0
    assert (by_id["by-the-app"]["path"], by_id["by-the-app"]["key"]) == ("/v2", "the-infer")
    assert (by_id["by-grpc"]["path"], by_id["by-grpc"]["status"]) == (f"/{SERVICE}/ModelInfer", "OK")
    assert by_id["by-grpc"]["key"] == "the-infer"
    assert [line["status"] for line in found if "key" not in line] == [401, "UNAUTHENTICATED"]
    assert key not in lines.getvalue()
    assert CANARY not in lines.getvalue()


def test_access_lines_are_not_written_where_nobody_wants_them(serve_fake, lines: io.StringIO) -> None:
    served: Served = serve_fake({"a": quick_script()})
    assert (served.infer("a").status_code, served.get("/v2").status_code) == (200, 200)
    assert written(lines, "modelhost.access") == []


# --- what is in no line -------------------------------------------------------------------------------------


def canaries() -> list[tuple[str, bytes, tuple[str, ...]]]:
    """Requests of every kind that is refused, each with a canary where its tensors are."""
    entry = {"name": "x", "datatype": "FP32", "shape": [2], "data": [NUMBER, NUMBER]}
    text = {"name": "x", "datatype": "BYTES", "shape": [1], "data": [CANARY]}
    path, predict = "/v2/models/a/infer", "/v1/models/a:predict"
    bodies = [
        {"inputs": [entry | {"data": [CANARY, CANARY]}]},
        {"inputs": [entry | {"shape": [3]}]},
        {"inputs": [entry | {"datatype": CANARY}]},
        {"inputs": [entry | {"name": CANARY}]},
        {"inputs": [text]},
        {"inputs": [entry], "outputs": [{"name": CANARY}]},
        {"inputs": [entry], "parameters": {"timeout": CANARY}},
        {"inputs": {"x": CANARY}},
        CANARY,
    ]
    found = [(path, json.dumps(body).encode(), ()) for body in bodies]
    found += [(path, json.dumps(bodies[0]).encode()[:-7], ()), (path, b"\xff" + CANARY.encode(), ())]
    found += [
        (f"/v2/models/{name}/infer", json.dumps({"inputs": [entry, text]}).encode(), ()) for name in ("bug", "bad")
    ]
    found += [(f"/v2/models/{name}/infer", json.dumps({"inputs": [entry]}).encode(), ()) for name in ("bug", "none")]
    found += [(predict, json.dumps({"instances": [CANARY]}).encode(), ()), (predict, f'{{"{CANARY}'.encode(), ())]
    found += [(path, CANARY.encode(), (f"Inference-Header-Content-Length: {CANARY}",))]
    found += [(path, CANARY.encode(), ("Content-Encoding: gzip",)), (path, CANARY.encode() * 400_000, ())]
    return found


def test_neither_tensors_nor_keys_are_in_any_line(tmp_path: Path, lines: io.StringIO) -> None:
    keys = write_keys(tmp_path / ".keys", "infer", "observe")
    error = RuntimeError(f"bad value {CANARY} {NUMBER}")
    scripts = {"a": quick_script(), "bug": quick_script(run_error=error), "bad": FakeScript(load_error="torn")}
    sections = {"security": {"keys_file": tmp_path / ".keys"}, "server": {"grpc_port": 0}, "logging": {"access": True}}
    with serve(fake_host(tmp_path, scripts, **sections)) as served:
        for key in (keys["infer"], keys["observe"], keys["infer"] + CANARY, CANARY):
            for path, body, headers in canaries():
                with wire(served, post(path, body, bearer(key), *headers)) as connection:
                    answer = connection.must()
                    assert answer.status >= 400
                    assert keys["infer"] not in answer.body.decode()
        with client_of(served) as client:
            for key in (keys["infer"], CANARY):
                for request in (fake_raw("a"), fake_raw("bug"), fake_raw(CANARY)):
                    request.inputs.add(name=CANARY, datatype="BYTES", shape=[1])
                    request.raw_input_contents.append(CANARY.encode())
                    metadata = (("authorization", f"Bearer {key}"),)
                    with pytest.raises(grpc.RpcError):
                        client.raw("ModelInfer")(request.SerializeToString(), metadata=metadata, timeout=10)
    found = lines.getvalue()
    assert len(written(lines, "modelhost.access")) > 4 * len(canaries())
    assert "RuntimeError" in found
    for secret in (CANARY, "31415926", *keys.values()):
        assert secret not in found


# --- what is in no answer -----------------------------------------------------------------------------------


def test_no_answer_about_a_broken_model_has_a_path(ort: Served, rpc: RpcClient, zoo: Path, lines: io.StringIO) -> None:
    for name in ("torn", "unknown_operator", "empty", "heavy"):
        bodies = [
            ort.infer(name, tensor("x", "FP32", [1], [1])).text,
            ort.get(f"/v2/models/{name}/config").text,
            ort.get(f"/v1/models/{name}").text,
            ort.post(f"/v2/repository/models/{name}/load").text,
            ort.post("/v2/repository/index").text,
            str(refused(lambda name=name: rpc.call("RepositoryModelLoad", model_name=name))) if name != "heavy" else "",
        ]
        for body in bodies:
            assert str(zoo) not in body
            assert zoo.name not in body
            assert not re.search(r"(?<![\w\"/])/(tmp|root|home|usr|work|onnxruntime_src)/", body), body
            assert "Traceback" not in body
    ort.post("/v2/repository/models/heavy/unload")
    found = [line["message"] for line in written(lines)]
    assert any("torn" in message for message in found)  # where the operator finds all of it
