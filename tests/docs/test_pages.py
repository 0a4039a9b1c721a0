"""Links, anchors and pictures lead somewhere, and every page can be found."""

from __future__ import annotations

import html
import json
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from snippets import ROOT, blocks

from docs.tools import pictures

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "modelhost").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "models" / "README.md",
    ]
)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """Returns a page without its code."""
    return re.sub(r"`[^`\n]+`", lambda found: "x" * len(found[0]), _FENCE.sub("", page.read_text()))


@cache
def anchors(page: Path) -> frozenset[str]:
    """Returns the anchors of a page, as GitHub and mkdocs make them of headings."""
    headings = re.findall(r"^#{1,6} (.+?)(?: *\{#([\w-]+)\})?$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    found = set()
    for words, own in headings:
        plain = html.unescape(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", words)).replace("`", "")
        slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip())
        found.add(own or slug)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(text_of(page)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"{target}: no such file"
        assert found.is_relative_to(ROOT), target
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{target}: no such heading"


def test_pictures_say_what_they_show() -> None:
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^()\s]+)\)", page.read_text()):
            assert len(words) > 40, f"{page.name}: {target} has no text for those who cannot see it"


def test_pictures_are_what_their_figures_say() -> None:
    figures = json.loads(pictures.FIGURES.read_text())
    for name, draw in pictures.PICTURES.items():
        found = (pictures.FOLDER / f"{name}.svg").read_text()
        assert found == draw(figures), f"run python -m docs.tools.pictures {name}"
        assert len(found) < 10_000


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed: list[str] = []
    todo = list(nav)
    while todo:
        ((_, below),) = todo.pop().items()
        listed, todo = (listed, todo + below) if isinstance(below, list) else ([*listed, below], todo)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(listed) == set(), "in no navigation: give them a line in mkdocs.yml"
    assert len(listed) == len(set(listed))


def test_pages_that_the_code_names_are_there() -> None:
    for file in [*(ROOT / "modelhost").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "Dockerfile"]:
        for name in re.findall(r"docs/([\w-]+\.md)", file.read_text()):
            assert (ROOT / "docs" / name).is_file(), f"{file.relative_to(ROOT)} names docs/{name}"


def test_every_page_begins_with_its_title() -> None:
    for page in PAGES:
        first = next(line for line in page.read_text().splitlines() if line and not line.startswith(("<!--", "     ")))
        assert first.startswith("# "), page


def test_code_ends_on_every_page() -> None:
    for page in PAGES:
        blocks(page)
