"""Files that people and disks may have damaged: each is understood, or refused with its reason, and nothing falls over.

Long with MODELHOST_TEST_FULL=1.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import damaged, seeds
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sizes import FULL

from modelhost.config import Settings, load_settings
from modelhost.errors import ConfigError, ModelHostError
from modelhost.prepare import ArtifactStore, Identity, Manifest
from modelhost.prepare.footprint import RunFootprint, RunPoint, Term
from modelhost.prepare.manifest import RunFigures, VariantFigures
from modelhost.repository import Repository

FEW, MANY = (15_000, 30_000) if FULL else (60, 100)
EXAMPLES = {"max_examples": FEW, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)] if FULL else []

#: What a parser has to draw a line at: nesting, numbers that are too long to be read or written, ends of texts.
TOML = (
    *(b"[", b"[" * 3000, b"{", b"{a=" * 3000, b"=", b'"', b"'''", b"\n", b"\x00", b"\xff", b"#", b",", b"]", b"}"),
    *(b"9" * 5000, b"0x" + b"F" * 5000, b"9" * 400, b'"' + b"9" * 400 + b'GB"', b"-1", b"0", b"1e999", b"nan", b"inf"),
    *(b"true", b'"auto"', b'"%"', b'"+"', b'"101%"', b'"nan%"', b"2021-01-01", b"07:00:00", b'"\\ud800"', b"a.b.c=1"),
)
PBTXT = (
    *(b"{", b"{ a" * 100, b"[" * 2000, b"<", b"}", b"]", b'"', b"'", b"\\", b":", b",", b"#", b"\n", b"\x00", b"\xff"),
    *(b"9" * 5000, b"-1", b"1.5", b"all", b"latest", b"specific", b"versions", b"num_versions", b'"../m.onnx"'),
)
JSON = (
    *(b"[" * 50_000, b'{"a":' * 20_000, b"null", b"true", b"-1", b"1e999", b"NaN", b"9" * 5000, b"9" * 30, b'"'),
    *(b"{}", b"[]", b'""', b'"a"', b"0.5", b"\x00", b"\xff", b'"\\ud800"', b'"../../x"', b"\n", b",", b":"),
)

IDENTITY = Identity("onnxruntime 1.0", "x86_64 avx2")


# --- settings ------------------------------------------------------------------------------------------


@settings(**EXAMPLES)
@given(st.binary(max_size=200) | damaged(seeds("files/settings"), TOML))
@example(b"[server]\nrequest_timeout = 0x" + b"F" * 5000)
@example(b"[memory]\nlimit = 0x" + b"F" * 5000)
@example(b'[memory]\nlimit = "' + b"9" * 400 + b'"')
def test_a_settings_file_is_valid_or_refused_in_words(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "modelhost.toml"
    file.write_bytes(data)
    try:
        found = load_settings(file=file, environ={})
    except ConfigError as error:
        assert str(error)
    else:
        assert isinstance(found, Settings)


VARIABLES = sorted(
    f"MODELHOST_{key.replace('.', '_').upper()}"
    for key in (
        *("memory.limit", "memory.warning", "models.options", "models.preload", "models.version_policy"),
        *("server.read_timeout", "server.port", "pool.idle_ttl", "pool.max_waiting"),
    )
)


@settings(**EXAMPLES)
@given(st.sampled_from(VARIABLES), st.text(max_size=20) | st.sampled_from([piece.decode("latin-1") for piece in TOML]))
def test_a_variable_is_valid_or_refused_in_words(variable: str, text: str) -> None:
    try:
        load_settings(environ={variable: text}, file=Path(os.devnull))
    except ConfigError as error:
        assert str(error)


# --- the repository ------------------------------------------------------------------------------------


@settings(**EXAMPLES)
@given(
    st.binary(max_size=100) | damaged(seeds("files/options"), TOML),
    st.binary(max_size=100) | damaged(seeds("files/triton"), PBTXT),
)
@example(b"max_queue = " + b"9" * 5000, b"version_policy: " + b"[" * 5000)
@example(b"dimensions = " + b"{a = " * 2000, b"version_policy " + b"{ a " * 5000)
def test_a_scan_serves_a_model_or_says_why_not_and_the_others_all_the_same(
    tmp_path: Path, options: bytes, config: bytes
) -> None:
    for name, file, data in (("a", "model.toml", options), ("b", "config.pbtxt", config)):
        for place in (f"{name}/1/model.onnx", f"{name}/2/net.onnx"):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place).write_bytes(b"x")
        (tmp_path / name / file).write_bytes(data)
    (tmp_path / "whole.onnx").write_bytes(b"x")
    repository = Repository(tmp_path)
    repository.scan()
    assert "whole" in repository.names()
    for name in ("a", "b"):
        if name not in repository.names():
            assert repository.problems[name]
        else:
            assert repository.find(name).path.is_relative_to(tmp_path / name)
            assert repository.options(name).version_policy is None or str(repository.options(name).version_policy)


# --- artifacts -----------------------------------------------------------------------------------------


class Prepared:
    """One model with its artifact, whose small files are damaged."""

    def __init__(self, directory: Path) -> None:
        self.models, self.cache = directory, directory / ".modelhost"
        self.file = directory / "m" / "1" / "model.onnx"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(b"model")
        store = self.store()
        self.key = store.key_of(self.file)
        with store.aside() as folder:
            (folder / "model.onnx").write_bytes(b"graph")
            (folder / "model.bin").write_bytes(b"weights")
            store.adopt(folder, manifest(self.key))
        self.manifest_file = self.cache / self.key / "manifest.json"
        (self.index_file,) = (self.cache / "index").iterdir()
        self.manifest, self.index = self.manifest_file.read_bytes(), self.index_file.read_bytes()

    def store(self) -> ArtifactStore:
        return ArtifactStore(self.cache, self.models, IDENTITY)


def manifest(key: str) -> Manifest:
    run = RunFootprint(
        (Term(1000), Term(4, ("batch",))), {"batch": (("x", 0),)}, "batch", True, (RunPoint({"batch": 1}, 1004),)
    )
    figures = tuple(VariantFigures(variant, 1.0, 10, 20, (RunFigures(1, 1004, 0.5),)) for variant in ("heap", "mapped"))
    return Manifest(key, "mapped", "it is smaller", 10, 20, 30, 0.0, figures, run)


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepared]:
    with tempfile.TemporaryDirectory() as directory:
        yield Prepared(Path(directory))


SHAPES = {"x": (2, 3)}


@settings(max_examples=MANY)
@given(st.data())
def test_a_damaged_manifest_is_damaged_or_says_what_can_be_reckoned_with(
    prepared: Prepared, data: st.DataObject
) -> None:
    text = data.draw(st.binary(max_size=60) | damaged([prepared.manifest, *seeds("files/manifest")], JSON))
    prepared.manifest_file.write_bytes(text)
    standing = prepared.store().look(prepared.file)
    found = prepared.store().find(prepared.file)
    assert (found is not None) == (standing.state == "prepared")
    if found is None:
        assert standing.state == "damaged"
        assert standing.why
        return
    assert found.manifest.key == prepared.key
    assert json.loads(found.manifest.to_json())["key"] == prepared.key
    if found.manifest.run is not None:
        assert (found.manifest.run.predict(SHAPES) or 0) >= 0
        found.manifest.run.largest_rows(SHAPES, 1 << 20)


@settings(max_examples=MANY)
@given(st.data())
def test_a_damaged_index_leads_to_the_right_artifact_or_to_none(prepared: Prepared, data: st.DataObject) -> None:
    prepared.manifest_file.write_bytes(prepared.manifest)
    text = data.draw(st.binary(max_size=60) | damaged([prepared.index, *seeds("files/index")], JSON))
    prepared.index_file.write_bytes(text)
    store = prepared.store()
    assert store.look(prepared.file).state in ("prepared", "missing", "stale", "damaged")
    found = prepared.store().find(prepared.file, ())
    assert found is None or found.directory.name == prepared.key
    try:
        prepared.store().token(prepared.file)
    except ModelHostError as error:
        raise AssertionError("a token is a number") from error
