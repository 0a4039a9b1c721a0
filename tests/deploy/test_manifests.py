"""What `deploy/` says is valid by the schemas of those who read it, and true of the host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from benchmarks.process import ROOT
from modelhost.config import Settings, load_settings
from modelhost.units import parse_size

DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).parent / "schemas"
LIMIT_BYTES = 256 << 20

Document = dict[str, Any]


def documents(below: str) -> list[Document]:
    return [document for document in yaml.safe_load_all((DEPLOY / below).read_text()) if document is not None]


def schema_errors(name: str, document: Document) -> list[str]:
    """Returns what the schema of an object's kind has against it."""
    schemas = json.loads((SCHEMAS / f"{name}.json").read_text())
    schema = {"$defs": schemas["$defs"], **schemas["kinds"][document["kind"]]}
    return [
        f"{'/'.join(map(str, error.instance_path))}: {error.message}"
        for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(document)
    ]


KUBERNETES = documents("kubernetes/modelhost.yaml")
KSERVE = documents("kserve/servingruntime.yaml") + documents("kserve/inferenceservice.yaml")
COMPOSE = documents("compose.yaml")[0]
UNIT = DEPLOY / "systemd/modelhost.service"


def kind_of(document: Document) -> str:
    return str(document["kind"])


@pytest.mark.parametrize("document", KUBERNETES, ids=kind_of)
def test_kubernetes_objects_are_valid(document: Document) -> None:
    assert schema_errors("kubernetes", document) == []


@pytest.mark.parametrize("document", KSERVE, ids=kind_of)
def test_kserve_objects_are_valid(document: Document) -> None:
    assert schema_errors("kserve", document) == []


def test_the_compose_file_is_valid() -> None:
    validator = jsonschema_rs.validator_for(json.loads((SCHEMAS / "compose.json").read_text()))
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []


def broken(document: Document, *path: str | int, key: str, value: Any) -> Document:
    """Returns a copy with another value at a place, None for nothing there."""
    copy = json.loads(json.dumps(document))
    place = copy
    for step in path:
        place = place[step]
    place[key] = value
    if value is None:
        del place[key]
    return dict(copy)


POD = ("spec", "template", "spec")


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        ((*POD, "containers", 0, "resources"), "limit", {"memory": "256Mi"}),
        ((*POD, "containers", 0, "readinessProbe"), "httpGet", {"path": "/v2/health/ready"}),
        ((*POD, "containers", 0, "securityContext"), "readonlyRootFilesystem", True),
        ((*POD, "containers", 0), "ports", [{"containerPort": "8080"}]),
        (("spec",), "selector", None),
    ],
)
def test_the_schemas_refuse_what_kubernetes_would(path: tuple[str | int, ...], key: str, value: Any) -> None:
    deployment = next(document for document in KUBERNETES if document["kind"] == "Deployment")
    assert schema_errors("kubernetes", broken(deployment, *path, key=key, value=value))


@pytest.mark.parametrize(
    ("index", "path", "key", "value"),
    [
        (0, ("spec",), "supportedModelFormat", []),
        (0, ("spec",), "containers", None),
        (0, ("spec", "containers", 0), "mountPath", "/mnt/models"),
        (1, ("spec", "predictor", "model"), "storageURI", "pvc://models/digits"),
        (1, ("spec", "predictor", "model"), "modelFormat", "onnx"),
    ],
)
def test_the_schemas_refuse_what_kserve_would(index: int, path: tuple[str | int, ...], key: str, value: Any) -> None:
    assert schema_errors("kserve", broken(KSERVE[index], *path, key=key, value=value))


# --- what the manifests say is true of the host ---------------------------------------------------------


def containers() -> Iterator[tuple[str, Document]]:
    """Yields each container of the manifests by a name."""
    for document in KUBERNETES + KSERVE:
        pod = document["spec"].get("template", document).get("spec", {})
        for container in pod.get("initContainers", []) + pod.get("containers", []):
            yield f"{document['kind']}/{container['name']}", container


def image_variables() -> dict[str, str]:
    """Returns the settings that the image is made with."""
    return dict(re.findall(r"(MODELHOST_\w+)=([^\s\"]+) *(?:\\\n|\n)", (ROOT / "Dockerfile").read_text()))


