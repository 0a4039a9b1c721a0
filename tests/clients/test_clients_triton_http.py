"""tritonclient over HTTP, sync and asyncio, against a real process."""

from __future__ import annotations

import foreign
import pytest
from host_process import HostProcess

pytestmark = pytest.mark.late

SCRIPT = "tritonclient_http.py"
FUTURES = "tritonclient_http_futures.py"


@pytest.fixture(scope="module", params=["sync", "asyncio"])
def report(request: pytest.FixtureRequest, client_host: HostProcess) -> foreign.Report:
    return foreign.run(SCRIPT, request.param, client_host.address)


@pytest.fixture(scope="module")
def futures_report(client_host: HostProcess) -> foreign.Report:
    return foreign.run(FUTURES, client_host.address)


@pytest.mark.parametrize("check", foreign.checks(SCRIPT))
def test_tritonclient_http(report: foreign.Report, check: str) -> None:
    report.assert_passed(check)


@pytest.mark.parametrize("check", foreign.checks(FUTURES))
def test_tritonclient_http_futures_and_threads(futures_report: foreign.Report, check: str) -> None:
    futures_report.assert_passed(check)
