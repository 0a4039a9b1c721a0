"""The process itself: its start, its banner, its end, and what it says when it cannot start."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import models_for_tests as build
import numpy as np
import pytest
from host_process import COMMAND, MODELS, HostProcess, environment, running_host

from benchmarks.client import binary_request
from benchmarks.tracebacks import first_traceback


def post(url: str, body: object) -> tuple[int, dict]:
    request = urllib.request.Request(url, data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def run_serve(directory: Path, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "serve", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=directory,
        env=environment(**settings),
        check=False,
    )


# --- the banner ------------------------------------------------------------------------------------------


def test_the_banner_says_where_it_listens_and_the_limit_it_found(host_process: HostProcess) -> None:
    text = "\n".join(host_process.banner)
    assert "models:  3 in " in text
    assert "limit 400.0 MB (setting)" in text
    assert "critical" in text


def test_the_thread_that_answers_goes_first_and_those_that_load_and_scan_go_last(host_process: HostProcess) -> None:
    def wanted_ns(process: object) -> dict[int, int]:
        """What each thread of a process wants of a core at a time."""
        files = Path(f"/proc/{process}/task").glob("*/sched")
        found = {int(file.parent.name): re.search(r"^se\.slice +: +(\d+)", file.read_text(), re.M) for file in files}
        return {thread: int(match[1]) for thread, match in found.items() if match is not None}

    threads, usual_ns = wanted_ns(host_process.process.pid), next(iter(wanted_ns("self").values()), None)
    if not threads or set(threads.values()) == {usual_ns}:
        pytest.skip("this kernel does not tell of slices, or has one for all")
    assert usual_ns is not None
    assert threads[host_process.process.pid] < usual_ns
    assert sum(wanted > usual_ns for wanted in threads.values()) == 3  # loads, scans, and the wait for a child


def test_the_curl_line_of_the_banner_works_when_pasted(host_process: HostProcess) -> None:
    (line,) = [line.strip() for line in host_process.banner if line.strip().startswith("curl ")]
    answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    body = json.loads(answer.stdout)
    assert shlex.split(line)[2].endswith(f"/v2/models/{body['model_name']}/infer")
    assert body["outputs"]


# --- the end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_host_once_requests_in_flight_are_answered(tmp_path: Path, number: signal.Signals) -> None:
    models = tmp_path / "models"
    build.save(build.heavy(8, layers=2), models, "slow")
    with running_host(tmp_path, models, "--memory-limit", "1GB") as host, ThreadPoolExecutor(1) as threads:
        side = json.load(urllib.request.urlopen(f"{host.url}/v2/models/slow"))["inputs"][0]["shape"][1]
        rows = 2_000_000 // side
        body, headers = binary_request(np.zeros((rows, side), np.float32))
        request = urllib.request.Request(f"{host.url}/v2/models/slow/infer", data=body, headers=headers)

        def ask() -> int:
            with urllib.request.urlopen(request, timeout=30) as response:
                response.read()
                return response.status

        answer = threads.submit(ask)
        until = time.monotonic() + 20
        while not answer.done() and time.monotonic() < until:
            with urllib.request.urlopen(f"{host.url}/memory") as response:
                if json.load(response)["runs_in_flight"]:
                    break
        host.process.send_signal(number)
        assert answer.result(30) == 200
        assert host.process.wait(20) in (0, 1, -number)  # 1: click's answer to Ctrl-C
        assert first_traceback(host.log) is None


def test_a_second_host_can_take_the_port_right_after_the_first_has_ended(tmp_path: Path) -> None:
    with running_host(tmp_path) as host:
        port = host.url.rsplit(":", 1)[1]
        assert host.stop() in (0, -signal.SIGTERM)
    with running_host(tmp_path, MODELS, "--port", port) as host:
        assert host.url.endswith(f":{port}")


# --- starts that cannot be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "settings", "words"),
    [
        (["--models", "nowhere"], {}, "the model directory 'nowhere' does not exist"),
        (["--models", "file.txt"], {}, ""),
        (["--config", "nowhere.toml"], {}, "cannot read the settings file nowhere.toml"),
        (["--config", "broken.toml"], {}, "broken.toml is not TOML"),
        (["--config", "misspelt.toml"], {}, "unknown key 'memory.critcal'; did you mean 'memory.critical'?"),
        ([], {"MODELHOST_MEMORY_LIMITS": "1GB"}, "MODELHOST_MEMORY_LIMITS; did you mean MODELHOST_MEMORY_LIMIT?"),
        ([], {"MODELHOST_SERVER_PORT": "many"}, "MODELHOST_SERVER_PORT"),
        (["--memory-limit", "much"], {}, '"256MB"'),
        (["--memory-limit", "10MB"], {}, "leaves nothing for models"),
        ([], {"MODELHOST_MEMORY_WARNING": "90%", "MODELHOST_MEMORY_CRITICAL": "80%"}, "memory.critical"),
        ([], {"MODELHOST_MODELS_PRELOAD": "nothing"}, "models.preload: 'nothing' could not be loaded"),
        (["--host", "nowhere.invalid", "--insecure"], {}, "cannot listen on nowhere.invalid:"),
    ],
)
def test_an_impossible_start_is_one_line_and_no_traceback(
    modelhost_command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    flags: list[str],
    settings: dict[str, str],
    words: str,
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "file.txt").touch()
    (tmp_path / "broken.toml").write_text("[memory\n")
    (tmp_path / "misspelt.toml").write_text('[memory]\ncritcal = "80%"\n')
    port = [] if "MODELHOST_SERVER_PORT" in settings else ["--port", "0"]
    ended = modelhost_command(tmp_path, "serve", *port, *flags, **settings)
    assert ended.returncode in ((1, 2) if "file.txt" in flags else (1,)), ended.stderr
    assert words in ended.stderr
    assert first_traceback(ended.stderr) is None
    said = [line for line in ended.stderr.strip().splitlines() if " answers; it is ready when " not in line]
    assert len(said) <= (4 if "file.txt" in flags else 1), ended.stderr
    assert ended.stdout == ""


def test_a_port_in_use_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_serve(tmp_path, "--models", str(MODELS), "--port", str(port))
    assert ended.returncode == 1
    assert (
        ended.stderr == f"modelhost: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another with --port\n"
    )


def test_an_optional_preload_that_fails_does_not_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "modelhost.toml").write_text(
        '[models]\npreload = ["digits", {name = "nothing", optional = true}]\npinned = ["digits"]\n'
    )
    with running_host(tmp_path) as host:
        with urllib.request.urlopen(f"{host.url}/memory") as response:
            (model,) = json.load(response)["models"]
        assert (model["name"], model["state"], model["pinned"]) == ("digits", "ready", True)
        assert "optional preload 'nothing' could not be loaded" in host.log


# --- memory of runs ------------------------------------------------------------------------------------------


def test_a_run_over_the_activation_ceiling_is_413_and_smaller_ones_go_on(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELS, "--memory-limit", "400MB", MODELHOST_MEMORY_ACTIVATION_CEILING="2MB") as host:

        def request(rows: int) -> dict:
            return {
                "inputs": [{"name": "image", "datatype": "FP32", "shape": [rows, 1, 8, 8], "data": [0] * (64 * rows)}],
                "outputs": [{"name": "logits"}],
            }

        status, body = post(f"{host.url}/v2/models/digits/infer", request(1500))
        assert (status, body["code"]) == (413, "run_too_large")
        assert body["needed_bytes"] > 2 << 20
        assert "memory.activation_ceiling is 2.0 MB; " in body["error"]
        assert post(f"{host.url}/v2/models/digits/infer", request(10))[0] == 200
