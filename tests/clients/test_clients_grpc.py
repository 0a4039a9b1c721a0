"""tritonclient and the KServe SDK over gRPC, against a real process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import foreign
import pytest
from host_process import running_host

from benchmarks.tracebacks import first_traceback

pytestmark = pytest.mark.late

TRITON = "tritonclient_grpc.py"
STREAMS = "tritonclient_grpc_streams.py"
KSERVE = "kserve_grpc.py"


@pytest.fixture(scope="module")
def grpc_address(client_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a host listens for gRPC, as its banner says."""
    flags = ("--memory-limit", "400MB", "--grpc-port", "0")
    with running_host(tmp_path_factory.mktemp("host"), client_models, *flags) as running:
        (address,) = re.findall(r"^ *gRPC: +(\S+)$", "\n".join(running.banner), re.MULTILINE)
        yield address
        assert first_traceback(running.log) is None


@pytest.fixture(scope="module", params=["sync", "asyncio"])
def triton_report(request: pytest.FixtureRequest, grpc_address: str) -> foreign.Report:
    return foreign.run(TRITON, request.param, grpc_address)


@pytest.fixture(scope="module")
def streams_report(grpc_address: str) -> foreign.Report:
    return foreign.run(STREAMS, grpc_address)


@pytest.fixture(scope="module")
def kserve_report(grpc_address: str) -> foreign.Report:
    return foreign.run(KSERVE, grpc_address)


@pytest.mark.parametrize("check", foreign.checks(TRITON))
def test_tritonclient_grpc(triton_report: foreign.Report, check: str) -> None:
    triton_report.assert_passed(check)


@pytest.mark.parametrize("check", foreign.checks(STREAMS))
def test_tritonclient_grpc_streams_and_futures(streams_report: foreign.Report, check: str) -> None:
    streams_report.assert_passed(check)


@pytest.mark.parametrize("check", foreign.checks(KSERVE))
def test_kserve_grpc(kserve_report: foreign.Report, check: str) -> None:
    kserve_report.assert_passed(check)
