"""The only reader of the settings file, `MODELHOST_*` and flags.

Precedence, strongest first: flags, environment, file, defaults. An unknown key anywhere stops the
start and names the nearest valid one; a value that does not parse names the key and what it accepts.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from modelhost.config.models import ModelOptions, PreloadEntry
from modelhost.config.settings import Settings
from modelhost.config.toml import parse_toml
from modelhost.errors import ConfigError

ENV_PREFIX: Final = "MODELHOST_"
DEFAULT_FILE: Final = Path("modelhost.toml")
_SHOWN_LENGTH: Final = 200

#: Variables with our prefix that are no settings: the file's name, the client commands' host and key, the
#: host's keys and the secret of its alerts, which no settings value has, and what asks the tests for their full size.
_OTHER_VARIABLES: Final = {"CONFIG", "URL", "API_KEY", "API_KEYS", "ALERTS_SECRET", "TEST_FULL"}


def load_settings(
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Reads file, environment and `flags` (dotted keys, None for not given) into one value.

    `file` defaults to `MODELHOST_CONFIG`, then to `modelhost.toml` where there is one.
    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(f"{ENV_PREFIX}CONFIG"):
        file = Path(environ[f"{ENV_PREFIX}CONFIG"])
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    merged: dict[str, dict[str, Any]] = {}
    if file is not None:
        table = _read_toml(file)
        _build(table, source=str(file))  # alone first: its errors are the file's
        _merge(merged, table)
    _merge(merged, _from_environ(environ))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    _merge(merged, _nest(given))
    return _build(merged, source="settings")


def parse_model_options(table: Mapping[str, object], *, source: str) -> ModelOptions:
    """Returns the options in one model's table. Raises ConfigError that names `source`."""
    try:
        return ModelOptions.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(_explain(error, ModelOptions, source)) from None


def valid_keys() -> dict[str, type[BaseModel]]:
    """Returns every dotted key of the settings, with the section that it belongs to."""
    return {f"{section}.{key}": model for section, model in _sections() for key in model.model_fields}


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        yield name, section


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return parse_toml(file.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """Maps `MODELHOST_MEMORY_LIMIT` (or `MODELHOST_MEMORY__LIMIT`) to `memory.limit`."""
    names = {key.replace(".", "_").upper(): key for key in valid_keys()}
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or _is_no_setting(variable.removeprefix(ENV_PREFIX), text):
            continue
        short = variable.removeprefix(ENV_PREFIX).replace("__", "_")
        if short not in names:
            hint = _nearest(short, names)
            advice = f"; did you mean {ENV_PREFIX}{hint}?" if hint else ""
            raise ConfigError(f"unknown environment variable {variable}{advice}")
        key = names[short]
        try:
            found[key] = _decode_variable(key, text)
            _build(_nest({key: found[key]}), source=variable)
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from None
    return _nest(found)


def _is_no_setting(short: str, text: str) -> bool:
    """Says whether a variable with our prefix means something else.

    Kubernetes describes every Service to every container: one that is called `modelhost` sets
    MODELHOST_SERVICE_HOST, MODELHOST_PORT=tcp://…, MODELHOST_PORT_8080_TCP_ADDR and the like.
    """
    if short in _OTHER_VARIABLES or short.startswith("SERVICE_"):
        return True
    return "://" in text if short == "PORT" else re.match(r"PORT_\d+_(TCP|UDP|SCTP)", short) is not None


def _decode_variable(key: str, text: str) -> Any:
    """Returns a list or table from TOML syntax, a list from commas, anything else as the text itself."""
    annotation = valid_keys()[key].model_fields[key.split(".")[1]].annotation
    kind = typing.get_origin(annotation)
    if kind not in (tuple, dict) or isinstance(annotation, types.UnionType):
        return text
    if kind is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError as error:
        raise ValueError(f"expected a {'list' if kind is tuple else 'table'} in TOML syntax: {error}") from None


def _nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    return nested


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for section, table in other.items():
        if isinstance(table, Mapping):
            into.setdefault(section, {}).update(table)
        else:
            into[section] = table


def _build(table: Mapping[str, Any], *, source: str) -> Settings:
    try:
        return Settings(**table)
    except ValidationError as error:
        raise ConfigError(_explain(error, Settings, source)) from None


def _explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """Says each problem in one line: the key, what was expected, what came, the nearest valid key."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            hint = _nearest_key(path, root)
            lines.append(f"unknown key '{key}'" + (f"; did you mean '{hint}'?" if hint else ""))
        else:
            text = problem["msg"].removeprefix("Value error, ")
            got = problem["input"]
            tail = f", got {_shown(got)}" if not isinstance(got, Mapping) and "got" not in text else ""
            lines.append(f"'{key}': {text}{tail}")
    return f"{source}: " + "; ".join(lines)


def _shown(value: object) -> str:
    """Returns a value as it is repeated in a message: not all of a long one."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists in lists
        return "more than can be shown"
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}..."


def _nearest_key(path: list[str], root: type[BaseModel]) -> str | None:
    """Returns the valid key that an unknown one most likely meant, as it would be written there."""
    if path[:2] == ["models", "options"] and len(path) > 3:
        return _nearest(path[-1], ModelOptions.model_fields)
    if path[:2] == ["models", "preload"] and len(path) > 3:
        return _nearest(path[-1], PreloadEntry.model_fields)
    if root is not Settings:
        return _nearest(path[-1], root.model_fields)
    known = valid_keys() | dict(_sections())
    by_last_word = {key.rsplit(".")[-1]: key for key in known}
    if path[-1] in by_last_word:
        return by_last_word[path[-1]]
    return _nearest(".".join(path), known) or by_last_word.get(_nearest(path[-1], by_last_word) or "")


def _nearest(word: str, known: Mapping[str, Any]) -> str | None:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return matches[0] if matches else None
