"""The repository finds models in every layout and reports what is wrong on disk."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from modelhost.config import ModelOptions
from modelhost.errors import ConfigError, ModelBroken, ModelNotFound
from modelhost.repository import Repository

SOME_BYTES = b"\x08\x08 not looked into by the scan"


def put(path: Path, content: bytes | str = SOME_BYTES) -> Path:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def scanned(directory: Path) -> Repository:
    """Returns a repository after its first scan."""
    repository = Repository(directory)
    repository.scan()
    return repository


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["m/1/model.onnx", "m/model.onnx", "m.onnx"])
def test_each_layout_gives_version_1(tmp_path: Path, below: str) -> None:
    path = put(tmp_path / below)

    repository = scanned(tmp_path)

    found = repository.find("m")
    assert ("m", "1", path) == (found.name, found.version, found.path)
    assert repository.names() == ("m",)
    assert repository.versions("m") == ("1",)
    assert repository.problems == {}


def test_versions_are_ordered_as_numbers_and_the_highest_is_the_default(tmp_path: Path) -> None:
    for version in ("9", "10", "2"):
        put(tmp_path / "m" / version / "model.onnx")

    repository = scanned(tmp_path)

    assert repository.versions("m") == ("2", "9", "10")
    assert repository.find("m").version == "10"
    assert tmp_path / "m/9/model.onnx" == repository.find("m", "9").path


def test_a_scan_that_finds_the_same_leaves_the_paths_as_they_are(tmp_path: Path, named: list[str]) -> None:
    for below in ("one/1/model.onnx", "two.onnx"):
        put(tmp_path / below)
    repository = scanned(tmp_path)
    before = {name: repository.find(name).path for name in ("one", "two")}
    repository.scan()
    named.clear()
    assert all(repository.find(name).path is path for name, path in before.items())
    assert named == []


def test_names_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "c", "a"):
        put(tmp_path / name / "1/model.onnx")

    assert scanned(tmp_path).names() == ("a", "b", "c")


def test_folders_that_are_no_versions_are_ignored_as_triton_does(tmp_path: Path) -> None:
    for folder in ("1", "0", "01", "-1", "1.0", "old", "²", ".2"):
        put(tmp_path / "m" / folder / "model.onnx")

    repository = scanned(tmp_path)

    assert repository.versions("m") == ("1",)
    assert repository.problems == {}


def test_a_triton_folder_with_configuration_and_a_folder_called_model_onnx_is_served(
    tmp_path: Path,
) -> None:
    put(tmp_path / "m/config.pbtxt", 'platform: "onnxruntime_onnx"\nmax_batch_size: 8\n')
    path = put(tmp_path / "m/1/model.onnx/model.onnx")
    put(tmp_path / "m/1/model.onnx/weights.bin")

    assert path == scanned(tmp_path).find("m").path


def test_the_file_name_in_a_triton_configuration_is_used(tmp_path: Path) -> None:
    put(tmp_path / "m/config.pbtxt", 'name: "m"\ndefault_model_filename: "net.onnx"\n')
    path = put(tmp_path / "m/1/net.onnx")

    assert path == scanned(tmp_path).find("m").path


@pytest.mark.parametrize("name", ["../../secret.onnx", "/etc/secret.onnx", "model.plan"])
def test_a_triton_configuration_cannot_name_a_file_elsewhere_or_of_another_kind(tmp_path: Path, name: str) -> None:
    put(tmp_path / "m/config.pbtxt", f'default_model_filename: "{name}"')
    put(tmp_path / "m/1/model.onnx")

    repository = scanned(tmp_path)

    assert "m" not in repository
    assert "config.pbtxt" in repository.problems["m"]


def test_a_linked_model_folder_is_served_below_its_own_name(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/1/model.onnx")
    models = tmp_path / "models"
    models.mkdir()
    (models / "m").symlink_to(tmp_path / "elsewhere", target_is_directory=True)

    assert models / "m/1/model.onnx" == scanned(models).find("m").path


def test_what_is_not_meant_as_a_model_is_passed_over_silently(tmp_path: Path) -> None:
    put(tmp_path / ".cache/1/model.onnx")
    put(tmp_path / ".hidden.onnx")
    put(tmp_path / "__pycache__/train.cpython-311.pyc")
    (tmp_path / "lost+found").mkdir()
    for name in ("README.md", "train.py", "SHA256SUMS", "m.toml"):
        put(tmp_path / name)

    repository = scanned(tmp_path)

    assert repository.names() == ()
    assert repository.problems == {}


# --- options --------------------------------------------------------------------------------------


def test_a_model_without_settings_has_the_default_options(tmp_path: Path) -> None:
    put(tmp_path / "m/1/model.onnx")

    assert ModelOptions() == scanned(tmp_path).find("m").options


@pytest.mark.parametrize(("model", "settings"), [("m/1/model.onnx", "m/model.toml"), ("m.onnx", "m.toml")])
def test_settings_beside_the_model_are_its_options(tmp_path: Path, model: str, settings: str) -> None:
    put(tmp_path / model)
    put(tmp_path / settings, "pinned = true\n")

    assert ModelOptions(pinned=True) == scanned(tmp_path).find("m").options


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pined = true", "pined"),
        ("pinned = ", "not TOML"),
        ("x = " + "[" * 50_000, "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        ("#" * 300_000, "larger than"),
    ],
)
def test_bad_settings_take_their_model_out_of_service_and_no_other(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    put(tmp_path / "bad/1/model.onnx")
    put(tmp_path / "bad/model.toml", text)
    put(tmp_path / "good/1/model.onnx")

    repository = scanned(tmp_path)

    assert repository.names() == ("good",)
    assert {"bad"} == set(repository.problems)
    assert reason in repository.problems["bad"]
    with pytest.raises(ModelBroken, match=r"model\.toml"):
        repository.find("bad")


def test_bad_settings_of_a_single_file_take_it_out_of_service(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")
    put(tmp_path / "m.toml", "pinned = 'perhaps'")

    repository = scanned(tmp_path)

    assert "m" not in repository
    assert "m.toml" in repository.problems["m"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_in_the_place_of_files_are_reported_and_not_waited_for(tmp_path: Path) -> None:
    for path in ("a/1/model.onnx", "b.onnx", "c/model.toml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / path)
    put(tmp_path / "c/1/model.onnx")

    assert {"a", "b", "c"} == set(scanned(tmp_path).problems)


# --- what is wrong on disk ------------------------------------------------------------------------


def test_a_folder_with_nothing_servable_is_reported_with_what_it_holds_instead(
    tmp_path: Path,
) -> None:
    put(tmp_path / "empty/notes.txt")
    put(tmp_path / "renamed/resnet.onnx")
    put(tmp_path / "zero/01/model.onnx")

    problems = scanned(tmp_path).problems

    assert problems["empty"] == "it holds no 'model.onnx', and no version folder (1, 2, ...) with one"
    assert "found 'resnet.onnx'" in problems["renamed"]
    assert "found '01'" in problems["zero"]


@pytest.mark.parametrize("below", ["m/1/model.onnx", "m/model.onnx", "m.onnx"])
def test_an_empty_model_file_is_reported(tmp_path: Path, below: str) -> None:
    put(tmp_path / below, b"")

    repository = scanned(tmp_path)

    assert "empty" in repository.problems["m"]
    with pytest.raises(ModelBroken, match="empty") as caught:
        repository.find("m")
    assert (caught.value.name, caught.value.version) == ("m", "-")


def test_a_bad_version_is_reported_and_the_good_ones_are_served(tmp_path: Path) -> None:
    put(tmp_path / "m/1/model.onnx")
    put(tmp_path / "m/2/model.onnx", b"")
    put(tmp_path / "m/3/notes.txt")

    repository = scanned(tmp_path)

    assert repository.versions("m") == ("1",)
    assert repository.find("m").version == "1"
    assert repository.problems["m"] == "version 2: 'model.onnx' is empty; version 3: there is no 'model.onnx' in it"
    with pytest.raises(ModelBroken, match="empty") as caught:
        repository.find("m", "2")
    assert caught.value.version == "2"


def test_a_folder_wins_over_a_file_of_its_name(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")
    path = put(tmp_path / "m/1/model.onnx")

    repository = scanned(tmp_path)

    assert path == repository.find("m").path
    assert "'m.onnx' is ignored" in repository.problems["m"]


def test_version_folders_win_over_a_model_file_beside_them(tmp_path: Path) -> None:
    put(tmp_path / "m/model.onnx")
    path = put(tmp_path / "m/2/model.onnx")

    repository = scanned(tmp_path)

    assert path == repository.find("m").path
    assert repository.versions("m") == ("2",)
    assert "ignored" in repository.problems["m"]
    with pytest.raises(ModelNotFound):
        repository.find("m", "-")


def test_links_that_lead_nowhere_are_reported(tmp_path: Path) -> None:
    for name in ("m", "n.onnx"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "v").mkdir()
    (tmp_path / "v/1").symlink_to(tmp_path / "gone")

    assert {"m", "n", "loop", "v"} == set(scanned(tmp_path).problems)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    put(tmp_path / "good/1/model.onnx")
    locked = put(tmp_path / "locked/1/model.onnx").parent.parent
    locked.chmod(0)
    try:
        repository = scanned(tmp_path)
    finally:
        locked.chmod(0o755)

    assert repository.names() == ("good",)
    assert "Permission denied" in repository.problems["locked"]


def test_an_error_of_the_system_in_one_folder_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "good/1/model.onnx")
    put(tmp_path / "locked/1/model.onnx")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    repository = scanned(tmp_path)

    assert repository.names() == ("good",)
    assert repository.problems["locked"] == "'locked': Permission denied"


@pytest.mark.skipif(os.name != "posix", reason="other systems do not allow such names")
@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_names_that_cannot_be_shown_are_reported_and_not_served(tmp_path: Path, name: bytes) -> None:
    try:
        os.makedirs(os.path.join(os.fsencode(tmp_path), name, b"1"))
    except OSError:
        pytest.skip("this file system does not allow the name")

    repository = scanned(tmp_path)

    assert len(repository) == 0
    (problem,) = repository.problems
    assert problem.isascii()
    assert problem.isprintable()


def test_a_missing_directory_is_a_configuration_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; create it, or set models\.directory"):
        Repository(tmp_path / "gone").scan()


def test_a_file_instead_of_the_directory_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Repository(put(tmp_path / "models")).scan()


# --- looking up -----------------------------------------------------------------------------------


def test_nothing_is_found_before_the_first_scan(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")
    repository = Repository(tmp_path)

    assert len(repository) == 0
    with pytest.raises(ModelNotFound, match="holds none"):
        repository.find("m")


def test_membership_and_length_count_what_can_be_served(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")
    (tmp_path / "broken").mkdir()

    repository = scanned(tmp_path)

    assert "m" in repository
    assert "broken" not in repository
    assert len(repository) == 1


def test_an_unknown_name_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    put(tmp_path / "resnet50.onnx")
    put(tmp_path / "wine.onnx")

    repository = scanned(tmp_path)

    with pytest.raises(ModelNotFound, match=r"^no model 'resnet_50'; did you mean 'resnet50'\?$"):
        repository.find("resnet_50")
    with pytest.raises(ModelNotFound, match=r"^no model 'zzz'$"):
        repository.versions("zzz")


def test_an_unknown_version_is_answered_with_those_there_are(tmp_path: Path) -> None:
    put(tmp_path / "m/1/model.onnx")
    put(tmp_path / "m/3/model.onnx")

    with pytest.raises(ModelNotFound, match="'m' has no version '2'; it has 1, 3"):
        scanned(tmp_path).find("m", "2")


def test_a_very_long_name_is_neither_compared_nor_repeated_in_full(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")

    with pytest.raises(ModelNotFound) as caught:
        scanned(tmp_path).find("m" * 1_000_000)

    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "..",
        ".",
        "",
        "a/b",
        "m/1",
        "m/",
        "/m",
        "%2e%2e/secret",
        "%2e",
        "m\0",
        "M",
        "m.onnx",
    ],
)
@pytest.mark.parametrize("version", [None, "1", "../1"])
def test_names_are_looked_up_as_they_are_and_never_followed(tmp_path: Path, name: str, version: str | None) -> None:
    put(tmp_path / "secret.onnx")
    put(tmp_path / "secret/1/model.onnx")
    put(tmp_path / "models/m/1/model.onnx")
    put(tmp_path / "models/a/b/1/model.onnx")

    with pytest.raises(ModelNotFound):
        scanned(tmp_path / "models").find(name, version)


@pytest.mark.parametrize("version", ["", "..", "../m/1", "01", "1/", "latest", "9" * 10_000])
def test_versions_are_looked_up_as_they_are_and_never_followed(tmp_path: Path, version: str) -> None:
    put(tmp_path / "m/1/model.onnx")

    with pytest.raises(ModelNotFound):
        scanned(tmp_path).find("m", version)


# --- scanning again -------------------------------------------------------------------------------


def test_a_second_scan_sees_what_came_and_what_went(tmp_path: Path) -> None:
    put(tmp_path / "stays.onnx")
    goes = put(tmp_path / "goes.onnx")
    repository = scanned(tmp_path)

    goes.unlink()
    put(tmp_path / "comes/1/model.onnx")
    repository.scan()

    assert repository.names() == ("comes", "stays")


def test_a_failed_scan_keeps_the_last_index(tmp_path: Path) -> None:
    models = tmp_path / "models"
    put(models / "m.onnx")
    repository = scanned(models)

    models.rename(tmp_path / "moved")
    with pytest.raises(ConfigError):
        repository.scan()

    assert repository.names() == ("m",)


def test_readers_see_the_old_index_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "old.onnx")
    repository = scanned(tmp_path)
    put(tmp_path / "new/1/model.onnx")
    seen = []
    stat = os.stat

    def watching(path: str) -> os.stat_result:
        seen.append(repository.names())
        return stat(path)

    monkeypatch.setattr(os, "stat", watching)
    repository.scan()
    monkeypatch.undo()

    assert {("old",)} == set(seen)
    assert repository.names() == ("new", "old")


def test_ten_thousand_models_cost_less_than_3_mb(tmp_path: Path) -> None:
    names = [f"model_{number:05d}" for number in range(10_000)]
    for name in names:
        os.makedirs(tmp_path / name / "1")
        (tmp_path / name / "1/model.onnx").write_bytes(SOME_BYTES)
    repository = Repository(tmp_path)

    tracemalloc.start()
    try:
        repository.scan()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(repository) == 10_000
    assert tuple(names) == repository.names()
    assert repository.problems == {}
    assert peak < 3 << 20


# --- a directory that is one model's ---------------------------------------------------------------


def named(directory: Path) -> Repository:
    """Returns a repository that has been told what its one model is called, after its first scan."""
    repository = Repository(directory, "digits")
    repository.scan()
    return repository


@pytest.mark.parametrize("below", ["model.onnx", "1/model.onnx", "mnist-12.onnx", "model.onnx/model.onnx"])
def test_a_directory_of_one_model_is_served_under_the_name_that_was_given(tmp_path: Path, below: str) -> None:
    path = put(tmp_path / below)
    put(tmp_path / ".modelhost/index/entry.json", "{}")

    repository = named(tmp_path)

    found = repository.find("digits")
    assert ("digits", "1", path) == (found.name, found.version, found.path)
    assert repository.names() == ("digits",)
    assert repository.problems == {}
    assert repository.is_absent("digits", "2")


def test_its_versions_and_settings_are_those_of_a_model_folder(tmp_path: Path) -> None:
    for version in ("3", "20"):
        put(tmp_path / version / "net.onnx")
    put(tmp_path / "config.pbtxt", 'default_model_filename: "net.onnx"')
    put(tmp_path / "model.toml", "pinned = true")

    repository = named(tmp_path)

    assert repository.versions("digits") == ("3", "20")
    assert repository.find("digits").path == tmp_path / "20/net.onnx"
    assert repository.options("digits").pinned


def test_settings_beside_its_only_file_count(tmp_path: Path) -> None:
    put(tmp_path / "net.onnx")
    put(tmp_path / "net.toml", "pinned = true")

    assert named(tmp_path).options("digits").pinned


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/1/model.onnx", "b.onnx"], ("a", "b")),
        (["a.onnx", "b.onnx"], ("a", "b")),
        (["a/model.onnx"], ("a",)),
        ([], ()),
    ],
)
def test_a_directory_of_several_models_has_the_names_of_its_entries(
    tmp_path: Path, files: list[str], names: tuple[str, ...]
) -> None:
    for below in files:
        put(tmp_path / below)

    assert named(tmp_path).names() == names


def test_what_is_wrong_with_the_only_model_is_said_of_its_name(tmp_path: Path) -> None:
    put(tmp_path / "model.onnx", b"")

    repository = named(tmp_path)

    assert repository.problems == {"digits": "version 1: 'model.onnx' is empty"}
    with pytest.raises(ModelBroken, match="is empty"):
        repository.find("digits")


def test_settings_of_the_only_model_that_cannot_be_read_are_said_of_its_name(tmp_path: Path) -> None:
    put(tmp_path / "model.onnx")
    put(tmp_path / "model.toml", "pined = true")

    assert "pined" in named(tmp_path).problems["digits"]


def test_a_named_directory_that_is_gone_is_an_error_of_the_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        named(tmp_path / "gone")


def test_a_directory_becomes_one_model_and_several_again_at_the_next_scan(tmp_path: Path) -> None:
    path = put(tmp_path / "model.onnx")
    repository = named(tmp_path)
    path.unlink()
    put(tmp_path / "a/model.onnx")

    repository.scan()

    assert repository.find("a").path == tmp_path / "a/model.onnx"
    assert repository.names() == ("a",)
