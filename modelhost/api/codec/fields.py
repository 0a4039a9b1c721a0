"""The fields of a V2 request's JSON: each read with its type checked, or refused by name.

Absent and null are the same where a field is optional: some clients write all fields. Every
function raises InvalidRequest that says which field, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import orjson

from modelhost.api.codec.json_tensors import say
from modelhost.errors import InvalidRequest

T = TypeVar("T")

_MAX_NAME_CHARS: Final = 1024  # names are repeated in messages
_NO_MEMORY: Final = "Not enough memory"  # orjson has the same error class for this
_NOTHING: Final[dict[str, object]] = {}


def parse_document(text: bytes | memoryview) -> dict[str, object]:
    """Returns the JSON object that `text` is; raises MemoryError where that takes too much."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    else:
        if isinstance(document, dict):
            return document
        raise InvalidRequest(f"the body must be a JSON object, got {say(document)}")
    if reason.startswith(_NO_MEMORY):
        raise MemoryError(reason)  # which is not the client's fault
    # Raised out here so that the parser's error, which holds the whole text, is gone.
    raise InvalidRequest(f"the body is not valid JSON: {reason}")


def object_at(owner: Mapping[str, object], key: str, where: str) -> dict[str, object]:
    """Returns the object at `key`, an empty one where it is absent."""
    value = owner.get(key)
    if value is None:
        return _NOTHING
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{key}' of {where} must be an object, got {say(value)}")
    return value


def flag_at(parameters: Mapping[str, object], key: str, where: str, default: bool = False) -> bool:
    """Returns the parameter `key`, which has to be a JSON boolean; `default` where it is absent."""
    value = parameters.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter '{key}' of {where} must be true or false, got {say(value)}")
    return value


def request_id(document: Mapping[str, object]) -> str:
    """Returns the client's id of the request, "" where it gives none."""
    value = document.get("id")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequest(f"'id' must be a string, got {say(value)}")
    return value


def timeout_s(parameters: Mapping[str, object]) -> float | None:
    """Returns the client's time limit, which it gives in microseconds; 0 is none."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"parameter 'timeout' must be whole microseconds, got {say(value)}")
    return value / 1e6 if value else None


def named_entries(value: object, kind: str) -> dict[str, dict[str, object]]:
    """Returns the objects in the list `value` by their unique names, in order."""
    if not isinstance(value, list):
        raise InvalidRequest(f"'{kind}s' must be a list, got {say(value)}")
    named: dict[str, dict[str, object]] = {}
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise InvalidRequest(f"{kind} {index} must be an object, got {say(entry)}")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidRequest(f"{kind} {index} must have a string as 'name', got {say(name)}")
        add_named(named, name, entry, kind=kind, index=index)
    return named


def add_named(named: dict[str, T], name: str, entry: T, *, kind: str, index: int) -> None:
    """Adds the entry at `index` by its name. Raises InvalidRequest where that is too long, or there already."""
    if len(name) > _MAX_NAME_CHARS:
        raise InvalidRequest(
            f"{kind} {index} has a name of {len(name)} characters, at most {_MAX_NAME_CHARS} are accepted"
        )
    if name in named:
        raise InvalidRequest(f"{kind} '{name}' is given twice")
    named[name] = entry


def refuse_parameters(parameters: Mapping[str, object], keys: Sequence[str], where: str) -> None:
    """Refuses parameters that change what a request means and are not implemented."""
    for key in keys:
        if key in parameters:
            raise InvalidRequest(f"parameter '{key}' of {where} is not supported by this server")
