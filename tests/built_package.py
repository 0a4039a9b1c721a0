"""The package as users get it: source distribution, and the wheel that is made from that; built once for all tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from host_process import MODELS

ROOT = MODELS.parent


@dataclass(frozen=True, slots=True)
class Package:
    """Where both distributions lie."""

    sdist: Path
    wheel: Path


def built_in(folder: Path) -> Package:
    """Returns what `python -m build` makes of the checkout, in a folder that several test processes may share.

    The build tools are those of the lock: no index is asked.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return Package(next(folder.glob("*.tar.gz")), next(folder.glob("*.whl")))


def foreign_environment() -> dict[str, str]:
    """Returns the variables of a process that is not of this checkout, nor of a test."""
    ours = ("PYTHON", "PYTEST", "MODELHOST")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}


def call(*command: str | Path, cwd: Path, timeout_s: float = 600, **variables: str) -> str:
    """Runs a command that has to succeed, out of reach of the checkout; returns what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**foreign_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
