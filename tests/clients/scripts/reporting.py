"""Runs the checks of a script, the functions called `check_...`, and prints a line of JSON for each."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


def report(script: dict[str, Any], *arguments: Any) -> None:
    """Calls each check of a script's globals with `arguments`."""
    for name, check in _checks(script):
        try:
            check(*arguments)
        except Exception:
            _print(name, traceback.format_exc())
        else:
            _print(name, None)


async def report_coroutines(script: dict[str, Any], *arguments: Any) -> None:
    """Awaits each check of a script's globals, called with `arguments`."""
    for name, check in _checks(script):
        try:
            await asyncio.wait_for(check(*arguments), 30)
        except Exception:
            _print(name, traceback.format_exc())
        else:
            _print(name, None)


def equal(found: Any, expected: Any) -> None:
    """Asserts that both are equal, and says both where they are not."""
    assert found == expected, f"expected {expected!r}, got {found!r}"


@contextmanager
def refused(kind: type[BaseException], text: str) -> Iterator[None]:
    """Asserts that the block raises `kind` with `text`, a regular expression, in its message."""
    try:
        yield
    except kind as error:
        assert re.search(text, str(error)), f"expected {text!r} in the message, got {error}"
    else:
        raise AssertionError(f"expected a refusal with {text!r}, there was none")


class Awaited:
    """A client without coroutines in the form of one with them, so that the same checks run on both."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        return call


def _checks(script: dict[str, Any]) -> list[tuple[str, Callable[..., Any]]]:
    found = [(name, value) for name, value in script.items() if name.startswith("check_")]
    return [(name.removeprefix("check_"), value) for name, value in found if inspect.isfunction(value)]


def _print(name: str, failure: str | None) -> None:
    print(json.dumps({"check": name, "failure": failure}), flush=True)
