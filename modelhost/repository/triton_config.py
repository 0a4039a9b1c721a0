"""What is read of Triton's `config.pbtxt`: the name of model files, and which versions are served.

The file is a protocol buffer in text form. Only its outermost fields matter here, and only a few of them, so
that it is cut into tokens and no schema is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from modelhost.config import VersionPolicy
from modelhost.errors import ConfigError

CONFIG_FILE: Final = "config.pbtxt"

_TOKEN: Final = re.compile(r"""\s+|\#[^\n]*|("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[A-Za-z0-9_.+-]+|.)""", re.DOTALL)
_OPENS: Final = {"{": "}", "<": ">", "[": "]"}
_MAX_DEPTH: Final = 50


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What the file says; None where it says nothing."""

    file_name: str | None = None
    version_policy: VersionPolicy | None = None


def parse_config(text: str) -> TritonConfig:
    """Reads the file's text. Raises ConfigError where what matters of it cannot be understood."""
    if "default_model_filename" not in text and "version_policy" not in text:
        return TritonConfig()
    try:
        fields = _message(_Tokens(text), None, 0)
        named = [_text(value) for name, value in fields if name == "default_model_filename"]
        policies = [_policy(value) for name, value in fields if name == "version_policy"]
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"{CONFIG_FILE} is not understood: {error}") from None
    return TritonConfig(named[-1] or None if named else None, policies[-1] if policies else None)


class _Tokens:
    def __init__(self, text: str) -> None:
        self._found: Iterator[str] = (match[1] for match in _TOKEN.finditer(text) if match[1] is not None)
        self.next: str | None = next(self._found, None)

    def take(self) -> str:
        token, self.next = self.next, next(self._found, None)
        if token is None:
            raise ValueError("it ends in the middle")
        return token


def _message(tokens: _Tokens, end: str | None, depth: int) -> list[tuple[str, Any]]:
    """Returns the fields up to `end`, names and values in their order."""
    fields: list[tuple[str, Any]] = []
    while tokens.next != end:
        name = tokens.take()
        if name in ",;":
            continue
        if tokens.next == ":":
            tokens.take()
        elif tokens.next not in ("{", "<", "["):
            raise ValueError(f"'{name[:50]}' has no value")
        value = _value(tokens, depth)
        fields += [(name, one) for one in value] if isinstance(value, _List) else [(name, value)]
    if end is not None:
        tokens.take()
    return fields


class _List(list[Any]):
    """The values of one field."""


def _value(tokens: _Tokens, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {_MAX_DEPTH}")
    token = tokens.take()
    if token in ("{", "<"):
        return _message(tokens, _OPENS[token], depth + 1)
    if token == "[":
        values = _List()
        while tokens.next != "]":
            if tokens.next == ",":
                tokens.take()
            else:
                values.append(_value(tokens, depth + 1))
        tokens.take()
        return values
    if token[0] in "\"'":
        parts = [token[1:-1]]
        while tokens.next is not None and tokens.next[0] in "\"'":  # pieces of one text
            parts.append(tokens.take()[1:-1])
        return "".join(parts)
    return token


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("default_model_filename is no text")
    return value


def _policy(fields: Any) -> VersionPolicy:
    """Raises ValueError or TypeError where it is none of Triton's three."""
    if not isinstance(fields, list) or len(fields) != 1 or not isinstance(fields[0][1], list):
        raise ValueError("version_policy has to be one of all, latest and specific")
    kind, inner = fields[0]
    if kind == "all":
        return VersionPolicy.parse("all")
    if kind == "latest":
        return VersionPolicy.parse({"latest": max(1, int(dict(inner).get("num_versions", 1)))})
    if kind == "specific":
        return VersionPolicy.parse({"specific": [int(version) for name, version in inner if name == "versions"]})
    raise ValueError(f"version_policy '{kind[:50]}' is none of all, latest and specific")
