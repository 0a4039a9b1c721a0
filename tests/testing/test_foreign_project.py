"""A project that is not ours uses the toolkit with nothing but modelhost and pytest in its environment."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest
from built_package import Package
from sizes import FULL

TESTS = """
import asyncio
import pytest

from modelhost.testing import Place

kept = []


@pytest.mark.limit_memory("64MB")
def test_within_its_limit():
    assert bytearray(8 << 20)


@pytest.mark.limit_memory("64MB")
def test_beyond_its_limit():
    kept.append(bytearray(b"x") * (256 << 20))


@pytest.mark.no_leaks(iterations=40)
def test_clean():
    sorted(range(1000))


@pytest.mark.no_leaks(iterations=40)
def test_leaks():
    kept.append(bytes(1024))


def test_fixtures(memory_snapshot, memory_pressure):
    held = [bytes(1000) for _ in range(4000)]
    assert memory_snapshot.compare().main_place is Place.PYTHON
    assert memory_pressure("+4MB").reached_bytes > 8 << 20


def test_nothing_else_is_installed():
    for name in ("onnxruntime", "numpy", "psutil", "pydantic"):
        with pytest.raises(ImportError):
            __import__(name)
"""
#: With pytest-xdist and pytest-asyncio.
MORE_TESTS = """

@pytest.mark.asyncio
@pytest.mark.limit_memory("64MB")
async def test_coroutine_within_its_limit():
    await asyncio.sleep(0)
    assert bytearray(8 << 20)


@pytest.mark.asyncio
@pytest.mark.limit_memory("64MB")
async def test_coroutine_beyond_its_limit():
    await asyncio.sleep(0)
    kept.append(bytearray(b"x") * (256 << 20))


@pytest.mark.asyncio
@pytest.mark.no_leaks(iterations=40)
async def test_coroutine_leaks():
    await asyncio.sleep(0)
    kept.append(bytes(1024))


@pytest.mark.asyncio
@pytest.mark.no_leaks(iterations=40)
async def test_coroutine_is_clean():
    await asyncio.sleep(0)
"""


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHONPATH", "PYTEST"))}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)


def install_by_hand(environment: Path, wheel: Path) -> None:
    """Unpacks the wheel, and links to pytest where our own environment has it, so that no index is asked."""
    site = next(environment.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        found = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(Path(str(found.locate_file(top))))


def check(environment: Path, project: Path, tests: str, *arguments: str) -> str:
    project.mkdir()
    (project / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\nmemory_summary = 3\n")
    (project / "test_project.py").write_text(tests)
    ended = call(environment / "bin" / "python", "-m", "pytest", "-p", "no:cacheprovider", *arguments, cwd=project)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "leak: 1." in ended.stdout, ended.stdout
    assert "KB of Python objects" in ended.stdout
    assert "hungriest tests" in ended.stdout
    assert "the kernel killed this test" in ended.stdout or "MemoryError" in ended.stdout, ended.stdout
    return ended.stdout


def test_a_foreign_project_uses_the_plugin(package: Package, tmp_path: Path) -> None:
    venv.create(tmp_path / "environment", with_pip=False)
    install_by_hand(tmp_path / "environment", package.wheel)
    assert "2 failed, 4 passed" in check(tmp_path / "environment", tmp_path / "project", TESTS)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(not FULL, reason="asks the package index; with MODELHOST_TEST_FULL=1")
def test_a_foreign_project_installs_it(package: Package, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    installed = call(*pip, package.wheel, "pytest", cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    alone = TESTS[: TESTS.index("def test_nothing_else")]
    assert "2 failed, 3 passed" in check(environment, tmp_path / "project", alone)
    installed = call(*pip, "pytest-xdist", "pytest-asyncio", cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert "4 failed, 5 passed" in check(environment, tmp_path / "with-plugins", alone + MORE_TESTS, "-n", "2")
