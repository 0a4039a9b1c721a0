"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelhost.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


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
