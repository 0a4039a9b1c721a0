"""The host as a user who may do nothing, on a root that nobody can write: as a hardened container has it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import host_process
import httpx
import pytest
from host_process import MODELS, running_host

_NOBODY = 65534

#: A mount namespace of its own, whose root is read-only; then no user, no group, no capability, and none to be had.
_SCRIPT = """
set -e
{seen}
mount -o remount,bind,ro /
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs "$@"
"""

#: Where Python lies in a home that others may not enter: an empty one with nothing but Python in its place.
_SEEN = """
mount --bind '{python}' '{aside}'
mount -t tmpfs -o mode=755 none '{home}'
mkdir -p '{python}'
mount --move '{aside}' '{python}'
"""


def _prefix(aside: Path) -> tuple[str, ...]:
    """Returns what a command is put behind; `aside` is an empty folder."""
    python = Path(sys.base_prefix)
    closed = next((folder for folder in reversed(python.parents) if not folder.stat().st_mode & 0o001), None)
    seen = "" if closed is None else _SEEN.format(python=python, aside=aside, home=closed)
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT.format(seen=seen), "sh")


def _reason() -> str | None:
    """Says why such a process cannot be made here, None where it can."""
    if missing := [tool for tool in ("unshare", "setpriv") if shutil.which(tool) is None]:
        return f"{missing[0]} is missing"
    code = "import modelhost, subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)"
    with tempfile.TemporaryDirectory() as aside:
        command = [*_prefix(Path(aside)), sys.executable, "-c", code]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    said = tried.stderr.strip().splitlines()
    return None if tried.returncode == 0 else f"a process without rights cannot be made here: {said[-1:]}"


_REASON = _reason()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with models that everybody may read, unlike the tests' own."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        folder.chmod(0o755)
        shutil.copytree(MODELS / "iris_petals", folder / "models" / "iris_petals")
        yield folder


def test_it_serves_without_rights_from_a_root_that_is_read_only(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_process, "COMMAND", (*_prefix(tmp_path), *host_process.COMMAND))
    before = sorted(directory.rglob("*"))
    with running_host(directory, directory / "models", "--memory-limit", "400MB") as host:
        found = Path(f"/proc/{host.process.pid}/status").read_text()
        status = {line.partition(":")[0]: line.split()[1:] for line in found.splitlines()}
        assert status["Uid"] == status["Gid"] == [str(_NOBODY)] * 4
        assert (status["Groups"], status["NoNewPrivs"]) == ([], ["1"])
        assert all(int(status[name][0], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"))
        mounts = [line.split() for line in Path(f"/proc/{host.process.pid}/mountinfo").read_text().splitlines()]
        assert any(mount[4] == "/" and "ro" in mount[5].split(",") for mount in mounts)
        inputs = [
            {"name": "species", "datatype": "BYTES", "shape": [1, 1], "data": ["setosa"]},
            {"name": "sepal", "datatype": "FP32", "shape": [1, 2], "data": [5.1, 3.5]},
        ]
        url = f"{host.url}/v2/models/iris_petals/infer"
        answer = httpx.post(url, json={"inputs": inputs}, trust_env=False, timeout=60)
        assert answer.status_code == 200, answer.text + host.log
        assert answer.json()["outputs"][0]["data"][0] == pytest.approx(1.5, abs=0.2)
        assert httpx.get(f"{host.url}/v2/health/ready", trust_env=False).status_code == 200
        assert host.stop() == 0
    assert sorted(path for path in directory.rglob("*") if path.name != "serve.log") == before
    assert os.geteuid() != _NOBODY
