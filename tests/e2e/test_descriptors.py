"""A process whose descriptors are used up: it goes on, and gets over it."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from host_process import HostProcess, running_host

MODELS = Path(__file__).parents[2] / "models"

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process: Linux only"),
]


def connect(host: HostProcess) -> socket.socket:
    name, _, port = host.address.rpartition(":")
    return socket.create_connection((name, int(port)), timeout=10)


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def ask(client: httpx.Client) -> int:
    request = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": [1] * 13}]}
    return client.post("/v2/models/wine/infer", content=json.dumps(request)).status_code


def test_there_are_as_many_connections_as_descriptors_allow(tmp_path: Path) -> None:
    low = ("/bin/sh", "-c", 'ulimit -n 200; exec "$@"', "sh")
    with (
        running_host(tmp_path, through=low, MODELHOST_SERVER_MAX_CONNECTIONS="1000") as host,
        httpx.Client(base_url=host.url, timeout=30) as client,
        ExitStack() as stack,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        assert "connections at most, not 1000 (server.max_connections)" in host.log
        refused = 0
        for _ in range(120):
            connection = stack.enter_context(connect(host))
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            refused += connection.recv(1000).startswith(b"HTTP/1.1 503")
        assert 120 > refused > 120 - 72
        assert client.get("/v2/models/digits").status_code == 200  # files are opened still
        assert client.post("/v2/repository/models/digits/load").status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_a_process_without_descriptors_serves_who_is_there_and_recovers(tmp_path: Path) -> None:
    with running_host(tmp_path) as host, httpx.Client(base_url=host.url, timeout=30) as client:
        assert client.post("/v2/repository/models/digits/load").status_code == 200
        pid = host.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), limits[1]))
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(connect(host))
            before, began = cpu_s(pid), time.monotonic()
            while time.monotonic() < began + 0.5:
                assert client.get("/v2/models/digits/ready").status_code == 200
                time.sleep(0.02)
            assert cpu_s(pid) - before < 0.35, "the loop spins"
            assert ask(client) == 503, "nothing is wrong with the model"
            assert client.post("/v2/models/digits/infer", content=b"{}").status_code == 400  # which is loaded
            assert "descriptors_used_up" in client.get("/v2/health/ready").json()["conditions"]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        with httpx.Client(base_url=host.url, timeout=30) as another:
            assert another.get("/v2/health/ready").status_code == 200
            assert ask(another) == 200


def test_onnx_runtime_without_a_descriptor_says_so(tmp_path: Path) -> None:
    file = MODELS / "iris_petals" / "1" / "model.onnx"
    code = f"""
import os, resource
from pathlib import Path
from modelhost.runtime.base import CancelToken, Inspection, LoadPlan, NoDescriptor
from modelhost.runtime.ort import OrtRuntime
runtime = OrtRuntime(activation_ceiling_bytes=1 << 26)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
try:
    runtime.load(Path({str(file)!r}), LoadPlan(1, 1), Inspection({{}}, {{}}, None, ()), CancelToken())
except NoDescriptor as error:
    print("told:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.startswith("told: Load model from")
