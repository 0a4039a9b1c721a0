"""A real cluster: only at full size, since it takes Ray, which has an environment of its own, and a minute to start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import MODELS
from sizes import FULL

ROOT = MODELS.parent
RAY = Path(os.environ.get("MODELHOST_TEST_RAY", ROOT / ".venv-ray")) / "bin"

pytestmark = [
    pytest.mark.full,
    pytest.mark.serial,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not FULL, reason="a cluster of Ray takes a minute to start: `make test-full` does"),
    pytest.mark.skipif(not (RAY / "serve").exists(), reason="no environment with Ray: `make .venv-ray/.made`"),
]

WINE = {"inputs": [{"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": [13.0] * 13}]}


CONFIG = """
proxy_location: HeadOnly
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
- name: modelhost
  route_prefix: /
  import_path: modelhost.cluster.ray:build
  args: {{config: {folder}/modelhost.toml, replicas: 2, memory: 500MB, cpus: 0.5}}
"""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELHOST_", "PYTHONDONT"))}
    return kept | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `serve run` serves of its configuration file, in a cluster of one node."""
    folder = tmp_path_factory.mktemp("ray")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (folder / "modelhost.toml").write_text(f'[models]\ndirectory = "{MODELS}"\n')
    (folder / "serve.yaml").write_text(CONFIG.format(port=port, folder=folder))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [RAY / "serve", "run", "serve.yaml"],
            cwd=folder,
            env=environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        found, until = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not is_up(found):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < until, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield found
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_up(url: str) -> bool:
    try:
        return len(ask(url, "/monitor")["host"]["workers"]) == 2
    except (OSError, ValueError, KeyError):
        return False


def ask(url: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url + path, data), timeout=60) as answer:
        return json.load(answer)


def test_serve_run_serves_v2_and_a_replica_that_is_killed_loses_no_request(url: str) -> None:
    right = ask(url, "/v2/models/wine/infer", WINE)["outputs"]
    assert [one["name"] for one in right] == ["label", "probabilities"]
    workers = ask(url, "/monitor")["host"]["workers"]
    (holder,) = [one for one in workers if one["models"]]
    os.kill(holder["pid"], signal.SIGKILL)
    for _ in range(50):
        assert ask(url, "/v2/models/wine/infer", WINE)["outputs"] == right
    (other,) = {one["replica"] for one in ask(url, "/memory")["models"] if one["name"] == "wine"}
    assert other != holder["worker"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(url, "/v2/models/nobody/infer", WINE)
    assert json.load(refused.value)["code"] == "model_not_found"
    refused.value.close()


def test_a_node_that_is_killed_under_load_loses_no_request(tmp_path: Path) -> None:
    command = [RAY / "python", "-m", "benchmarks", "cluster", "--contender", "modelhost", "--cache", tmp_path]
    sizes = ["--models", "12", "--size", "1", "--seconds", "10", "--warm", "5", "--clients", "2"]
    ended = subprocess.run(
        [*map(str, command), *sizes], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    before, after = (json.loads(line) for line in ended.stdout.splitlines()[:2])
    assert before["wrong"] == before["failed"] == after["wrong"] == after["failed"] == 0
    assert before["held"] == 12
