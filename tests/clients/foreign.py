"""Checks that run in other people's environments: scripts of `scripts/`, and what they report.

A script is run once for all of its checks, since its imports take seconds; each check is a test of its
own, named after the function.
"""

from __future__ import annotations

import ast
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import host_process
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
_TIMEOUT_S = 90


@dataclass(frozen=True)
class Report:
    """What a script said of each of its checks (None: passed), and how it ended."""

    failures: dict[str, str | None]
    ending: str

    def assert_passed(self, check: str) -> None:
        """Fails with what the check's function raised there."""
        assert check in self.failures, f"the script ended before '{check}': {self.ending}"
        if (failure := self.failures[check]) is not None:
            pytest.fail(failure, pytrace=False)


def program(name: str, command: str = "python") -> Path:
    """Returns a command of the environment `.venv-NAME`; skips the test where there is no such environment."""
    found = ROOT / f".venv-{name}" / "bin" / command
    if not found.exists():
        pytest.skip(f"no {found.relative_to(ROOT)}: `make .venv-{name}/.made` makes it (lock/{name}.txt)")
    return found


def checks(script: str) -> list[str]:
    """Returns the names of a script's checks without running it."""
    tree = ast.parse((SCRIPTS / script).read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [name.removeprefix("check_") for name in functions if name.startswith("check_")]


def run(script: str, *arguments: str, environment: str = "clients") -> Report:
    """Runs a script with the Python of `.venv-ENVIRONMENT`; raises nothing but the skip of `program`."""
    command = [str(program(environment)), str(SCRIPTS / script), *arguments]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=host_process.environment(), check=False
        )
        output, ending = ended.stdout, f"status {ended.returncode}, {ended.stderr[-4000:]}"
    except subprocess.TimeoutExpired as late:
        output, ending = _text(late.stdout), f"not after {_TIMEOUT_S} s, {_text(late.stderr)[-4000:]}"
    reported = [json.loads(line) for line in output.splitlines() if line.startswith('{"check":')]
    return Report({entry["check"]: entry["failure"] for entry in reported}, ending)


def _text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
