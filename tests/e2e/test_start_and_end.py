"""The end of a process while its clients are still at it."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from host_process import COMMAND, environment, running_host
from models_for_tests import add_constant, heavy, save

from benchmarks.tracebacks import first_traceback

HALF = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n" + b" " * 50


def test_a_body_that_never_comes_holds_up_the_end_only_for_so_long(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELHOST_SERVER_DRAIN_TIMEOUT="1") as host:
        address, port = host.address.split(":")
        with (
            socket.create_connection((address, int(port)), timeout=20) as sending,
            socket.create_connection((address, int(port)), timeout=20) as idle,
        ):
            sending.sendall(HALF)
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += idle.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")  # so the body's beginning has been read
            host.process.send_signal(signal.SIGTERM)
            assert idle.recv(1000) == b""
            answer = b"".join(iter(lambda: sending.recv(1000), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nconnection: close" in head
        assert json.loads(body)["code"] == "closed"
        assert host.process.wait(20) == 0
        assert first_traceback(host.log) is None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    with running_host(tmp_path, MODELHOST_SERVER_DRAIN_TIMEOUT="60") as host:
        address, port = host.address.split(":")
        with (
            socket.create_connection((address, int(port)), timeout=20) as sending,
            httpx.Client(base_url=host.url, timeout=30) as probe,
        ):
            sending.sendall(HALF)
            assert probe.get("/v2/health/ready").status_code == 200
            host.process.send_signal(signal.SIGTERM)
            until(lambda: probe.get("/v2/health/ready").status_code == 503)
            host.process.send_signal(second)
            assert host.process.wait(5) == -second


@contextmanager
def starting_host(directory: Path, models: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A host that has said where it answers, and is still loading what it was told to load first."""
    log = directory / "serve.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--models", str(models), "--port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            cwd=directory,
            env=environment(**settings),
        )
    try:
        until(lambda: "answers" in log.read_text() or process.poll() is not None)
        found = re.search(r"(http://\S+) answers", log.read_text())
        assert found is not None, log.read_text()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.01)


def is_live(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/live").status_code == 200
    except httpx.TransportError:
        return False


def test_while_it_preloads_it_lives_is_not_ready_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("a", "b", "c", "d"):
        save(heavy(100), models, name)
    with (
        starting_host(tmp_path, models, MODELHOST_MODELS_PRELOAD="a,b,c,d") as (process, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        until(lambda: is_live(client))
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
        refused = client.post("/v2/models/a/infer", content=b"{}")
        assert (refused.status_code, refused.json()["code"]) == (503, "starting")
        assert refused.headers["retry-after"] == "2"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_preload_that_fails_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    models = tmp_path / "models"
    save(add_constant(1), models, "a")
    (models / "broken").mkdir()
    (models / "broken/model.onnx").write_bytes(b"no model")
    with starting_host(tmp_path, models, MODELHOST_MODELS_PRELOAD="a,broken") as (process, _):
        assert process.wait(20) == 1
        said = (tmp_path / "serve.log").read_text()
        assert "models.preload: 'broken' could not be loaded" in said
        assert first_traceback(said) is None


def test_sighup_has_models_and_options_read_again(tmp_path: Path) -> None:
    models = tmp_path / "models"
    save(add_constant(1), models, "a")
    settings = tmp_path / "modelhost.toml"
    settings.write_text("[models]\n")
    with running_host(tmp_path, models) as host, httpx.Client(base_url=host.url, timeout=30) as client:

        def answer() -> list[float]:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [0]}
            answered = client.post("/v2/models/a/infer", json={"inputs": [tensor]})
            assert answered.status_code == 200, answered.text
            found: list[float] = answered.json()["outputs"][0]["data"]
            return found

        assert answer() == [1]
        save(add_constant(2), models, "a", "2")
        settings.write_text("[models.options.a]\nmax_batch_size = 3\nversion_policy = 'latest'\n")
        host.process.send_signal(signal.SIGHUP)
        until(lambda: answer() == [2])
        config = client.get("/v2/models/a/config").json()
        assert (config["max_batch_size"], config["version_policy"]) == (3, {"latest": {"num_versions": 1}})
        settings.write_text("[models.options.a]\nmax_batchsize = 4\n")
        host.process.send_signal(signal.SIGHUP)
        until(lambda: "the settings stay as they are" in host.log)
        assert client.get("/v2/models/a/config").json()["max_batch_size"] == 3
