"""Writes `docs/configuration.md` from the settings: `python -m docs.tools.configuration`.

The docstrings beside the fields are the source. A test compares the page with what this makes of them, so that a key
cannot come, go or change its default without its line.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from modelhost.config import ModelOptions, PreloadEntry, Settings, VersionPolicy
from modelhost.config.fields import (
    Duration,
    PositiveDuration,
    PositiveInt,
    PositiveIntOrAuto,
    Seconds,
    Size,
    SizeOrAuto,
    Threshold,
)
from modelhost.units import ThresholdSpec

PAGE: Final = Path(__file__).resolve().parents[1] / "configuration.md"
_INTRODUCTION: Final = Path(__file__).with_name("configuration.head.md")

#: How values are written, by what the fields call them. Named once in the introduction.
_WRITTEN: Final[tuple[tuple[Any, str], ...]] = (
    (Size, "size"),
    (SizeOrAuto, 'size or `"auto"`'),
    (Threshold, "threshold"),
    (PositiveIntOrAuto, 'number or `"auto"`'),
    (PositiveInt, "number"),
    (Seconds, "seconds"),
    (PositiveDuration, "duration"),
    (Duration, "duration"),
)
_PLAIN: Final = {bool: "`true` or `false`", int: "number", float: "seconds", str: "text", Path: "path"}


def page() -> str:
    """Returns the whole page."""
    parts = [_INTRODUCTION.read_text().rstrip()]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts += [f"## [{name}]", _first_paragraph(section), _table(section, section_name=name)]
    parts += [
        "## Options of a model",
        f"{_first_paragraph(ModelOptions)} Environment variables and flags have none of them: "
        "`MODELHOST_MODELS_OPTIONS` takes the whole table in TOML syntax.",
        _table(ModelOptions),
        "## Entries of `models.preload`",
        f"{_first_paragraph(PreloadEntry)} A name alone will do, or a table with these keys.",
        _table(PreloadEntry),
    ]
    return "\n\n".join(parts) + "\n"


def _table(section: type[BaseModel], *, section_name: str | None = None) -> str:
    meanings = docstrings(section)
    lines = ["| key | type, default | meaning |", "| --- | --- | --- |"]
    for name, field in section.model_fields.items():
        key = name if section_name is None else f"{section_name}.{name}"
        variable = "" if section_name is None else f"<br>`MODELHOST_{section_name.upper()}_{name.upper()}`"
        cells = (f"`{key}`{variable}", f"{type_of(section, name)}<br>{default_of(field)}", meanings[name])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def docstrings(section: type[BaseModel]) -> dict[str, str]:
    """Returns the text below each field. Raises KeyError where one has none."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found = dict(_documented(body.body))
    return {name: found.get(name, _SPOKEN.get(f"{section.__name__}.{name}", "")) for name in section.model_fields}


#: Fields whose name says it all, and which have no docstring.
_SPOKEN: Final = {
    "PreloadEntry.name": "The model.",
    "PreloadEntry.version": "Its version; unset: the one that answers by default.",
}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            yield statement.target.id, " ".join(str(following.value.value).split())


def _first_paragraph(section: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(section.__doc__ or "").split("\n\n")[0].split())


def type_of(section: type[BaseModel], name: str) -> str:
    """Returns how a value is written."""
    return _written(typing.get_type_hints(section, include_extras=True)[name])


def _written(annotation: Any) -> str:
    for written, words in _WRITTEN:
        if annotation == written:
            return words
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _written(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_written(part) for part in arguments if part is not types.NoneType)
    if origin is tuple:
        if typing.get_origin(arguments[0]) is typing.Literal:
            return f"list of {_written(arguments[0])}"
        return f"list of {'names' if arguments[0] is str else 'paths' if arguments[0] is Path else 'entries'}"
    if origin is dict:
        return "table"
    if annotation is VersionPolicy:
        return '`"all"`, `{latest = 2}`, `{specific = [1, 3]}`'
    return _PLAIN[annotation]


def default_of(field: FieldInfo) -> str:
    """Returns the default as it would be written."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    match value:
        case None:
            return "unset"
        case bool():
            return f"`{str(value).lower()}`"
        case ThresholdSpec():
            return f'`"{value.text}"`'
        case VersionPolicy():
            return f'`"{value}"`'
        case str() | Path():
            return f'`"{value}"`'
        case tuple() if value and value == typing.get_args(typing.get_args(field.annotation)[0]):
            return "all"
        case tuple():
            return "`[]`"
        case dict():
            return "`{}`"
        case int() if value >= 1 << 20:
            return f'`"{value >> 20}MB"`'
        case _:
            return f"`{value:g}`"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE.name}: {len(list(page().splitlines()))} lines\n")
