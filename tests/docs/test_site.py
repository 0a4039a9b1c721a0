"""The site builds without a warning, and nothing in it is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from snippets import ROOT

pytestmark = pytest.mark.late

PYTHON = ROOT / ".venv-docs" / "bin" / "python"
#: What a browser fetches by itself; links that somebody follows are no matter.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|embed)\b[^>]*\bsrc="(https?:[^"]*)"|<link\b[^>]*\brel="(?:stylesheet|icon|preload|preconnect)"[^>]*"""
    r"""\bhref="(https?:[^"]*)"|url\(["']?(https?:[^)"']*)|@import ["'](https?:[^"']*)"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip("no environment with mkdocs: make .venv-docs/.made")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [PYTHON, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert built.returncode == 0, built.stderr  # not with --quiet: what is not shown does not count
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for file in [*site.rglob("*.html"), *site.rglob("*.css"), *site.rglob("*.svg")]:
        found = [url for urls in _FETCHED.findall(file.read_text()) for url in urls if url]
        assert found == [], file.name


def test_links_out_of_the_pages_folder_have_become_links_of_the_site(site: Path) -> None:
    assert 'href="design-pool.html' in (site / "performance.html").read_text()
    for file in site.rglob("*.html"):
        assert 'href="../modelhost' not in file.read_text(), file.name
