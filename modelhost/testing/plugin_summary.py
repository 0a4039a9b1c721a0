"""The summary of the tests that took most memory."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from modelhost.testing.running import read_status
from modelhost.testing.snapshot import reset_peak
from modelhost.units import format_bytes

#: Name of an attribute of reports, which pytest-xdist brings from its workers.
_FIGURES: Final = "modelhost_memory"
_NOISE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class _Line:
    peak_bytes: int
    stays_bytes: int
    when: str
    nodeid: str


class Summary:
    """Measures each phase of each test in the process that runs it, and prints the `count` hungriest at the end."""

    def __init__(self, config: pytest.Config, count: int) -> None:
        self._config, self._count = config, count
        self._lines: list[_Line] = []
        self._figures: tuple[int, int] | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None]:
        """Measures the setup."""
        return (yield from self._measured())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None]:
        """Measures the call."""
        return (yield from self._measured())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None]:
        """Measures the teardown."""
        return (yield from self._measured())

    def _measured(self) -> Generator[None]:
        with contextlib.suppress(OSError):  # a sandbox without it: then the peak is that of all tests so far
            reset_peak()
        rss_bytes, committed_bytes = read_status("VmRSS"), read_status("RssAnon")
        try:
            return (yield)
        finally:
            stays_bytes = read_status("RssAnon") - committed_bytes
            self._figures = (max(0, read_status("VmHWM") - rss_bytes), stays_bytes)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Any:
        """Puts the figures on the report."""
        report = yield
        if self._figures is not None:
            setattr(report, _FIGURES, self._figures)
            self._figures = None
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the figures; with pytest-xdist in the process that prints."""
        figures = getattr(report, _FIGURES, None)
        if figures is not None:
            self._lines.append(_Line(figures[0], figures[1], report.when, report.nodeid))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Prints the table."""
        lines = sorted(self._lines, key=lambda line: -line.peak_bytes)[: self._count]
        terminalreporter.section("hungriest tests")
        for line in lines:
            if line.peak_bytes >= _NOISE_BYTES:
                peak, stays = format_bytes(line.peak_bytes), format_bytes(line.stays_bytes)
                terminalreporter.write_line(f"{peak:>10} peak {stays:>10} stays  {line.when:<8} {line.nodeid}")
        if not any(line.peak_bytes >= _NOISE_BYTES for line in lines):
            terminalreporter.write_line(f"none took more than {format_bytes(_NOISE_BYTES)}")


def tell_peak(report: pytest.TestReport, peak_bytes: int) -> None:
    """Corrects the figure of a test that was killed where it ran, of which nothing else is known."""
    if hasattr(report, _FIGURES):
        setattr(report, _FIGURES, (peak_bytes, 0))
