"""The package: what is in it, that it installs and serves by itself, and that it is the same however it is built."""

from __future__ import annotations

import email
import email.message
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import httpx
import pytest
from built_package import ROOT, Package, call, foreign_environment
from host_process import MODELS
from sizes import FULL

import modelhost

#: The Pythons that the package is for.
SUPPORTED = ("3.11", "3.12", "3.13")

only_in_full = pytest.mark.skipif(not FULL, reason="asks the package index; with MODELHOST_TEST_FULL=1")


def sources() -> set[str]:
    """Returns the files of the package, as git would have them."""
    found = (path for path in (ROOT / "modelhost").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_has_the_package_its_types_and_its_licence_and_nothing_else(package: Package) -> None:
    with zipfile.ZipFile(package.wheel) as archive:
        names = set(archive.namelist())
    info = f"modelhost-{modelhost.__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == sources()
    assert "modelhost/py.typed" in names
    assert {f"{info}/entry_points.txt", f"{info}/licenses/LICENSE"} < names


def test_the_wheel_says_what_it_is(package: Package) -> None:
    assert package.wheel.name == f"modelhost-{modelhost.__version__}-py3-none-any.whl"
    said = metadata(package.wheel)
    assert (said["Name"], said["Version"]) == ("modelhost", modelhost.__version__)
    assert (said["License-Expression"], said["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    assert {"grpc", "bench"} <= set(said.get_all("Provides-Extra", []))
    # Nobody's mailbox, and no address that is not known to be there.
    assert [key for key in said if key.startswith(("Author", "Maintainer", "Home-page", "Project-URL"))] == []


def test_the_source_distribution_is_the_checkout(package: Package) -> None:
    with tarfile.open(package.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["Dockerfile", "Makefile", "lock/serve.txt", "models/digits/1/model.onnx", "tests/conftest.py"]
    assert sources() | set(wanted) <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".git/", ".venv"))]


def test_two_builds_are_the_same_to_the_byte(package: Package, tmp_path: Path) -> None:
    with tarfile.open(package.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=tree)
    assert (tmp_path / "again" / package.wheel.name).read_bytes() == package.wheel.read_bytes()


# --- installed -----------------------------------------------------------------------------------------


def serves(environment: Path, directory: Path) -> None:
    """Starts the command of an environment and asks a shipped model something."""
    command = (environment / "bin/modelhost", "serve", "--models", MODELS, "--port", "0", "--memory-limit", "400MB")
    with (directory / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env=foreign_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        found = re.search(r"listens on (\S+)", process.stdout.readline())
        assert found is not None, (directory / "serve.log").read_text()
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}
        url, question = f"{found[1]}/v2/models/digits/infer", {"inputs": [tensor]}
        answer = httpx.post(url, json=question, trust_env=False, timeout=60)
        assert (answer.status_code, answer.json()["outputs"][0]["shape"]) == (200, [1, 10])
    finally:
        process.terminate()
        process.stdout.close() if process.stdout else None
        assert process.wait(20) == 0


def test_the_wheel_serves_from_an_environment_of_its_own(package: Package, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    # Its dependencies are ours, by a path that comes after the environment's own: no index is asked.
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin/python", "--disable-pip-version-check")
    call(*pip, "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", package.wheel, cwd=tmp_path)
    said = call(environment / "bin/python", "-c", "import modelhost; print(modelhost.__file__)", cwd=tmp_path)
    assert Path(said.strip()).is_relative_to(environment)
    said = call(environment / "bin/modelhost", "--version", cwd=tmp_path)
    assert said == f"modelhost, version {modelhost.__version__}\n"
    serves(environment, tmp_path)


def interpreter(version: str) -> Path | None:
    """Returns a CPython of that version, where the machine has one."""
    managed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *map(str, managed.glob(f"{version}.*/bin/python"))]
    for path in filter(None, found):
        said = subprocess.run([path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True)
        if said.stdout.decode().strip() == version:
            return Path(path)
    return None


@only_in_full
@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("way", ["newest", "locked"])
def test_the_wheel_installs_into_an_empty_environment_and_serves(
    package: Package, tmp_path: Path, version: str, way: str
) -> None:
    """With what the index has today, and with what is locked."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no CPython {version} on this machine")
    call(python, "-m", "venv", tmp_path / "environment", cwd=tmp_path)
    pip = (tmp_path / "environment/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install")
    if way == "locked":
        call(*pip, "--require-hashes", "-r", ROOT / "lock/serve.txt", cwd=tmp_path)
        call(*pip, "--no-deps", package.wheel, cwd=tmp_path)
    else:
        call(*pip, package.wheel, cwd=tmp_path)
    call(tmp_path / "environment/bin/python", "-m", "pip", "check", cwd=tmp_path)
    serves(tmp_path / "environment", tmp_path)


@only_in_full
@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_lock_says_what_the_project_asks_for(tmp_path: Path) -> None:
    """Resolving again, with what is locked preferred, changes nothing; `make lock` is what moves it."""
    venv.create(tmp_path / "environment", with_pip=True)
    call(tmp_path / "environment/bin/python", "-m", "pip", "--quiet", "install", "uv", cwd=tmp_path)
    shutil.copytree(ROOT / "lock", tmp_path / "lock")
    shutil.copytree(ROOT / "modelhost", tmp_path / "modelhost", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    recipe = re.search(r"^lock:.*?\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    for line in recipe[1].replace("\\\n", " ").splitlines():
        if "uv pip compile" in line:
            arguments = line.replace("--upgrade", "").split()[1:]
            call(tmp_path / "environment/bin/uv", *arguments, cwd=tmp_path)
    for path in (ROOT / "lock").glob("*.txt"):
        assert (tmp_path / "lock" / path.name).read_text() == path.read_text(), path.name
