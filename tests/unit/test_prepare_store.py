"""Artifacts on disk: found where they are whole, never where they are not, and thrown out in the right order."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models_for_tests as build
import pytest

from modelhost import files, locks
from modelhost.config import ModelOptions, PrepareSettings
from modelhost.prepare import Artifact, ArtifactStore, Identity, Manifest, launcher
from modelhost.prepare.launcher import Bounds, Child
from modelhost.prepare.manifest import VariantFigures
from modelhost.runtime.preparing import Preparer

IDENTITY = Identity("onnxruntime 1.0", "x86_64 avx2")
WEIGHTS = bytes(range(256)) * 16


class Stage:
    """A models' directory with its cache beside it; `store()` is what another process would see."""

    def __init__(self, directory: Path) -> None:
        self.models, self.cache = directory / "models", directory / "models" / ".modelhost"
        self.models.mkdir()

    def store(self, identity: Identity = IDENTITY) -> ArtifactStore:
        return ArtifactStore(self.cache, self.models, identity)

    def model(self, name: str, content: bytes = b"model") -> Path:
        file = self.models / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def prepare(self, file: Path, *, external: tuple[str, ...] = (), weights: bytes = WEIGHTS) -> Artifact:
        store = self.store()
        with store.aside() as folder:
            (folder / "model.onnx").write_bytes(b"graph")
            (folder / "model.bin").write_bytes(weights)
            (folder / "log.txt").write_text("said")
            (folder / "plain").mkdir()
            (folder / "plain" / "model.bin").write_bytes(b"not chosen")
            return store.adopt(folder, manifest(store.key_of(file, external)))


def manifest(key: str) -> Manifest:
    figures = tuple(VariantFigures(variant, 1.0, 10, 20, ()) for variant in ("heap", "mapped"))
    return Manifest(key, "mapped", "", 10, 20, 30, 0.0, figures)


