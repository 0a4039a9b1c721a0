"""Without a key nothing but health; with one, what its roles are for; and names that are no paths. Every way in."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import models_for_tests as build
import numpy as np
import pytest
from onnx.external_data_helper import set_external_data
from rpc_client import RpcClient, client_of, fake_raw, refused
from served import Served, error_of, fake_host, head, serve, settings
from wire import ROOMY, counting, infer, nothing_held, quick_script, used_bytes, wire

from modelhost.api.rpc.messages import METHODS, SERVICE
from modelhost.host import Host
from modelhost.security.keys import Role, new_key

#: What an operation needs: `open`, `any` key, or one of these roles. A route that is not here fails a test.
NEEDS = {
    "GET /": "open",
    "GET /v2": "any",
    "GET /v2/health/live": "open",
    "GET /v2/health/ready": "open",
    "GET /v2/logging": "observe manage",
    "POST /v2/logging": "manage",
    "GET /v2/models/stats": "observe manage",
    "GET /v2/models/{name}": "any",
    "GET /v2/models/{name}/ready": "any",
    "GET /v2/models/{name}/config": "any",
    "GET /v2/models/{name}/stats": "observe manage",
    "POST /v2/models/{name}/infer": "infer",
    "POST /v2/repository/index": "manage",
    "POST /v2/repository/models/{name}/load": "manage",
    "POST /v2/repository/models/{name}/unload": "manage",
    "GET /v1/models": "any",
    "GET /v1/models/{name}": "any",
    "GET /v1/models/{name}/metadata": "any",
    "POST /v1/models/{name}:predict": "infer",
    "GET /memory": "observe manage",
    "POST /memory/cleanup": "manage",
    "GET /metrics": "observe manage",
    "GET /monitor": "observe manage",
    "GET /monitor/stream": "observe manage",
    "GET /monitor/history": "observe manage",
    "GET /monitor/models": "observe manage",
    "POST /monitor/models/{name}/pin": "manage",
}

CALLS = {
    "ServerLive": "open",
    "ServerReady": "open",
    "ServerMetadata": "any",
    "ModelReady": "any",
    "ModelMetadata": "any",
    "ModelConfig": "any",
    "ModelStatistics": "observe manage",
    "ModelInfer": "infer",
    "ModelStreamInfer": "infer",
}

EVENTS = "text/event-stream; charset=utf-8"
ROLES = ("infer", "manage", "observe")


@dataclass
class Guarded:
    """A host that asks for keys: one for each role."""

    served: Served
    keys: dict[str, str]

    def ask(
        self, operation: str, key: str | None, *, name: str = "a", version: str = "1", **more: Any
    ) -> httpx.Response:
        method, path = operation.split(" ")
        path = path.replace("{name}", name).replace("{version}", version).replace("{repository}", "models")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        with self.served.http.stream(method, path, headers=headers, **more) as answer:
            if answer.headers["content-type"] != EVENTS:  # which has no end
                answer.read()
        return answer


def write_keys(file: Path, *roles: str) -> dict[str, str]:
    made = {role: new_key(f"the-{role}", [role]) for role in roles}
    file.write_text("".join(f"{key.line()}\n" for _, key in made.values()))
    file.chmod(0o600)
    return {role: text for role, (text, _) in made.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def guarded(directory: Path) -> Iterator[Guarded]:
    """One for all tests of this module: those that load models unload them."""
    keys = write_keys(directory / ".keys", *ROLES)
    sections = {"security": {"keys_file": directory / ".keys"}, "server": {"grpc_port": 0} | ROOMY["server"]}
    with serve(fake_host(directory, {"a": quick_script(), "b": quick_script()}, **sections)) as served:
        log = logging.getLogger("modelhost")
        before = log.level, log.filters[:]
        yield Guarded(served, keys)
        log.setLevel(before[0])  # which POST /v2/logging has changed
        log.filters[:] = before[1]


@pytest.fixture(autouse=True)
def _nothing_loaded(request: pytest.FixtureRequest) -> None:
    if "guarded" in request.fixturenames:
        found: Guarded = request.getfixturevalue("guarded")
        assert found.ask("POST /memory/cleanup", found.keys["manage"]).status_code == 200
        assert found.served.snapshot().models == ()


@pytest.fixture
def rpc_guarded(guarded: Guarded) -> Iterator[RpcClient]:
    with client_of(guarded.served) as client:
        yield client


def family(path: str) -> str:
    return path.replace("/versions/{version}", "").replace("/{repository}", "")


def operations(served: Served) -> list[tuple[str, str]]:
    """Every operation of the OpenAPI document, and what it needs."""
    document = served.app.openapi()
    found = [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item]
    assert {family(operation) for operation in found} == NEEDS.keys()
    return [(operation, NEEDS[family(operation)]) for operation in found]


# --- without a key ------------------------------------------------------------------------------------------


def test_without_a_key_every_route_but_health_is_401_whatever_is_there(guarded: Guarded) -> None:
    for operation, needs in operations(guarded.served):
        answers = [
            guarded.ask(operation, None, name=name, version=version) for name, version in (("a", "1"), ("x", "9"))
        ]
        if needs == "open":
            assert {answer.status_code for answer in answers} == {200}, operation
            continue
        for answer in answers:
            assert error_of(answer, 401)["code"] == "unauthenticated", operation
            assert answer.headers["www-authenticate"] == "Bearer"
        first, second = answers
        assert first.content == second.content, operation


def test_without_a_key_what_is_no_route_of_the_api_is_401_too(guarded: Guarded) -> None:
    paths = ["/openapi.json", "/redoc", "/nothing", "//", "/v2/", "/v2/health", "/v2/health/live/"]
    for path in (*paths, "/V2/HEALTH/LIVE", "/%2e/v2/health/live", "/v2/health/live/../../memory"):
        for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "TRACE"):
            with wire(guarded.served, head(path, "Connection: close", method=method)) as connection:
                answer = connection.socket.makefile("rb").readline()
                assert answer.split()[1] == b"401", (method, path)


def test_health_is_open_to_be_read_only(guarded: Guarded) -> None:
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert guarded.served.http.request(method, path).status_code == 401
        assert guarded.served.http.head(path).status_code == 200


def test_what_is_no_key_is_401(guarded: Guarded) -> None:
    key = guarded.keys["infer"]
    for sent in (
        "",
        "Bearer",
        f"Basic {key}",
        key,
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        f"Bearer {key} {key}",
    ):
        for path in ("/v2", "/v2/models/a"):
            assert guarded.served.http.get(path, headers={"Authorization": sent}).status_code == 401, sent
        answer = guarded.served.infer("a", headers={"Authorization": sent})
        assert error_of(answer, 401)["code"] == "unauthenticated"
        assert key not in answer.text
    twice = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
    assert guarded.served.http.get("/v2", headers=twice).status_code == 401
    assert guarded.served.infer("a", headers=twice).status_code == 401
    assert guarded.served.http.get("/v2", headers={"Authorization": f"bEARER  {key}"}).status_code == 200


def test_no_body_is_waited_for_and_no_memory_claimed(guarded: Guarded) -> None:
    served = guarded.served
    for path in ("/v2/models/a/infer", "/v2/models/none/infer", "/v1/models/a:predict", "/v2/repository/index"):
        for framing in ("Content-Length: 4000000", "Transfer-Encoding: chunked"):
            with wire(served, head(path, framing)) as connection:
                assert connection.must().status == 401
                assert used_bytes(served) == 0
    assert served.snapshot().models == ()
    nothing_held(served)


# --- with a key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_a_key_is_for_what_its_role_is_for_whatever_is_there(guarded: Guarded, role: str) -> None:
    assert {str(known) for known in Role} == set(ROLES)
    for operation, needs in operations(guarded.served):
        is_for_this = needs in ("open", "any") or role in needs.split()
        for name, version in (("a", "1"), ("x", "9")):
            answer = guarded.ask(operation, guarded.keys[role], name=name, version=version)
            if is_for_this:
                assert answer.status_code not in (401, 403), operation
            else:
                body = error_of(answer, 403)
                assert body["code"] == "forbidden"
                assert body["error"].startswith(f"the key 'the-{role}' is for {role}, this needs ")
                assert "www-authenticate" not in answer.headers


def test_who_is_refused_is_counted(guarded: Guarded) -> None:
    def counts() -> list[float]:
        text = guarded.ask("GET /metrics", guarded.keys["observe"]).text
        found = re.findall(r'modelhost_access_refused_total{code="(\w+)"} ([\d.]+)', text)
        assert [code for code, _ in found] == ["unauthenticated", "forbidden"]
        return [float(count) for _, count in found]

    before = counts()
    guarded.ask("GET /v2", None)
    guarded.ask("POST /v2/models/{name}/infer", "no key")
    guarded.ask("GET /memory", guarded.keys["infer"])
    assert counts() == [before[0] + 2, before[1] + 1]


def test_what_nobody_has_written_down_needs_the_role_that_changes_things(guarded: Guarded) -> None:
    for role, status in (("infer", 403), ("observe", 403), ("manage", 404)):
        assert guarded.ask("POST /new", guarded.keys[role]).status_code == status
        assert guarded.ask("GET /new", guarded.keys[role]).status_code == 404


def test_the_document_of_the_api_is_for_any_key_and_the_page_that_asks_for_it_for_everybody(guarded: Guarded) -> None:
    assert {guarded.ask("GET /openapi.json", key).status_code for key in guarded.keys.values()} == {200}
    assert guarded.served.get("/docs").status_code == 200
    assert guarded.served.post("/docs").status_code == 401


# --- on the socket ------------------------------------------------------------------------------------------


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def test_the_short_cut_answers_who_has_a_key_and_nobody_else(guarded: Guarded) -> None:
    served, key = guarded.served, guarded.keys["infer"]
    with counting(served) as ways, wire(served) as connection:
        for _ in range(4):
            connection.send(infer("a", bearer(key)))
            assert connection.must().data == [2]
        assert (ways.socket, ways.application) == (4, 0)
        assert ways.quick > 0
        for wrong in ((), (bearer(key + "x"),), (bearer(key), bearer(key)), ("Authorization: " + key,)):
            connection.send(infer("a", *wrong))
            assert connection.must().status == 401
        for role in ("manage", "observe"):
            connection.send(infer("a", bearer(guarded.keys[role])))
            assert connection.must().status == 403
        assert (ways.socket, ways.application) == (4, 0)  # nor has the application begun to read
        connection.send(infer("a", bearer(key)))
        assert connection.must().data == [2]


def test_each_of_several_requests_in_one_segment_needs_a_key_of_its_own(guarded: Guarded) -> None:
    served, key = guarded.served, guarded.keys["infer"]
    parts = [infer("a", bearer(key)), infer("a"), infer("a", bearer(key), value=2), infer("nothing")]
    with wire(served, b"".join(parts)) as connection:
        assert [connection.must().status for _ in parts] == [200, 401, 200, 401]


def test_a_key_that_was_taken_out_is_refused_on_connections_that_are_open(serve_fake, tmp_path: Path) -> None:
    key = write_keys(tmp_path / ".keys", "infer")["infer"]
    served = serve_fake({"a": quick_script()}, security={"keys_file": tmp_path / ".keys"})
    with wire(served, infer("a", bearer(key))) as connection:
        assert connection.must().status == 200
        now = write_keys(tmp_path / ".keys", "infer")
        served.on_loop(served.app.guard.keys.reload)
        connection.send(infer("a", bearer(key)), infer("a", bearer(now["infer"])))
        assert [connection.must().status for _ in range(2)] == [401, 200]


# --- gRPC ---------------------------------------------------------------------------------------------------


def called(client: RpcClient, method: str, key: str | None, request: bytes = b"") -> grpc.StatusCode:
    metadata = () if key is None else (("authorization", f"Bearer {key}"),)
    call = client.channel.stream_stream(f"/{SERVICE}/{method}")
    answers = call(iter([request]), metadata=metadata, timeout=10)
    try:
        list(answers)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_grpc_asks_for_the_same_keys(guarded: Guarded, rpc_guarded: RpcClient) -> None:
    methods = [*METHODS, "Nonsense"]
    assert CALLS.keys() < set(methods)
    for method in methods:
        needs = CALLS.get(method, "manage")
        codes = {role: called(rpc_guarded, method, guarded.keys.get(role)) for role in ("none", *ROLES)}
        assert (codes["none"] is grpc.StatusCode.UNAUTHENTICATED) == (needs != "open"), method
        for role in ROLES:
            is_for_this = needs in ("open", "any") or role in needs.split()
            assert (codes[role] is grpc.StatusCode.PERMISSION_DENIED) == (not is_for_this), (method, role)
        assert called(rpc_guarded, method, "mh_" + "x" * 43) is codes["none"]
    request = fake_raw("a").SerializeToString()
    assert called(rpc_guarded, "ModelInfer", guarded.keys["infer"], request) is grpc.StatusCode.OK


def test_grpc_says_the_same_of_a_model_that_there_is_and_of_one_that_there_is_not(rpc_guarded: RpcClient) -> None:
    answers = [refused(lambda name=name: rpc_guarded.infer(fake_raw(name))) for name in ("a", "x")]
    assert answers[0] == answers[1]
    assert answers[0][0] is grpc.StatusCode.UNAUTHENTICATED
    assert answers[0][2] == {"code": "unauthenticated"}


# --- no path ------------------------------------------------------------------------------------------------

#: What would be a path if names were; each as it is, and once more with its slashes encoded.
TRAVERSALS = [
    "..",
    "../b",
    "../../etc/passwd",
    "%2e%2e",
    "%2e%2e%2fb",
    "..%2fb",
    "..%5cb",
    "..\\b",
    "b/../a",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "C:\\a",
    "a%00",
    "a%00.onnx",
    "%00",
    "./a",
    ".",
    "a/.",
    "%252e%252e%252fa",
    ".keys",
    "a/1/model.onnx",
    "~",
    "\u2025/a",
]


@pytest.mark.parametrize("text", TRAVERSALS)
def test_a_name_or_a_version_that_looks_like_a_path_finds_nothing(guarded: Guarded, text: str) -> None:
    served = guarded.served
    escaped = text.encode().decode("latin-1")
    for role, paths in (
        ("manage", ["/v2/models/{}", "/v2/models/{}/ready", "/v2/models/a/versions/{}", "/v2/models/{}/stats"]),
        ("manage", ["/v1/models/{}", "/v1/models/{}/metadata", "/v1/models/a/versions/{}"]),
    ):
        for path in paths:
            with wire(
                served, head(path.format(escaped), bearer(guarded.keys[role]), "Connection: close", method="GET")
            ) as c:
                assert c.must().status in (400, 404), path
    for role, path in (
        ("infer", "/v2/models/{}/infer"),
        ("infer", "/v2/models/a/versions/{}/infer"),
        ("infer", "/v1/models/{}:predict"),
        ("manage", "/v2/repository/models/{}/load"),
        ("manage", "/v2/repository/models/{}/unload"),
        ("manage", "/v2/repository/{}/models/{}/load"),
    ):
        request = head(
            path.format(escaped, escaped), bearer(guarded.keys[role]), "Content-Length: 2", "Connection: close"
        )
        with wire(served, request + b"{}") as connection:
            assert connection.must().status in (400, 404), path
    assert served.snapshot().models == ()


@pytest.mark.parametrize(
    "text", ["..", "../b", "/etc/passwd", "..\\b", "a\0", "C:\\a", ".keys", "a/1/model.onnx", "", "."]
)
def test_grpc_takes_no_path_for_a_name_or_a_version(guarded: Guarded, rpc_guarded: RpcClient, text: str) -> None:
    metadata = [("authorization", f"Bearer {guarded.keys['infer']}")]
    infer_named, versioned = fake_raw(text), fake_raw("a")
    versioned.model_version = text or "x"
    for method, request in (
        ("ModelInfer", infer_named),
        ("ModelInfer", versioned),
        ("ModelMetadata", METHODS["ModelMetadata"][0](name=text)),
        ("ModelReady", METHODS["ModelReady"][0](name="a", version=text or "x")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            rpc_guarded.raw(method)(request.SerializeToString(), metadata=metadata, timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND, method
    metadata = [("authorization", f"Bearer {guarded.keys['manage']}")]
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        request = METHODS[method][0](model_name=text)
        with pytest.raises(grpc.RpcError) as caught:
            rpc_guarded.raw(method)(request.SerializeToString(), metadata=metadata, timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND, method
    assert guarded.served.snapshot().models == ()


@pytest.mark.parametrize(
    "parameters",
    [
        {"config": "{}"},
        {"file:1/model.onnx": "AAAA"},
        {"file:../../b/1/model.onnx": "AAAA"},
        {"config": "{}", "file:/etc/passwd": "AAAA"},
    ],
)
def test_a_model_cannot_be_sent_to_the_host(guarded: Guarded, directory: Path, parameters: dict[str, str]) -> None:
    before = sorted(path.name for path in directory.rglob("*"))
    body = json.dumps({"parameters": parameters}).encode()
    answer = guarded.ask("POST /v2/repository/models/{name}/load", guarded.keys["manage"], content=body)
    assert "is not supported: models come from the repository's directory" in error_of(answer, 400)["error"]
    assert sorted(path.name for path in directory.rglob("*")) == before
    assert guarded.served.snapshot().models == ()


def external_model(directory: Path, name: str, location: str) -> Path:
    """Writes a model whose only weight is external data at `location`; returns its folder."""
    model = build.add_constant(1.0)
    set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    folder = directory / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def test_external_data_that_lead_out_of_a_models_folder_are_served_on_no_way(tmp_path: Path) -> None:
    models, secret = tmp_path / "models", tmp_path / "secret.bin"
    secret.write_bytes(np.float32(31337).tobytes())
    good = external_model(models, "good", "w.bin")
    (good / "w.bin").write_bytes(np.float32(1).tobytes())
    external_model(models, "dots", "../../../secret.bin")
    external_model(models, "absolute", str(secret))
    external_model(models, "backslash", "..\\..\\..\\secret.bin")
    external_model(models, "nul", "w.bin\0")
    (external_model(models, "linked", "w.bin") / "w.bin").symlink_to(secret)
    (external_model(models, "folder", "data/secret.bin") / "data").symlink_to(tmp_path)
    names = ["dots", "absolute", "backslash", "nul", "linked", "folder"]
    with serve(Host(settings(models, server={"grpc_port": 0}))) as served, client_of(served) as client:
        request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
        assert served.infer("good", request).json()["outputs"][0]["data"] == [2]
        for name in names:
            answers = [
                served.infer(name, request),
                served.get(f"/v2/models/{name}"),
                served.post(f"/v1/models/{name}:predict", {"instances": [1]}),
                served.post(f"/v2/repository/models/{name}/load"),
            ]
            for answer in answers:
                body = error_of(answer, 500)
                assert body["code"] == "model_broken"
                assert "the model's folder" in body["reason"]
                assert str(tmp_path) not in answer.text
                assert "31337" not in answer.text
            code, text, _ = refused(lambda name=name: client.call("RepositoryModelLoad", model_name=name))
            assert (code, str(tmp_path) in text) == (grpc.StatusCode.FAILED_PRECONDITION, False)
        assert str(tmp_path) not in served.post("/v2/repository/index").text


# --- without keys, and other origins ------------------------------------------------------------------------


def test_without_keys_nobody_is_asked_and_a_key_that_is_sent_does_no_harm(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    assert served.app.guard is None
    with counting(served) as ways:
        assert served.infer("a", headers={"Authorization": "Bearer " + "x" * 40}).json()["outputs"][0]["data"] == [2, 4]
    assert (ways.socket, ways.application) == (1, 0)


def test_no_other_origin_is_let_in(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    origin = {"Origin": "https://elsewhere.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    answers = [
        served.get("/v2/health/live"),
        served.http.get("/v2", headers=origin),
        served.infer("a", headers=origin),
        served.http.options("/v2/models/a/infer", headers=origin | asked),
        served.http.get("/metrics", headers=origin),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 405, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "path", ["/memory/cleanup", "/v2/repository/models/a/unload", "/monitor/models/a/pin", "/nowhere"]
)
def test_a_page_of_another_site_changes_nothing(serve_fake, path: str) -> None:
    served = serve_fake({"a": quick_script()})
    assert served.http.post(path, headers={"Sec-Fetch-Site": "cross-site"}).json()["code"] == "forbidden"
    for site in ("same-origin", "same-site", "none"):
        assert served.http.post(path, headers={"Sec-Fetch-Site": site}).status_code != 403
    assert served.http.get("/memory", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
