"""The host on Windows: simulated, by taking away what is not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import windows
from host_process import MODELS, running_host

from benchmarks.tracebacks import first_traceback
from modelhost import files, kept, locks

HERE = str(Path(__file__).parent)


def test_a_host_serves_what_is_prepared(
    tmp_path: Path, modelhost_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    models = tmp_path / "models"
    shutil.copytree(MODELS / "wine", models / "wine")
    question = {"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": [1.0] * 13}
    flags = ("--memory-limit", "1GB")
    with (
        running_host(tmp_path, models, *flags, command=windows.COMMAND, PYTHONPATH=HERE) as host,
        httpx.Client(base_url=host.url, timeout=30) as client,
    ):
        refused = client.post("/v2/models/wine/infer", json={"inputs": [question]})
        assert (refused.status_code, refused.json()["code"]) == (500, "model_broken")
        assert "a model that was prepared elsewhere (modelhost prepare) is served here" in refused.json()["error"]
        prepared = modelhost_command(tmp_path, "prepare", "--models", str(models))
        assert prepared.returncode == 0, prepared.stderr
        assert client.post("/v2/repository/models/wine/load").status_code == 200
        answer = client.post("/v2/models/wine/infer", json={"inputs": [question]}).json()
        assert [output["name"] for output in answer["outputs"]] == ["label", "probabilities"]
        assert "modelhost_model_committed_bytes" in client.get("/metrics").text
        host.stop()
        assert first_traceback(host.log) is None


# --- files and locks ----------------------------------------------------------------------------------------


class Disk:
    """Locks of Windows: on the first byte of an open file, of whoever has opened it first."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: set[tuple[int, int]] = set()

    def locking(self, descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (self.LK_NBLCK, 1)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in self.held:
            raise PermissionError(13, "Permission denied")
        self.held.add((status.st_dev, status.st_ino))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setitem(sys.modules, "msvcrt", disk)
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "ARE_HELD_OVER_RENAMES", False)
    return disk


def test_what_a_host_keeps_is_of_one_host_at_a_time(tmp_path: Path, disk: Disk) -> None:
    mine, theirs = (kept.KeptFile(tmp_path, "rows", what="rows", lock="lock") for _ in range(2))
    mine.write([b"{}"])
    with pytest.raises(kept.InUse):
        theirs.read()
    mine.close()
    disk.held.clear()  # as the system does for what is closed
    assert theirs.read() == [{}]
    theirs.close()


def test_files_are_written_whole_and_nothing_is_open_when_they_are_renamed(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def replaced(aside: str, file: Path) -> None:
        descriptors = Path("/proc/self/fd")
        assert aside not in {str(entry.resolve()) for entry in descriptors.iterdir()}
        replace(aside, file)

    monkeypatch.setattr(os, "replace", replaced)
    files.write_whole(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"
    with files.folder_aside(tmp_path) as folder:
        assert files.remove_left(tmp_path) == 0  # it is young
        folder.rename(tmp_path / "done")
    (tmp_path / "tmp-left").write_bytes(b"xx")
    os.utime(tmp_path / "tmp-left", (0, 0))
    assert files.remove_left(tmp_path) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["done", "state"]