def touch(file: Path, seconds: float = 10) -> None:
    """Gives a file another time of modification."""
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + int(seconds * 1e9)))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read through, as it happens."""
    names: list[str] = []
    digest_of = files.digest_of

    def counted(file: Path) -> str:
        names.append(file.name)
        return digest_of(file)

    monkeypatch.setattr(files, "digest_of", counted)
    return names


# --- found -----------------------------------------------------------------------------------------------


def test_what_was_adopted_is_found_by_every_process_without_reading_it(stage: Stage, read: list[str]) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    read.clear()
    found = stage.store().find(file)
    assert found == made
    assert found is not None
    assert sorted(path.name for path in found.directory.iterdir()) == ["manifest.json", "model.bin", "model.onnx"]
    assert found.model_file.read_bytes() == b"graph"
    assert read == []
    assert [path.name for path in stage.cache.iterdir() if path.name.startswith("tmp-")] == []


def test_looking_again_and_again_leaves_no_names_in_the_interpreter(stage: Stage, named: list[str]) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    store = stage.store()
    assert made.manifest.key in named
    named.clear()
    tokens = {store.token(file) for _ in range(3)}
    assert len(tokens) == 1
    assert 0 not in tokens
    assert named == []


def test_without_a_cache_nothing_is_found_and_nothing_is_made(stage: Stage) -> None:
    file = stage.model("a")
    assert stage.store().find(file) is None
    assert stage.store().find(file, ()) is None
    assert stage.store().token(file) == 0
    assert stage.store().clean_up(max_bytes=0) == 0
    assert not stage.cache.exists()


def test_a_model_that_is_gone_has_no_artifact(stage: Stage) -> None:
    file = stage.model("a")
    stage.prepare(file)
    file.unlink()
    assert stage.store().find(file, ()) is None
    assert stage.store().token(file) == 0
    with pytest.raises(FileNotFoundError):
        stage.store().key_of(file)


def test_a_touched_model_is_read_once_and_keeps_its_artifact(stage: Stage, read: list[str]) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    touch(file)
    read.clear()
    assert stage.store().find(file) is None  # not without leave to read it
    assert read == []
    assert stage.store().find(file, ()) == made
    assert read == ["model.onnx"]
    assert stage.store().find(file) == made
    assert read == ["model.onnx"]


def test_a_changed_model_has_none(stage: Stage) -> None:
    file = stage.model("a")
    stage.prepare(file)
    before = stage.store().token(file)
    file.write_bytes(b"modem")
    touch(file)
    assert stage.store().find(file, ()) is None
    assert before != 0
    assert stage.store().token(file) == 0


def test_a_model_of_another_size_at_the_same_time_has_none(stage: Stage) -> None:
    file = stage.model("a")
    stage.prepare(file)
    stat = file.stat()
    file.write_bytes(b"longer model")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stage.store().find(file, ()) is None


def test_external_data_is_part_of_the_model(stage: Stage) -> None:
    file = stage.model("a")
    (file.parent / "w.bin").write_bytes(b"weights")
    made = stage.prepare(file, external=("w.bin",))
    assert stage.store().find(file) == made
    (file.parent / "w.bin").write_bytes(b"WEIGHTS")
    touch(file.parent / "w.bin")
    assert stage.store().find(file, ("w.bin",)) is None
    (file.parent / "w.bin").unlink()
    assert stage.store().find(file, ("w.bin",)) is None


def test_equal_models_share_one_artifact(stage: Stage) -> None:
    first, second = stage.model("a"), stage.model("b")
    made = stage.prepare(first)
    assert stage.store().find(second, ()) == made
    assert stage.store().token(first) == stage.store().token(second) != 0
    assert stage.store().find(stage.model("c", b"other"), ()) is None


@pytest.mark.parametrize("part", ["runtime", "cpu", "options"])
def test_another_identity_makes_everything_missing(stage: Stage, part: str) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    other = replace(IDENTITY, **{part: "other"})
    assert stage.store(other).find(file) is None
    assert stage.store(other).find(file, ()) is None
    assert stage.store(other).token(file) == 0
    # Two hosts of different kinds may share a cache; each reads the model again after the other.
    assert stage.store().find(file, ()) == made


def test_artifacts_and_models_that_come_out_of_an_image_layer_are_not_read(stage: Stage, read: list[str]) -> None:
    """Layers keep the times of files in whole seconds."""
    file = stage.model("a")
    os.utime(file, (1e9, 1e9))
    artifact = stage.prepare(file)
    for path in (file, *artifact.directory.iterdir()):
        whole = int(path.stat().st_mtime)
        os.utime(path, (whole, whole))
    read.clear()

    found = stage.store().find(file, ())

    assert found is not None
    assert found.directory == artifact.directory
    assert read == []


def test_a_copied_artifact_is_read_once_and_used(stage: Stage, tmp_path: Path, read: list[str]) -> None:
    file = stage.model("a")
    stage.prepare(file)
    (tmp_path / "elsewhere").mkdir()
    elsewhere = Stage(tmp_path / "elsewhere")
    shutil.copytree(stage.models, elsewhere.models, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for path in elsewhere.models.rglob("*"):
        touch(path)
    read.clear()
    store = elsewhere.store()
    copied = elsewhere.models / "a" / "1" / "model.onnx"
    found = store.find(copied, ())
    assert found is not None
    assert found.directory.parent == elsewhere.cache
    assert sorted(read) == ["model.bin", "model.onnx", "model.onnx"]
    assert store.find(copied, ()) == found
    assert len(read) == 3


def test_what_came_with_the_models_is_found_without_reading_them_though_there_is_a_cache(
    stage: Stage, tmp_path: Path, read: list[str]
) -> None:
    file = stage.model("a", build.add_constant(1).SerializeToString())
    stage.prepare(file)
    (tmp_path / "cache").mkdir()
    elsewhere = ArtifactStore(tmp_path / "cache", stage.models, IDENTITY)
    preparer = Preparer(elsewhere, PrepareSettings(), beside=stage.store())
    read.clear()

    plan = preparer.inspect(file, ModelOptions()).plan

    assert plan is not None
    assert plan.artifact is not None
    assert read == []


# --- damaged ---------------------------------------------------------------------------------------------


def allow(artifact: Artifact) -> None:
    """Lets the owner write to it: a disk that loses bits asks nobody."""
    for file in artifact.directory.iterdir():
        file.chmod(0o644)


def flip_byte(artifact: Artifact) -> None:
    data = bytearray((artifact.directory / "model.bin").read_bytes())
    data[100] ^= 1
    allow(artifact)
    (artifact.directory / "model.bin").write_bytes(data)
    touch(artifact.directory / "model.bin")


def cut_short(artifact: Artifact) -> None:
    stat = (artifact.directory / "model.bin").stat()
    allow(artifact)
    os.truncate(artifact.directory / "model.bin", stat.st_size - 1)
    os.utime(artifact.directory / "model.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lose_weights(artifact: Artifact) -> None:
    (artifact.directory / "model.bin").unlink()


def lose_graph(artifact: Artifact) -> None:
    artifact.model_file.unlink()


def lose_manifest(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").unlink()


def cut_manifest(artifact: Artifact) -> None:
    os.truncate(artifact.directory / "manifest.json", 100)


def binary_manifest(artifact: Artifact) -> None:
    (artifact.directory / "manifest.json").write_bytes(b"\xff\xfe\x00" * 50)


def edit_manifest(artifact: Artifact, **fields: object) -> None:
    table = json.loads(artifact.manifest.to_json())
    (artifact.directory / "manifest.json").write_text(json.dumps(table | fields))


def foreign_schema(artifact: Artifact) -> None:
    edit_manifest(artifact, schema=99)


def foreign_key(artifact: Artifact) -> None:
    edit_manifest(artifact, key="f" * 32)


def foreign_file(artifact: Artifact) -> None:
    edit_manifest(artifact, files={"../index/x": [1, 1, ""]})


def no_files(artifact: Artifact) -> None:
    edit_manifest(artifact, files={})


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        cut_short,
        lose_weights,
        lose_graph,
        lose_manifest,
        cut_manifest,
        binary_manifest,
        foreign_schema,
        foreign_key,
        foreign_file,
        no_files,
    ],
)
def test_a_damaged_artifact_is_not_returned_and_can_be_made_again(
    stage: Stage, damage: Callable[[Artifact], None]
) -> None:
    file = stage.model("a")
    damage(stage.prepare(file))
    store = stage.store()
    assert store.find(file) is None
    assert store.find(file, ()) is None
    made = stage.prepare(file)
    assert store.find(file) == made
    assert stage.store().find(file) == made
    assert (made.directory / "model.bin").read_bytes() == WEIGHTS


def test_damage_is_read_once(stage: Stage, read: list[str]) -> None:
    file = stage.model("a")
    flip_byte(stage.prepare(file))
    read.clear()
    store = stage.store()
    assert [store.find(file) for _ in range(3)] == [None] * 3
    assert read == ["model.bin"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b'"key"', b"{}", b"\xff\xfe", b"[" * 100_000, "same key", "not hexadecimal", "number"],
    ids=str,
)
def test_a_damaged_index_is_made_again(stage: Stage, text: bytes | str) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    (index,) = (stage.cache / "index").iterdir()
    entry = json.loads(index.read_text())
    keys = {"same key": "../" + entry["key"], "not hexadecimal": "x" * 32, "number": 5}
    index.write_bytes(text if isinstance(text, bytes) else json.dumps(entry | {"key": keys[text]}).encode())
    assert stage.store().token(file) == 0
    assert stage.store().find(file) is None
    assert stage.store().find(file, ()) == made
    assert stage.store().find(file) == made


def test_an_unusable_artifact_is_rejected(stage: Stage) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    store = stage.store()
    store.reject(made.manifest.key)
    assert store.find(file) is None
    assert store.token(file) == 0
    assert not made.directory.exists()
    store.reject(made.manifest.key)  # by two at once


def test_a_model_replaced_while_it_is_read_is_not_remembered(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stage.model("a")
    digest_of = files.digest_of

    def slow(path: Path) -> str:
        digest = digest_of(path)
        file.write_bytes(b"another")
        touch(file)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(files, "digest_of", slow)
        before = stage.store().key_of(file)
    assert stage.store().key_of(file) != before


# --- told ------------------------------------------------------------------------------------------------


def test_how_a_model_stands_is_told(stage: Stage) -> None:
    file = stage.model("a")
    assert stage.store().look(file).state == "missing"
    made = stage.prepare(file)
    standing = stage.store().look(file)
    assert (standing.state, standing.artifact) == ("prepared", made)
    assert stage.store().look(stage.model("b", b"other")).state == "missing"
    assert stage.store().look(file, (), {"n": 8}).state == "stale"
    stage.prepare(file)
    assert stage.store(replace(IDENTITY, cpu="other")).look(file).state == "stale"
    stage.prepare(file)
    file.write_bytes(b"modem")
    touch(file)
    assert stage.store().look(file).state == "stale"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (flip_byte, "model.bin has not the content that was written"),
        (cut_short, "model.bin has .* bytes, .* were written"),
        (lose_weights, "model.bin: No such file"),
        (lose_manifest, "manifest.json: No such file"),
        (cut_manifest, "manifest.json: "),
        (foreign_schema, "manifest.json: schema 99"),
        (foreign_key, "manifest.json is that of another artifact"),
        (no_files, r"manifest.json speaks of no model\.onnx"),
    ],
)
def test_what_is_wrong_with_a_damaged_one_is_told(stage: Stage, damage: Callable[[Artifact], None], why: str) -> None:
    file = stage.model("a")
    damage(stage.prepare(file))
    standing = stage.store().look(file)
    assert (standing.state, standing.artifact) == ("damaged", None)
    assert re.search(why, standing.why)


# --- cleaned ---------------------------------------------------------------------------------------------


def test_what_a_crash_left_is_removed_and_what_is_being_made_is_not(stage: Stage) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    left = stage.cache / "tmp-crashed"
    left.mkdir()
    (left / "model.bin").write_bytes(WEIGHTS)
    (stage.cache / "tmp-4711").write_text("{")
    with stage.store().aside() as folder:
        (folder / "model.bin").write_bytes(WEIGHTS)
        assert stage.store().clean_up() >= len(WEIGHTS)
        assert (folder / "model.bin").exists()
    assert not left.exists()
    assert not (stage.cache / "tmp-4711").exists()
    assert not folder.exists()
    assert len(list((stage.cache / "index").iterdir())) == 1
    assert stage.store().find(file) == made


def test_a_folder_aside_goes_when_building_fails(stage: Stage) -> None:
    with contextlib.suppress(RuntimeError), stage.store().aside() as folder:
        (folder / "model.bin").write_bytes(WEIGHTS)
        raise RuntimeError
    assert list(stage.cache.iterdir()) == []


def test_a_folder_aside_that_another_host_cleans_up_before_it_is_locked_is_made_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, seen = locks.fcntl.flock, list[Path]()

    def late(descriptor: int, operation: int) -> None:
        if not seen:
            seen.extend(stage.cache.glob("tmp-*"))
            seen[0].rmdir()
        lock(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with stage.store().aside() as folder:
        assert folder.is_dir()
        assert folder != seen[0]


def test_what_another_host_prepares_is_waited_for_and_not_prepared_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, found = threading.Event(), list[Artifact]()

    class Waiting(Child):
        @property
        def is_killed(self) -> bool:  # asked again and again, by who waits
            waits.set()
            return False

        @is_killed.setter
        def is_killed(self, _: bool) -> None: ...

    monkeypatch.setattr(launcher, "_reported", lambda *_: pytest.fail("a child was started"))
    file, other = stage.model("a"), stage.store()

    def second() -> None:
        found.append(launcher.prepare(other, file, (), Bounds(1 << 20, 10), child=Waiting()))

    first = stage.store()
    with first.turn(first.key_of(file), gives_up=lambda: True):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        made = stage.prepare(file)
    thread.join(10)
    assert found == [made]


def test_an_artifact_can_be_read_by_whom_the_umask_lets(stage: Stage) -> None:
    umask = os.umask(0o022)
    try:
        made = stage.prepare(stage.model("a"))
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in made.directory.iterdir()}
    # What is mapped nobody is to write to; the manifest is only ever replaced.
    assert modes == {"manifest.json": 0o644, "model.onnx": 0o444, "model.bin": 0o444}
    assert made.directory.stat().st_mode & 0o777 == 0o755


def test_an_artifact_that_was_rejected_and_cannot_be_removed_is_not_used_until_it_is_made_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    store = stage.store()

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        store.reject(made.manifest.key)
    assert made.model_file.exists()
    assert store.find(file) is None
    assert store.look(file).why == "it could not be opened"
    stage.prepare(file)
    assert store.find(file) is not None


def test_what_the_index_cannot_take_is_remembered_and_leaves_nothing_behind(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    file = stage.model("a")
    made = stage.prepare(file)
    shutil.rmtree(stage.cache / "index")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    store = stage.store()
    read.clear()
    assert [store.find(file, ()), store.find(file, ()), store.find(file)] == [made] * 3
    assert read == ["model.onnx"]
    assert list((stage.cache / "index").iterdir()) == []
    assert store.token(file) != 0
    touch(file)
    assert store.find(file, ()) == made
    assert read == ["model.onnx"] * 2


def size_bytes(artifact: Artifact) -> int:
    return sum(path.stat().st_size for path in artifact.directory.iterdir())


def test_the_least_recently_used_go_first_and_none_in_use(stage: Stage) -> None:
    files = [stage.model(name, name.encode()) for name in "abcd"]
    made = [stage.prepare(file) for file in files]
    for age, artifact in enumerate(made):
        os.utime(artifact.directory, (1000 + age, 1000 + age))
    store = stage.store()
    assert store.find(files[1]) is not None  # used now
    one, least = max(map(size_bytes, made)), min(map(size_bytes, made))
    assert store.clean_up(max_bytes=4 * one) == 0
    removed = store.clean_up(max_bytes=2 * one, in_use=frozenset({made[0].manifest.key}))
    assert removed >= 2 * least
    assert [artifact.directory.exists() for artifact in made] == [True, True, False, False]
    assert store.clean_up(max_bytes=0, in_use=frozenset({made[0].manifest.key})) > 0
    assert [artifact.directory.exists() for artifact in made] == [True, False, False, False]


def test_what_is_not_ours_in_the_cache_is_left_alone(stage: Stage) -> None:
    stage.prepare(stage.model("a"))
    (stage.cache / "notes").mkdir()
    (stage.cache / "notes" / "text").write_text("mine")
    (stage.cache / "README").write_text("mine")
    stage.store().clean_up(max_bytes=0)
    assert {path.name for path in stage.cache.iterdir()} == {"index", "notes", "README"}


def test_a_cache_that_cannot_be_written_is_used_as_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere, so the refusals are made: the tests may run as root.
    file = stage.model("a")
    made = stage.prepare(file)
    (stage.cache / "tmp-crashed").mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    for name in ("utime", "rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(files.os, name, refuse)
    monkeypatch.setattr(Path, "open", refuse_writing(Path.open))
    store = stage.store()
    assert store.find(file) == made
    assert store.clean_up(max_bytes=0) == 0
    with pytest.raises(OSError, match="Read-only"), store.aside():
        pass
    assert made.model_file.exists()


def refuse_writing(original: Callable[..., Any]) -> Callable[..., Any]:
    def opened(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if "w" in mode:
            raise PermissionError(30, "Read-only file system")
        return original(self, mode, *rest, **more)

    return opened
