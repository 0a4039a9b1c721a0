"""Makes the schemas in this folder again, from the wheels that carry them whole; run by hand, never by a test.

    pip download --no-deps kubernetes-validate check-jsonschema kserve
    python tests/deploy/schemas/trim.py FOLDER_WITH_THE_WHEELS

What no manifest of ours could reach is left out, and so are the descriptions. Objects of Kubernetes and KServe know no
keys but those of their schema; the few types that only a newer Kubernetes has may be anything.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent

#: The oldest Kubernetes that the manifests are held against: what is valid there is so in what came after.
KUBERNETES: Final = "v1.30.0"
KINDS: Final = ("Deployment", "Service", "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "NetworkPolicy")
KSERVE_KINDS: Final = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_SCALARS: Final = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def main(wheels: Path) -> None:
    """Writes the three schemas."""
    definitions = kubernetes(_wheel(wheels, "kubernetes_validate"))
    kserve_definitions = kserve(_wheel(wheels, "kserve"), definitions)
    roots = {kind: _kind(definitions, kind) for kind in KINDS}
    _write("kubernetes", roots, definitions)
    kserve_roots = {kind: {"$ref": f"#/$defs/{name}"} for kind, name in KSERVE_KINDS.items()}
    _write("kserve", kserve_roots, {**definitions, **kserve_definitions})
    with _wheel(wheels, "check_jsonschema") as wheel:
        whole = json.loads(wheel.read("check_jsonschema/builtin_schemas/vendor/compose-spec.json"))
    (HERE / "compose.json").write_text(_dumped(_without_words(whole)))


def kubernetes(wheel: zipfile.ZipFile) -> dict[str, Any]:
    """Returns the definitions of one version of Kubernetes, in its strict form."""
    with wheel:
        folder = f"kubernetes_validate/kubernetes-json-schema/{KUBERNETES}-local-strict"
        return dict(json.loads(wheel.read(f"{folder}/_definitions.json"))["$defs"])


def _kind(definitions: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [name for name in definitions if re.search(rf"\.v1\.{kind}$", name)]
    assert len(found) == 1, found
    return {"$ref": f"#/$defs/{found[0]}"}


def kserve(wheel: zipfile.ZipFile, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the definitions of KServe's own types, read from the classes that its SDK generates from its OpenAPI."""
    definitions = {}
    with wheel:
        for name in wheel.namelist():
            if re.match(r"kserve/models/v1[a-z0-9]*_[a-z0-9_]+\.py", name):
                for node in ast.parse(wheel.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        definitions[node.name] = _model(node, known)
    return definitions


def _model(node: ast.ClassDef, known: dict[str, Any]) -> dict[str, Any]:
    tables = {
        target.id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    types, names = tables["openapi_types"], tables["attribute_map"]
    # A setter refuses None where the key is required.
    required = set(re.findall(r"client_side_validation and (\w+) is None", ast.unparse(node)))
    return {
        "type": "object",
        "properties": {names[key]: _type(text, known) for key, text in types.items()},
        "required": sorted(names[key] for key in required),
        "additionalProperties": False,
    }


def _type(text: str, known: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a type as the SDK writes it: `list[V1Container]`, `dict(str, str)`, `bool`."""
    if text.startswith("list["):
        return {"type": "array", "items": _type(text[5:-1], known)}
    if text.startswith("dict("):
        return {"type": "object", "additionalProperties": _type(text[5:-1].split(", ", 1)[1], known)}
    if text in _SCALARS:
        return {"type": _SCALARS[text]}
    if text == "V1ObjectMeta":
        return {"$ref": f"#/$defs/{_META}"}
    if text in ("object", "ResourceQuantity", "KnativeURL", "KnativeVolatileTime", "datetime"):
        return {}
    core = f"io.k8s.api.core.v1.{text.removeprefix('V1')}"
    return {"$ref": f"#/$defs/{core if core in known else text}"}


def _write(name: str, roots: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Writes the schemas of some kinds with the definitions that they reach."""
    reached: dict[str, Any] = {}
    pending = list(_references(roots))
    while pending:
        key = pending.pop()
        if key not in reached:
            if key not in definitions:  # of a status, or of what only a newer Kubernetes has
                reached[key] = {}
                continue
            reached[key] = _without_words(definitions[key])
            reached[key].get("properties", {}).pop("status", None)
            pending += _references(reached[key])
    (HERE / f"{name}.json").write_text(_dumped({"kinds": roots, "$defs": dict(sorted(reached.items()))}))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].rpartition("/")[2]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _without_words(value: Any) -> Any:
    """Returns a schema without descriptions, with references that lead into the same file."""
    if isinstance(value, list):
        return [_without_words(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if (key in ("description", "title") and isinstance(inner, str)) or key.startswith("x-kubernetes"):
            continue
        if key == "$ref" and isinstance(inner, str):
            kept[key] = re.sub(r"^.*_definitions\.json", "", inner)
        else:
            kept[key] = _without_words(inner)
    return kept


def _dumped(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


def _wheel(folder: Path, name: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(folder.glob(f"{name}-*.whl")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
