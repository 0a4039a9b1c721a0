"""The OpenAPI page says what is served: its examples work, and a tool that believes it finds nothing wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from host_process import MODELS, running_host
from served import Served, error_of
from sizes import FULL

from benchmarks.tracebacks import first_traceback

#: What the page cannot know, and the tool would take for a fault: 503 is how readiness and deadlines are
#: told, and which tensors fit is the model's to say.
TOOL_SETTINGS = """
[[operations]]
include-path-regex = "(/ready|^/v1/models/[^/:]+(/versions/[^/]+)?|/infer|:predict)$"
[operations.checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]

# Its answer has no end.
[[operations]]
include-path = "/monitor/stream"
enabled = false

[[operations]]
include-path-regex = "(/infer|:predict)$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 413, 503]
"""


@pytest.fixture(scope="module")
def page(ort: Served) -> dict[str, Any]:
    return ort.get("/openapi.json").json()


def test_every_route_is_on_the_page(ort: Served, page: dict[str, Any]) -> None:
    served = {
        (route.path, method.lower())
        for route in ort.app.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert served == {(path, method) for path, item in page["paths"].items() for method in item}
    assert page["info"]["version"]


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does(page: dict[str, Any]) -> None:
    operations = [operation for item in page["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] and operation["tags"] for operation in operations)


def test_every_failure_has_the_shape_of_our_errors(page: dict[str, Any]) -> None:
    for path, item in page["paths"].items():
        for operation in item.values():
            for status, response in operation["responses"].items():
                text = json.dumps(response["content"].get("application/json", {}))
                assert ("schemas/Error" in text) == (status != "200"), (path, status)


def test_every_reference_leads_somewhere_and_every_schema_is_referred_to(page: dict[str, Any]) -> None:
    text = json.dumps(page)
    for name in page["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name
    assert text.count('"$ref"') == sum(
        text.count(f'"#/components/schemas/{name}"') for name in page["components"]["schemas"]
    )


def test_the_examples_work_as_they_stand(ort: Served, page: dict[str, Any]) -> None:
    tried = 0
    for path, item in page["paths"].items():
        for method, operation in item.items():
            target = path
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    target = target.replace(f"{{{parameter['name']}}}", parameter["example"])
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            body = b"" if content is None else json.dumps(content["example"]).encode()
            if path.endswith("/ready") or path.startswith("/v1"):  # the page's own example may have unloaded it
                ort.post("/v2/repository/models/wine/load")
            with ort.http.stream(method.upper(), target, content=body) as response:
                if path != "/monitor/stream":  # which has no end
                    response.read()
                assert response.status_code == 200, (target, response)
            assert response.headers["content-type"].split(";")[0] in operation["responses"]["200"]["content"]
            tried += 1
    assert tried > 25


def test_the_page_for_people_shows_it(ort: Served) -> None:
    response = ort.get("/docs")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "/openapi.json" in response.text


def test_the_page_is_not_kept_by_a_host_that_nobody_asks() -> None:
    code = (
        "import sys; from modelhost.host import Host; from modelhost.api.app import create_app\n"
        "app = create_app(Host()); assert 'modelhost.api.openapi' not in sys.modules\n"
        "assert app.openapi() is not app.openapi()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


# --- paths and methods -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2", "GET, HEAD"),
        ("/v2/logging", "GET, HEAD, POST"),
        ("/v2/models/digits/infer", "POST"),
        ("/v2/models/digits/versions/1/infer", "POST"),
        ("/v2/repository/index", "POST"),
        ("/memory/cleanup", "POST"),
    ],
)
@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PROPFIND"])
def test_a_method_that_is_not_served_is_405_and_names_those_that_are(
    ort: Served, method: str, path: str, allowed: str
) -> None:
    response = ort.http.request(method, path)
    assert error_of(response, 405)["error"] == f"{method} {path}: Method Not Allowed"
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/v2", "/v2/models/digits", "/memory", "/metrics", "/docs", "/openapi.json"])
def test_head_is_get_without_the_body(ort: Served, path: str) -> None:
    head, get = ort.http.head(path), ort.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("name", ["digits%2Fready", "digits%2fready", "digits%2Fversions%2F1", "a%2Fb", "%2F"])
def test_an_encoded_slash_is_part_of_a_name_and_never_leads_elsewhere(ort: Served, name: str) -> None:
    for response in (ort.get(f"/v2/models/{name}"), ort.get(f"/v1/models/{name}"), ort.infer(name)):
        assert error_of(response, 404)["code"] == "model_not_found"


@pytest.mark.parametrize("name", ["digits%252Fready", "digits%252F", "%2564igits"])
def test_what_is_encoded_twice_is_decoded_once(ort: Served, name: str) -> None:
    decoded = name.replace("%25", "%")
    assert f"'{decoded}'" in error_of(ort.get(f"/v2/models/{name}"), 404)["error"]
    assert f"'{decoded}'" in error_of(ort.infer(name), 404)["error"]


# --- the tool ----------------------------------------------------------------------------------------


@pytest.mark.timeout(900 if FULL else 120)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(TOOL_SETTINGS)
    with running_host(tmp_path, MODELS, "--memory-limit", "400MB", MODELHOST_PREPARE_ON_LOAD="false") as host:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", "settings.toml", "run"),
                *(f"{host.url}/openapi.json", "--checks", "all", "--max-examples", "300" if FULL else "3"),
                *("--continue-on-failure", "--no-color", "--generation-database", "none"),
                *(() if FULL else ("--seed", "1")),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=800 if FULL else 100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert first_traceback(host.log) is None
