"""Who follows the guides, from the first command to the last, in an empty folder, gets what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shells import INSTALLS, Shell
from sizes import FULL
from snippets import PAGES, ROOT, blocks, is_in_order

GUIDES = [page for page in PAGES if is_in_order(page)]
#: What they take is installed beside the tests; others take minutes to install.
SHORT = ("first-model.md",)

pytestmark = [pytest.mark.full, pytest.mark.timeout(2400)] if FULL else [pytest.mark.timeout(600)]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """In the full form a reader's: nothing of the tests' environment, the package from its wheel."""
    folder = tmp_path / "guide"
    folder.mkdir()
    shell = Shell(folder, variables=_reader(tmp_path) if FULL else None)
    yield shell
    shell.close()


def _reader(folder: Path) -> dict[str, str]:
    wheels = folder / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", wheels, ROOT],
        check=True,
    )
    places = f"{wheels} {os.environ.get('PIP_FIND_LINKS', '')}"
    return {"PIP_FIND_LINKS": places.strip(), "PATH": f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin"}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_a_guide_works_from_top_to_bottom(shell: Shell, page: Path) -> None:
    if not FULL and page.name not in SHORT:
        pytest.skip("takes minutes: in the full form")
    for block in blocks(page):
        if block.mark == "" or (block.mark == "full" and FULL):
            shell.run(block, skip=None if FULL else INSTALLS)
