"""The mark `no_leaks`: a test function that is repeated, and must leave nothing behind."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from modelhost.testing.leaks import LeakDetector


def no_leaks(
    iterations: int = 120, *, warm_up: int | None = None, min_bytes: int = 128
) -> Callable[[pytest.Item], None]:
    """Returns what the mark does to a test. Raises TypeError and ValueError, as `LeakDetector`."""
    for name, value in (("iterations", iterations), ("warm_up", warm_up), ("min_bytes", min_bytes)):
        if type(value) is not int and not (name == "warm_up" and value is None):
            raise TypeError(f"expected a whole number of {name}, got {value!r}")
    detector = LeakDetector(iterations, warm_up=warm_up, min_bytes=min_bytes)

    def change(item: pytest.Item) -> None:
        runtest = item.runtest
        item.runtest = lambda: _run_repeated(detector, runtest)  # type: ignore[method-assign]

    return change


def _run_repeated(detector: LeakDetector, runtest: Callable[[], object]) -> None:
    """Runs the test as it is, then as often as it takes, with the fixtures of the first run."""
    kept = _Kept()
    runtest()

    def again() -> None:
        kept.forget()
        runtest()

    with warnings.catch_warnings():
        warnings.showwarning = _drop  # pytest would keep those of each run
        report = detector.run(again)
    if report:
        pytest.fail(str(report), pytrace=False)


class _Kept:
    """What pytest keeps of a test's output, which is to be that of its last run, and no leak."""

    def __init__(self) -> None:
        streams = (sys.stdout, sys.stderr)
        self._streams = [(stream, stream.tell()) for stream in streams if _is_of_pytest(stream, "_pytest.capture")]

    def forget(self) -> None:
        """Forgets the last run's."""
        for stream, end in self._streams:
            stream.flush()
            stream.seek(end)
            stream.truncate()
        for handler in logging.getLogger().handlers:
            if _is_of_pytest(handler, "_pytest.logging") and hasattr(handler, "reset"):
                handler.reset()


def _is_of_pytest(thing: object, module: str) -> bool:
    return any(kind.__module__ == module for kind in type(thing).__mro__)


def _drop(*warning: Any, **details: Any) -> None:
    """The first run has shown it."""
