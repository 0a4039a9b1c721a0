"""The toolkit in pytest: fixtures, marks for a memory limit and for leaks, and a summary of the hungriest tests.

pytest finds it by its entry point. Importing it imports nothing but pytest, which is there already; what a
mark, a fixture or an option needs is imported where one is used.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from modelhost.testing.plugin_fixtures import MemoryOfTest, MemoryPressure

_LINES: Final = (
    "limit_memory(limit, *, means='auto'): the test runs in a fork that may take `limit` more memory than pytest has "
    "already, by the kernel's own limit; for example limit_memory('256MB')",
    "no_leaks(iterations=120, *, warm_up=None, min_bytes=128): the test function is repeated, and fails where memory, "
    "threads or open files stay of each run",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option and the setting of the summary."""
    text = "show the N tests that took most memory, by setup, call and teardown"
    parser.getgroup("modelhost", "memory").addoption("--memory-summary", type=int, metavar="N", help=text)
    parser.addini("memory_summary", f"{text} (0: none)", default="0")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marks, and the summary where one is asked for."""
    for line in _LINES:
        config.addinivalue_line("markers", line)
    wanted = config.getoption("memory_summary")
    if wanted is None:
        text = config.getini("memory_summary")
        if not text.isdecimal():
            raise pytest.UsageError(f"memory_summary: expected a number of tests, got {text!r}")
        wanted = int(text)
    if wanted < 0:
        raise pytest.UsageError(f"--memory-summary: expected a number of tests, got {wanted}")
    if wanted:
        from modelhost.testing.plugin_summary import Summary

        config.pluginmanager.register(Summary(config, wanted), "modelhost-memory-summary")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Makes marks with wrong arguments an error of collection."""
    report = yield
    wrong = []
    for item in (node for node in report.result or () if isinstance(node, pytest.Item)):
        try:
            _wanted(item)
        except ValueError as error:
            wrong.append(f"{item.nodeid}: {error}")
    if wrong:
        report.outcome, report.longrepr, report.result = "failed", "\n".join(wrong), []
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Has the tests with marks run as these say, those included that a `conftest.py` has added marks to."""
    for item in session.items:
        for change in _wanted(item):
            change(item)


def _wanted(item: pytest.Item) -> list[Callable[[pytest.Item], None]]:
    """Returns what the item's marks change of it, the innermost first. Raises ValueError."""
    found = []
    if (mark := item.get_closest_marker("no_leaks")) is not None:
        from modelhost.testing.plugin_leaks import no_leaks

        found.append(_read(mark, no_leaks))
    if (mark := item.get_closest_marker("limit_memory")) is not None:
        from modelhost.testing.plugin_limit import limit_memory

        found.append(_read(mark, limit_memory))
    return found


def _read(mark: pytest.Mark, reader: Callable[..., Any]) -> Callable[[pytest.Item], None]:
    try:
        change: Callable[[pytest.Item], None] = reader(*mark.args, **mark.kwargs)
    except (TypeError, ValueError) as error:
        given = [*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())]
        raise ValueError(f"@pytest.mark.{mark.name}({', '.join(given)}): {error}") from None
    return change


@pytest.fixture
def memory_snapshot(request: pytest.FixtureRequest) -> MemoryOfTest:
    """This test's memory: `take()` sets the beginning again, `compare()` says what has grown since and where."""
    from modelhost.testing.plugin_fixtures import MemoryOfTest

    # Counting the objects in the fork that a limited test runs in would copy all of pytest's memory into its limit.
    return MemoryOfTest(objects=request.node.get_closest_marker("limit_memory") is None)


@pytest.fixture
def memory_pressure() -> Iterator[MemoryPressure]:
    """A function like `modelhost.testing.pressure` that presses at once, until the test ends or its context does."""
    from modelhost.testing.plugin_fixtures import MemoryPressure

    with ExitStack() as stack:
        yield MemoryPressure(stack)
