"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from host_process import HostProcess

from modelhost.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8080"

#: A command of an `sh` block over as many lines as its quotes or backslashes span, and a comment right below it.
_CURL = re.compile(r"""^(curl (?:'[^']*'|\\\n|[^'\n\\])*)\n(?:# (.*)\n)?""", re.MULTILINE)
CURLS = [
    pytest.param(command, shown, id=re.sub(r"\s+", " ", command)[:70])
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for command, shown in _CURL.findall(block)
]


def marked_example(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"the README has no example marked '{name}'"
    return found[1]


@pytest.mark.parametrize(
    ("name", "expected"), [("embedded host", "(1, 10)"), ("memory manager", "victims=('my model',)")]
)
def test_python_examples_of_the_readme_run(name: str, expected: str) -> None:
    code = marked_example(name)
    if name == "memory manager":
        code = code.replace("everything=info.is_critical", "everything=True")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert expected in ended.stdout


def test_settings_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    found = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert found is not None
    file = tmp_path / "modelhost.toml"
    file.write_text(found[1])
    settings = load_settings(file=file, environ={})
    assert [entry.optional for entry in settings.models.preload] == [False, True]
    assert settings.models.options["wine"].optimization == "extended"


# --- curl ----------------------------------------------------------------------------------------------


def is_as_shown(found: Any, shown: Any) -> bool:
    """Says whether an answer is what the README shows, which may round numbers to three digits."""
    if isinstance(shown, dict):
        return found.keys() == shown.keys() and all(is_as_shown(found[key], shown[key]) for key in shown)
    if isinstance(shown, list):
        return len(found) == len(shown) and all(map(is_as_shown, found, shown))
    return found == (pytest.approx(shown, abs=1e-3) if isinstance(shown, float) else shown)


def test_no_curl_example_of_the_readme_is_passed_over() -> None:
    shown = [line for line in README.splitlines() if re.match(r" *curl ", line)]
    assert len(shown) == len(CURLS) + 1  # the one in the banner, see below
    assert len(CURLS) >= 3


@pytest.mark.parametrize(("command", "shown"), CURLS)
def test_curl_examples_of_the_readme_run(host_process: HostProcess, command: str, shown: str) -> None:
    assert ADDRESS in command
    pasted = command.replace(ADDRESS, host_process.url).replace("curl ", "curl --fail-with-body ", 1)
    ended = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    found = json.loads(ended.stdout)
    assert "error" not in found
    if shown.startswith(("{", "[")):
        assert is_as_shown(found, json.loads(shown)), found


def test_the_banner_is_as_the_readme_shows_it(host_process: HostProcess) -> None:
    found = re.search(r"```\n(modelhost listens on .*?)```", README, re.DOTALL)
    assert found is not None
    shown = re.split(r"\.\.\.|[\d.]+ MB|\([^)]*\)|3 in models", found[1].rstrip().replace(ADDRESS, host_process.url))
    pattern = ".*".join(re.escape(part) for part in shown)
    assert re.fullmatch(pattern, "\n".join(host_process.banner)), host_process.banner
