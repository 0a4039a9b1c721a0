"""Files written whole or not at all; leftovers are removed, and nothing that anybody is at work on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelhost import files, locks

WRITER = """
import sys
from pathlib import Path
from modelhost import files
def stop(descriptor):
    print("written", flush=True)
    sys.stdin.read()
files.os.fsync = stop
files.write_whole(Path(sys.argv[1]), b"new")
"""


@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_former_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    file = tmp_path / "state"
    files.write_whole(file, b"former")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if name == "write":
            patched.setattr(files, "open", lambda *_, **__: full(), raising=False)
        elif name == "fsync":
            patched.setattr(files.os, "fsync", full)
        else:
            patched.setattr(files.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            files.write_whole(file, b"new")
    assert file.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [file]


def test_writing_again_and_again_leaves_no_names_in_the_interpreter(tmp_path: Path, named: list[str]) -> None:
    file = tmp_path / "state"
    files.write_whole(file, b"former")
    assert "state" in named
    named.clear()
    files.write_whole(file, b"new")
    assert named == []
    assert file.read_bytes() == b"new"


def test_a_process_that_is_killed_between_write_and_rename_leaves_what_the_next_start_removes(tmp_path: Path) -> None:
    file = tmp_path / "state"
    files.write_whole(file, b"former")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    assert files.remove_left(tmp_path) == 0, "somebody was at work on it"
    writer.kill()
    writer.communicate()
    (left,) = [entry for entry in tmp_path.iterdir() if files.is_aside(entry)]
    assert left.read_bytes() == b"new"
    assert files.remove_left(tmp_path) == 3
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == b"former"


def test_where_there_are_no_locks_only_what_is_old_is_left_over_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    young, old, ahead = (tmp_path / f"tmp-{name}" for name in ("young", "old", "ahead"))
    for folder, age_s in ((young, 60), (old, 86_400), (ahead, -86_400)):
        folder.mkdir()
        (folder / "model.bin").write_bytes(b"x")
        for path in (folder / "model.bin", folder):
            os.utime(path, (path.stat().st_mtime - age_s,) * 2)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert files.remove_left(tmp_path) == 2
    assert list(tmp_path.iterdir()) == [young]
    with files.folder_aside(tmp_path) as folder:
        assert files.remove_left(tmp_path) == 0
        assert folder.is_dir()


def test_what_is_removed_is_out_of_its_place_before_any_of_it_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"weights")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # as if it were killed here
    assert files.remove(folder) == 0
    assert not folder.exists()
    monkeypatch.undo()
    assert files.remove_left(tmp_path) == len(b"weights")
    assert list(tmp_path.iterdir()) == []


def test_one_process_has_a_turn_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    had: list[str] = []
    waits = threading.Event()

    def second() -> None:
        with files.turn(tmp_path, "key", gives_up=lambda: bool(waits.set())) as is_ours:
            had.append(f"second, {is_ours}")

    with files.turn(tmp_path, "key", gives_up=lambda: True) as is_ours:
        had.append(f"first, {is_ours}")
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(10)
        with files.turn(tmp_path, "key", gives_up=lambda: True) as is_ours:
            had.append(f"third, {is_ours}")
        assert files.remove_left(tmp_path) == 0  # locked
        with files.turn(tmp_path, "another", gives_up=lambda: True) as is_ours:
            had.append(f"another, {is_ours}")
    thread.join(10)
    assert had == ["first, True", "third, False", "another, True", "second, True"]
    assert list(tmp_path.iterdir()) == []


def test_a_turn_that_a_crash_has_left_is_free(tmp_path: Path) -> None:
    (tmp_path / "tmp-key").touch()
    with files.turn(tmp_path, "key", gives_up=lambda: True) as is_ours:
        assert is_ours


def test_where_there_are_no_locks_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with files.turn(tmp_path, "key", gives_up=lambda: False) as is_ours:
        assert not is_ours
    assert list(tmp_path.iterdir()) == []
