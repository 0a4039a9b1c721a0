"""The KServe Python SDK over REST, against a real process."""

from __future__ import annotations

import foreign
import pytest
from host_process import HostProcess

pytestmark = pytest.mark.late


V2 = "kserve_rest.py"
V1 = "kserve_rest_v1.py"


@pytest.fixture(scope="module")
def v2_report(client_host: HostProcess) -> foreign.Report:
    return foreign.run(V2, client_host.address)


@pytest.fixture(scope="module")
def v1_report(client_host: HostProcess) -> foreign.Report:
    return foreign.run(V1, client_host.address)


@pytest.mark.parametrize("check", foreign.checks(V2))
def test_kserve_rest_with_v2(v2_report: foreign.Report, check: str) -> None:
    v2_report.assert_passed(check)


@pytest.mark.parametrize("check", foreign.checks(V1))
def test_kserve_rest_with_v1(v1_report: foreign.Report, check: str) -> None:
    v1_report.assert_passed(check)