def settings_of(variables: Mapping[str, str]) -> Settings:
    return load_settings(environ={**image_variables(), **variables})


def container_settings(container: Document) -> Settings:
    return settings_of({variable["name"]: variable["value"] for variable in container.get("env", [])})


def unit() -> dict[str, list[str]]:
    """Returns what the unit sets, by key."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


ALL = dict(containers())


def test_there_are_the_containers_that_are_looked_at() -> None:
    assert list(ALL) == ["Deployment/prepare", "Deployment/modelhost", "ServingRuntime/kserve-container"]


@pytest.mark.parametrize("name", ALL)
def test_a_container_has_the_limit_and_no_rights(name: str) -> None:
    resources, security = ALL[name]["resources"], ALL[name]["securityContext"]
    assert parse_size(resources["limits"]["memory"].replace("i", "iB")) == LIMIT_BYTES
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", ALL)
def test_a_containers_variables_are_settings_and_what_it_writes_is_a_volume(name: str) -> None:
    settings, mounts = container_settings(ALL[name]), ALL[name]["volumeMounts"]
    assert str(settings.artifact_cache) in [mount["mountPath"] for mount in mounts if not mount.get("readOnly")]


def test_a_pod_has_time_to_drain() -> None:
    deployment = next(document for document in KUBERNETES if document["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (host,) = pod["containers"]
    pause_s = int(host["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause_s + container_settings(host).server.drain_timeout + 5


@pytest.mark.parametrize("name", [name for name, found in ALL.items() if "readinessProbe" in found])
def test_probes_ask_what_the_host_answers(name: str) -> None:
    host, port = ALL[name], container_settings(ALL[name]).server.port
    (declared,) = host["ports"]
    assert declared["containerPort"] == port
    probes = {kind: host[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} <= {port, declared.get("name")}
    assert {kind: probe["path"].rpartition("/")[2] for kind, probe in probes.items()} == {
        "startup": "live",
        "readiness": "ready",
        "liveness": "live",
    }


def test_kserve_gives_the_name_and_the_place_of_its_models() -> None:
    settings = container_settings(ALL["ServingRuntime/kserve-container"])
    assert (settings.models.name, settings.models.directory) == ("{{.Name}}", Path("/mnt/models"))
    runtime, service = KSERVE
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]


def test_the_compose_service_has_the_limit_and_no_rights() -> None:
    host = COMPOSE["services"]["modelhost"]
    settings = settings_of(host["environment"])
    assert parse_size(host["mem_limit"]) == parse_size(host["memswap_limit"]) == LIMIT_BYTES
    assert host["read_only"]
    assert host["cap_drop"] == ["ALL"]
    assert host["volumes"] == [f"artifacts:{settings.artifact_cache}"]
    assert host["ports"] == [f"127.0.0.1:{settings.server.port}:{settings.server.port}"]
    assert int(host["stop_grace_period"].removesuffix("s")) >= settings.server.drain_timeout + 5


def test_the_unit_has_the_limit_and_time_to_drain() -> None:
    found = unit()
    variables = dict(text.partition("=")[::2] for text in found["Environment"])
    settings = load_settings(environ=variables)
    assert parse_size(found["MemoryMax"][0] + "B") == LIMIT_BYTES
    assert found["MemorySwapMax"] == ["0"]
    assert settings.artifact_cache == Path("%C") / found["CacheDirectory"][0]
    assert settings.security.keys_file == Path("%d") / found["LoadCredential"][0].partition(":")[0]
    assert int(found["TimeoutStopSec"][0]) >= settings.server.drain_timeout + 5


ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is missing")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/modelhost/bin/modelhost", sys.executable))
    for command in (("verify", "--man=no", copy), ("security", "--offline=yes", "--threshold=20", copy)):
        said = subprocess.run([str(ANALYZE), *map(str, command)], capture_output=True, text=True, check=False)
        # What it says of the machine's own units is none of ours.
        ours = [line for line in said.stderr.splitlines() if UNIT.name in line]
        assert (said.returncode, ours) == (0, []), said.stdout[-2000:] + said.stderr
