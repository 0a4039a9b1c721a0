"""Which messages are logged, in the terms of the logging extension: `log_info`, `log_verbose_level` …

It changes the level of the `modelhost` logger, and a filter on it for what is off above that level.
The logger is the process's, and so is what is set here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from modelhost.api.codec.json_tensors import say
from modelhost.errors import InvalidRequest

log = logging.getLogger("modelhost")

_LEVELS: Final = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}
_FORMAT: Final = "default"


class _Filter(logging.Filter):
    """Keeps out the levels that are off, whatever the logger's own level says."""

    def __init__(self) -> None:
        super().__init__()
        self.off: frozenset[int] = frozenset()

    def filter(self, record: logging.LogRecord) -> bool:
        """Says whether the record's level is on; what is above ERROR goes with it."""
        return min(record.levelno, logging.ERROR) not in self.off


def current() -> dict[str, Any]:
    """Returns the settings in force."""
    off = _filter().off
    return {
        "log_file": "",
        **{key: log.isEnabledFor(level) and level not in off for key, level in reversed(_LEVELS.items())},
        "log_verbose_level": 1 if log.isEnabledFor(logging.DEBUG) else 0,
        "log_format": _FORMAT,
    }


def change(wanted: Mapping[str, object]) -> dict[str, Any]:
    """Changes the settings that `wanted` names, all or none, and returns those in force.

    Raises InvalidRequest for a value of the wrong type, an unknown setting, and for a file or a format:
    where and how the process logs is for who starts it.
    """
    settings = current()
    for key, value in wanted.items():
        check = _CHECKS.get(key)
        if check is None:
            raise InvalidRequest(f"unknown setting '{key[:100]}'; the settings are {', '.join(_CHECKS)}")
        check(key, value)
        settings[key] = value
    levels = [level for key, level in _LEVELS.items() if settings[key]]
    if settings["log_verbose_level"]:
        levels.append(logging.DEBUG)
    _filter().off = frozenset(level for key, level in _LEVELS.items() if not settings[key])
    log.setLevel(min(levels, default=logging.CRITICAL + 1))
    return current()


def _filter() -> _Filter:
    found = next((known for known in log.filters if isinstance(known, _Filter)), None)
    if found is None:
        found = _Filter()
        log.addFilter(found)
    return found


def _check_flag(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidRequest(f"'{key}': expected true or false, got {say(value)}")


def _check_verbose(key: str, value: object) -> None:
    # JSON has one kind of number: 1.0 is a whole one.
    if type(value) not in (int, float) or not (isinstance(value, (int, float)) and value >= 0 and value == int(value)):
        raise InvalidRequest(f"'{key}': expected a whole number from 0, got {say(value)}")


def _check_is(only: str) -> Callable[[str, object], None]:
    def check(key: str, value: object) -> None:
        if value != only:
            raise InvalidRequest(f"'{key}': cannot be changed by a request, expected \"{only}\", got {say(value)}")

    return check


_CHECKS: Final[Mapping[str, Callable[[str, object], None]]] = {
    "log_file": _check_is(""),
    "log_info": _check_flag,
    "log_warning": _check_flag,
    "log_error": _check_flag,
    "log_verbose_level": _check_verbose,
    "log_format": _check_is(_FORMAT),
}
