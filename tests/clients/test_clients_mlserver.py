"""`mlserver infer`, MLServer's batch command, against a real process. Its gRPC is announced and not there yet."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import foreign
import pytest
from host_process import HostProcess, environment
from sizes import FULL

pytestmark = pytest.mark.late

SCRIPT = "mlserver_infer.py"


@pytest.fixture(scope="module")
def report(client_host: HostProcess) -> foreign.Report:
    return foreign.run(SCRIPT, client_host.address, environment="mlserver")


@pytest.mark.parametrize("check", foreign.checks(SCRIPT))
def test_mlserver_infer(report: foreign.Report, check: str) -> None:
    report.assert_passed(check)


@pytest.mark.skipif(not FULL, reason="what the script calls, with another import of seconds; MODELHOST_TEST_FULL=1")
def test_mlserver_infer_as_a_command(client_host: HostProcess, tmp_path: Path) -> None:
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    values = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
    asked.write_text(json.dumps({"inputs": [values]}) + "\n")
    command = [str(foreign.program("mlserver", "mlserver")), "infer", "--url", client_host.address, "-m", "versions"]
    subprocess.run(
        [*command, "-i", str(asked), "-o", str(answered)],
        env=environment(),
        timeout=60,
        check=True,
        capture_output=True,
    )
    (output,) = json.loads(answered.read_text())["outputs"]
    assert (output["name"], output["data"]) == ("y", [3.0, 4.0])
