"""The mark `limit_memory`: a test that runs in a fork under a limit of the kernel, and is reported as if it had not."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import pytest

from modelhost.testing.limit_report import LimitReport
from modelhost.testing.limiting import Wanted, memory_limit
from modelhost.testing.plugin_summary import tell_peak
from modelhost.testing.running import read_status
from modelhost.units import format_bytes, parse_size

_PLUGIN: Final = "modelhost-limited-tests"
_came_back: Final = pytest.StashKey["_Outcome"]()


def limit_memory(limit: int | str, *, means: Wanted = "auto") -> Callable[[pytest.Item], None]:
    """Returns what the mark does to a test. Raises TypeError and ValueError that name what is expected."""
    limit_bytes = parse_size(limit)
    if limit_bytes == 0:
        raise ValueError("expected a limit of more than 0 bytes")
    if means not in get_args(Wanted):
        raise ValueError(f"expected means of {', '.join(map(repr, get_args(Wanted)))}, got {means!r}")

    def change(item: pytest.Item) -> None:
        manager = item.config.pluginmanager
        if not manager.has_plugin(_PLUGIN):
            manager.register(_Reports(), _PLUGIN)
        runtest = item.runtest
        item.runtest = lambda: _run_limited(item, runtest, limit_bytes, means)  # type: ignore[method-assign]

    return change


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What comes out of the fork."""

    reports: list[dict[str, Any]]
    """As the reports of a worker of pytest-xdist: that of the call, after those of its subtests."""
    warnings: list[tuple[Warning, str, int]]
    means: str = ""
    """The limit's own report."""
    peak_bytes: int = 0


class _Reports:
    """Puts the reports that came from forks in the place of those that are made here."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report: pytest.TestReport = yield
        outcome = item.stash.get(_came_back, None)
        if call.when != "call" or outcome is None:
            return report
        del item.stash[_came_back]
        if outcome.reports and call.excinfo is None:
            *subtests, report = (_unpack(item, packed) for packed in outcome.reports)
            for subtest in subtests:
                item.ihook.pytest_runtest_logreport(report=subtest)
            for title, content in report.sections:  # teardown shows them too
                if title.startswith("Captured ") and title.endswith(" call"):
                    item.add_report_section("call", title.removeprefix("Captured ").removesuffix(" call"), content)
            item.user_properties[:] = report.user_properties = [(name, value) for name, value in report.user_properties]
        else:
            tell_peak(report, outcome.peak_bytes)
        report.sections.append(("Memory limit", outcome.means))
        return report


def _unpack(item: pytest.Item, packed: dict[str, Any]) -> Any:
    return item.config.hook.pytest_report_from_serializable(config=item.config, data=packed)


def _run_limited(item: pytest.Item, runtest: Callable[[], object], limit_bytes: int, means: Wanted) -> None:
    if item.config.getoption("usepdb", False):
        item.warn(pytest.PytestWarning("with --pdb the test runs without its memory limit: a fork has no terminal"))
        runtest()
        return
    report, note = _under_limit(item, runtest, limit_bytes, means)
    outcome = report.result if isinstance(report.result, _Outcome) else _Outcome([], [])
    item.stash[_came_back] = replace(outcome, means=f"{report}{note}", peak_bytes=report.peak_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # they have passed the filters there
        for warning, file, line in outcome.warnings:
            warnings.warn_explicit(warning, type(warning), file, line)
    if report.error is not None:  # Ctrl-C, pytest.exit, or what cannot be sent: the test's own is in its report
        raise report.error
    if not outcome.reports:
        pytest.fail(_why(report), pytrace=False)


def _under_limit(
    item: pytest.Item, runtest: Callable[[], object], limit_bytes: int, means: Wanted
) -> tuple[LimitReport, str]:
    """Returns the limit's report, and what is to be said of it."""
    if means in ("auto", "cgroup"):
        with memory_limit(limit_bytes, means=means) as limited:
            if limited.group is not None:
                report = limited.start(_run_inside, item, runtest).wait()
                return replace(report, what=item.name), ""
    # A group is charged what the fork takes. An rlimit counts what pytest has already, and is higher by that.
    by: Wanted = "RLIMIT_AS" if means == "RLIMIT_AS" else "RLIMIT_DATA"
    held_bytes = read_status("VmSize" if by == "RLIMIT_AS" else "VmData")
    report = memory_limit(limit_bytes + held_bytes, means=by).run(_run_inside, item, runtest)
    note = f"\n  that is {format_bytes(limit_bytes)} more than the {format_bytes(held_bytes)} that pytest had already"
    return replace(report, what=item.name), note


def _run_inside(item: pytest.Item, runtest: Callable[[], object]) -> _Outcome:
    """Runs the call of the test, in the fork, and returns what would be reported."""
    gc.freeze()  # a collection would write to pages that are pytest's, each of which is copied then, and charged
    packed: list[dict[str, Any]] = []

    def pack(report: Any) -> None:
        packed.append(item.config.hook.pytest_report_to_serializable(config=item.config, report=report))

    # Plugins would print here, and count what is gone with this process.
    setattr(item.config.hook, "pytest_runtest_logreport", pack)  # noqa: B010
    item.runtest = runtest  # type: ignore[method-assign,assignment]
    with warnings.catch_warnings(record=True) as caught:
        call = pytest.CallInfo.from_call(
            lambda: item.ihook.pytest_runtest_call(item=item),
            when="call",
            reraise=(pytest.exit.Exception, KeyboardInterrupt),
        )
    pack(report=item.ihook.pytest_runtest_makereport(item=item, call=call))
    return _Outcome(packed, [(_plain(warning.message), warning.filename, warning.lineno) for warning in caught])


def _plain(message: Warning | str) -> Warning:
    """Returns a warning that can be sent: of its kind where that is one of Python's, and without its own values."""
    kind = type(message) if isinstance(message, Warning) else UserWarning
    known: type[Warning] = next((base for base in kind.__mro__ if base.__module__ == "builtins"), UserWarning)
    return known(str(message))


def _why(report: LimitReport) -> str:
    if report.killed:
        peak, limit = format_bytes(report.peak_bytes), format_bytes(report.effective_limit_bytes)
        return f"the kernel killed this test: its peak was {peak}, its limit {limit} by {report.means}"
    return f"the process that this test ran in ended before the test had: {str(report).splitlines()[0]}"
