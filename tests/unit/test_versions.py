"""Version policies: how they are written, in our settings and in Triton's, and what they choose."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelhost.config import ModelOptions, ModelsSettings, VersionPolicy, load_settings
from modelhost.errors import ConfigError
from modelhost.repository import Repository
from modelhost.repository.triton_config import TritonConfig, parse_config

VERSIONS = ("1", "2", "3", "10")
SPECIFIC = VersionPolicy(specific=("1", "10"))


@pytest.mark.parametrize(
    ("written", "chosen", "config"),
    [
        ("all", VERSIONS, {"all": {}}),
        ("latest", ("10",), {"latest": {"num_versions": 1}}),
        ({"latest": 3}, ("2", "3", "10"), {"latest": {"num_versions": 3}}),
        ({"latest": 30}, VERSIONS, {"latest": {"num_versions": 30}}),
        ({"specific": [10, 1, 7]}, ("1", "10"), {"specific": {"versions": [1, 7, 10]}}),
        ("{specific = [3]}", ("3",), {"specific": {"versions": [3]}}),
    ],
)
def test_a_policy_chooses_versions(written: object, chosen: tuple[str, ...], config: object) -> None:
    policy = VersionPolicy.parse(written)
    assert policy.choose(VERSIONS) == chosen
    assert policy.as_config() == config


@pytest.mark.parametrize(
    "written",
    ["newest", {"latest": 0}, {"latest": True}, {"specific": []}, {"specific": "1"}, {"specific": [0]}, {}, 3, "{x"],
)
def test_anything_else_is_refused_with_what_was_expected(written: object) -> None:
    with pytest.raises(ValueError, match=r"expected|above 0"):
        VersionPolicy.parse(written)


def test_it_is_a_setting_and_an_option_that_wins(tmp_path: Path) -> None:
    file = tmp_path / "modelhost.toml"
    file.write_text('[models]\nversion_policy = "latest"\n[models.options.a]\nversion_policy = {specific = [1, 10]}\n')
    models = load_settings(file=file, environ={}).models
    assert models.version_policy == VersionPolicy(latest=1)
    assert models.options_for("a", ModelOptions()).version_policy == SPECIFIC
    assert models.options_for("b", ModelOptions()).version_policy is None


def test_the_settings_win_over_the_models_own() -> None:
    own = ModelOptions(version_policy=VersionPolicy(latest=2), pinned=True)
    models = ModelsSettings(options={"a": ModelOptions(version_policy=SPECIFIC)})
    assert models.options_for("a", own) == ModelOptions(version_policy=SPECIFIC, pinned=True)


# --- Triton's configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy: { all { }}", VersionPolicy()),
        ("version_policy { latest { num_versions: 2 } }", VersionPolicy(latest=2)),
        ("version_policy: {latest: {}}", VersionPolicy(latest=1)),
        ("version_policy: { specific: { versions: [1, 10] } }", SPECIFIC),
        ("version_policy <specific <versions: 10 versions: 1>>", SPECIFIC),
        ("# version_policy: { latest {} }\nname: 'a'", None),
        ('parameters { key: "x" value { string_value: "version_policy: {latest {}}" } }', None),
        ("instance_group [ { count: 1 kind: KIND_CPU } ] version_policy { all {} }", VersionPolicy()),
        ('name: "a \\" {" , version_policy { latest { num_versions: 3 } };', VersionPolicy(latest=3)),
    ],
)
def test_a_policy_in_tritons_configuration_is_read(text: str, policy: VersionPolicy | None) -> None:
    assert parse_config(text).version_policy == policy


def test_the_file_name_is_that_of_the_outermost_field() -> None:
    text = 'ensemble_scheduling { default_model_filename: "no.onnx" }\ndefault_model_filename: "ye" "s.onnx"\n'
    assert parse_config(text) == TritonConfig("yes.onnx")


@pytest.mark.parametrize(
    "text",
    [
        "version_policy { latest {",
        "version_policy { none {} }",
        "version_policy: 3",
        "version_policy { specific {} }",
        "version_policy { latest { num_versions: many } }",
        "version_policy",
        "version_policy {" * 100,
        "default_model_filename { }",
    ],
)
def test_what_cannot_be_understood_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.pbtxt is not understood"):
        parse_config(text)


def test_a_model_has_the_policy_of_its_triton_configuration_unless_it_says_itself(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1/model.onnx").write_bytes(b"x")
        (tmp_path / name / "config.pbtxt").write_text("version_policy { latest { num_versions: 2 } }")
    (tmp_path / "b/model.toml").write_text('version_policy = "all"')
    repository = Repository(tmp_path)
    repository.scan()
    assert repository.options("a").version_policy == VersionPolicy(latest=2)
    assert repository.options("b").version_policy == VersionPolicy()
