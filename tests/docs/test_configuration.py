"""The page about configuration is what the settings say."""

from __future__ import annotations

import sys

from snippets import ROOT

sys.path.insert(0, str(ROOT / "docs" / "tools"))

import configuration


def test_the_page_is_current() -> None:
    assert configuration.PAGE.read_text() == configuration.page(), "run python docs/tools/configuration.py"


def test_every_key_has_a_meaning() -> None:
    for line in configuration.page().splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line
