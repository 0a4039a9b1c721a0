"""The code blocks of a page, and how they are run: one way for the README and all of docs/.

A comment right above a block says what is special about it:

- `<!-- not run: REASON -->`: what it shows cannot be run here; its syntax is checked, and that the commands of ours in
  it have the names and options that it gives them.
- `<!-- full: REASON -->`: it is run in the full form only, for what it takes.
- `<!-- pytest -->`: it is a test module, which the plugin's own tests run.

A page that says `<!-- in order -->` is run from top to bottom in one empty folder: a block with a `title` is a file of
that name. On other pages every block runs by itself. What stands in a `text` or `json` block right below a block is
what it prints, and a comment of JSON below a command is what that command answers; numbers may differ in their fourth
digit, and `...` stands for anything.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
ADDRESS: Final = "127.0.0.1:8080"

#: What a reader can follow: pages whose blocks are checked. Changes are history, and benchmarks measure for hours.
PAGES: Final = tuple(
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "models/README.md"])
    if path.name != "CHANGELOG.md"
)
#: Languages whose blocks are run or parsed. Others (`text`, `yaml`, `mermaid`, ...) are for reading.
CHECKED: Final = ("sh", "console", "python", "toml", "json")

_FENCE: Final = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<rest>[^`]*)$")
_MARK: Final = re.compile(r"<!-- (not run|full|pytest)(?:: (.+?))? -->$")
_TITLE: Final = re.compile(r'title="([^"]+)"')
_NUMBER: Final = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
IN_ORDER: Final = "<!-- in order -->"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of code on a page."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    reason: str = ""
    title: str = ""
    printed: str | None = None
    """What stands in a block right below as its output."""

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a shell block, over as many lines as it takes, and the answer that is shown for it."""

    text: str
    shown: str | None = None


def is_in_order(page: Path) -> bool:
    """Says whether the blocks of a page build on each other."""
    return IN_ORDER in page.read_text()


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page in their order. Raises ValueError where one does not end."""
    found: list[Block] = []
    lines = page.read_text().splitlines()
    at, above, is_right_below = 0, "", False
    while at < len(lines):
        fence = _FENCE.match(lines[at])
        if fence is None:
            if lines[at].strip():
                above, is_right_below = lines[at].strip(), False
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == "```"), None)
        if end is None:
            raise ValueError(f"{page}:{at + 1}: the block does not end")
        text = textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n"
        language = fence["language"]
        if language in ("text", "json") and is_right_below and found[-1].printed is None:
            found[-1] = _with_output(found[-1], text)
        else:
            mark, reason = _mark(above)
            title = _TITLE.search(fence["rest"])
            found.append(Block(page, at + 1, language, text, mark, reason, title[1] if title else ""))
        above, is_right_below, at = "", language in ("sh", "python", "console"), end + 1
    return found


def _mark(above: str) -> tuple[str, str]:
    found = _MARK.match(above)
    return (found[1], found[2] or "") if found else ("", "")


def _with_output(block: Block, text: str) -> Block:
    return Block(block.page, block.line, block.language, block.text, block.mark, block.reason, block.title, text)


def commands(block: Block) -> Iterator[Command]:
    """Yields the commands of a shell block; of a console block those behind `$`, with what is shown below them."""
    if block.language == "console":
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Command(command, shown or None)
        return
    found = list(_split(block.text))
    for at, words in enumerate(found):
        if words.startswith("#"):
            continue
        below = found[at + 1] if at + 1 < len(found) else ""
        shown = below.removeprefix("# ") if below.startswith(("# {", "# [")) else None
        yield Command(words, block.printed if shown is None and at == len(found) - 1 else shown)


def _split(text: str) -> Iterator[str]:
    """Yields each command and each comment line: lines that quotes, backslashes and here-documents hold together."""
    held: list[str] = []
    for line in text.splitlines():
        if not held and not line.strip():
            continue
        held.append(line)
        words = "\n".join(held)
        here = re.search(r"<<-? ?'?(\w+)'?$", held[0])
        if line.endswith("\\") or (here is not None and line.strip() != here[1]):
            continue
        if not words.startswith("#"):
            try:
                shlex.split(words, comments=True)
            except ValueError:
                continue
        yield words
        held = []
    if held:
        raise ValueError(f"a command does not end: {held[0]}")


def is_as_shown(found: str, shown: str) -> bool:
    """Says whether an output is what a page shows."""
    for text in (found, shown):
        if "..." not in shown and not text.lstrip().startswith(("{", "[")):
            break
    else:
        try:
            return _is_same(json.loads(found), json.loads(shown))
        except ValueError:
            pass
    pattern = r"\s+".join(_pattern(word) for word in shown.split())
    match = re.fullmatch(pattern, found.strip(), re.DOTALL)
    if match is None:
        return False
    numbers = [float(number) for word in shown.split() for number in _NUMBER.findall(word)]
    return all(_is_near(float(one), other) for one, other in zip(match.groups(), numbers, strict=True))


def _pattern(word: str) -> str:
    parts = _NUMBER.split(word)
    return r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)".join(".*".join(map(re.escape, part.split("..."))) for part in parts)


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= max(1e-3, 1e-3 * abs(other))


def _is_same(found: Any, shown: Any) -> bool:
    if isinstance(shown, dict):
        return isinstance(found, dict) and found.keys() == shown.keys() and all(
            _is_same(found[key], shown[key]) for key in shown
        )  # fmt: skip
    if isinstance(shown, list):
        return isinstance(found, list) and len(found) == len(shown) and all(map(_is_same, found, shown))
    if isinstance(shown, float) and isinstance(found, int | float):
        return _is_near(found, shown)
    return bool(found == shown)
