"""What mkdocs does not do by itself: pages that lie elsewhere in the repository, and links out of `docs/`.

A page is read on the site and in the repository. Its links are written for the repository; here those that lead out of
`docs/` become links to the site's copy of that page, or, where the site has none, the path as text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[2]

#: Pages of the site that lie where the repository's readers look for them.
ELSEWHERE: Final = {
    "design-pool.md": "modelhost/pool/DESIGN.md",
    "design-api.md": "modelhost/api/DESIGN.md",
    "benchmarks.md": "benchmarks/README.md",
    "shipped-models.md": "models/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
    "changes.md": "CHANGELOG.md",
}

_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
_FENCE: Final = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere."""
    for uri, source in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the links of a page into links of the site."""
    uri = page.file.src_uri
    return rewritten(markdown, source=ELSEWHERE.get(uri, f"docs/{uri}"))


def rewritten(markdown: str, *, source: str) -> str:
    """Returns a page of the site with its links, which are relative to `source`, as links of the site; not in code."""
    parts, at = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_with_links(markdown[at : fence.start()], source), _as_text(fence[0])]
        at = fence.end()
    return "".join([*parts, _with_links(markdown[at:], source)])


def _with_links(text: str, source: str) -> str:
    return _LINK.sub(lambda found: _link(found, source), text)


def _link(found: re.Match[str], source: str) -> str:
    target, _, anchor = found[3].partition("#")
    if not target or "://" in target or target.startswith("mailto:"):
        return found[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    on_site = next((uri for uri, lies in ELSEWHERE.items() if lies == path), None)
    if on_site is None and path.startswith("docs/"):
        on_site = path.removeprefix("docs/")
    if on_site is None and path == "README.md":
        on_site = "index.md"
    if on_site is None:
        words = found[2].strip("`")
        return f"`{words}`" if words in (path, Path(path).name) else f"{found[2]} (`{path}`)"
    return f"{found[1]}[{found[2]}]({on_site}{'#' + anchor if anchor else ''})"


def _as_text(fence: str) -> str:
    """The drawing program for Mermaid would have to be loaded from elsewhere: its text can be read as it is."""
    return fence.replace("```mermaid", "```text", 1)
