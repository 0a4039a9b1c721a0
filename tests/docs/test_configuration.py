"""The page about configuration is what the settings say."""

from __future__ import annotations

from docs.tools import configuration


def test_the_page_is_current() -> None:
    assert configuration.PAGE.read_text() == configuration.page(), "run python -m docs.tools.configuration"


def test_every_key_has_a_meaning() -> None:
    for line in configuration.page().splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split(" | ")), line
