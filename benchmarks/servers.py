"""The servers that are compared: each started as a real process, asked once, and checked, before it is driven."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

from benchmarks.client import RequestFailed
from benchmarks.places import ROOT
from benchmarks.process import running_host, tail
from benchmarks.wires import V2, OneTensor, Request, Wire
from benchmarks.workloads import Workload

_START_TIMEOUT_S: Final = 90.0
_STOP_TIMEOUT_S: Final = 20.0
_ASK_TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
#: A server at rest takes less than this share of a core: Ray's and MLServer's own processes never sleep.
_REST_SHARE: Final = 0.2
_REST_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has been started."""

    url: str
    pid: int
    last_words: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Server:
    """A way to serve a workload in one form."""

    name: str
    wire: Callable[[Workload, str], Wire]
    start: Callable[[Workload, str], AbstractContextManager[Running]]


def modelhost(name: str = "modelhost", settings: Mapping[str, str] | None = None) -> Server:
    """The host, on prepared models; `settings` are MODELHOST_* variables without the prefix."""

    @contextlib.contextmanager
    def start(workload: Workload, form: str) -> Iterator[Running]:
        with running_host(workload.repository, settings=settings) as host:
            yield Running(host.url, host.pid, host.last_words)

    return Server(name, _v2, start)


def bare() -> Server:
    """One ASGI callable."""
    return Server("bare", _v2, lambda workload, form: _child("benchmarks.bare", workload))


def handwritten() -> Server:
    """Thirty lines of FastAPI."""
    return Server(
        "hand-written",
        lambda workload, form: V2() if form == "json" else OneTensor(workload.answer.shape),
        lambda workload, form: _child("benchmarks.handwritten", workload),
    )


def _v2(workload: Workload, form: str) -> Wire:
    return V2()


def _child(module: str, workload: Workload) -> AbstractContextManager[Running]:
    port = free_port()
    return running([sys.executable, "-m", module, str(workload.file), str(port)], port)


@contextlib.contextmanager
def running(command: Sequence[str], port: int, environ: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Runs a server that listens at `port`, with what it starts itself, until the scope ends.

    Raises RequestFailed, with the end of its log, where it does not listen.
    """
    with tempfile.TemporaryDirectory(prefix="modelhost-bench-") as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
                cwd=scratch,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            _wait_for_port(process, port, log)
            yield Running(f"http://127.0.0.1:{port}", process.pid, lambda: tail(log))
        finally:
            _stop(process)


def ask(url: str, request: Request, wire: Wire, workload: Workload, *, timeout_s: float = _ASK_TIMEOUT_S) -> float:
    """Asks once and compares the answer with onnxruntime's; returns how long it took.

    Raises RequestFailed where there is no answer, and WrongAnswer where it is another.
    """
    # Without certificates and proxies, as the other clients here.
    with httpx.Client(base_url=url, timeout=timeout_s, verify=False, trust_env=False) as client:
        started = time.monotonic()
        try:
            response = client.post(request.path, content=request.body, headers=dict(request.headers))
        except httpx.HTTPError as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        taken_s = time.monotonic() - started
    if response.status_code != 200:
        raise RequestFailed(f"{response.status_code}: {response.text[:500]}")
    try:
        answer = wire.answer(response.content, response.headers)
    except (ValueError, KeyError, IndexError) as error:
        raise WrongAnswer(f"{type(error).__name__}: {error}, in {response.content[:200]!r}") from error
    if not workload.is_right(answer):
        raise WrongAnswer(f"an answer of shape {answer.shape} that differs from onnxruntime's {workload.answer.shape}")
    return taken_s


class WrongAnswer(Exception):
    """A server's answer is not onnxruntime's."""


def wait_until_ready(server: Running, request: Request, wire: Wire, workload: Workload) -> float:
    """Asks until the answer is right, since some listen before they serve; returns how long the last one took.

    Raises as `ask` does, where that lasts.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            return ask(server.url, request, wire, workload)
        except RequestFailed as error:
            if time.monotonic() > deadline or not psutil.pid_exists(server.pid):
                raise RequestFailed(f"{error}\n{server.last_words()}") from error
            time.sleep(_POLL_S)


def wait_for_rest(server: Running) -> None:
    """Waits until the server is done with what wrk has left behind, a minute at most."""
    deadline = time.monotonic() + _REST_TIMEOUT_S
    before, at = cpu_s(server.pid), time.monotonic()
    while at < deadline:
        time.sleep(2 * _POLL_S)
        after, now = cpu_s(server.pid), time.monotonic()
        if (after - before) / (now - at) < _REST_SHARE:
            return
        before, at = after, now


def free_port() -> int:
    """Returns a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def cpu_s(pid: int) -> float:
    """Returns the CPU time of a process and its children so far."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = member.cpu_times()
                total += times.user + times.system
    return total


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            raise RequestFailed(f"the server ended before it listened ({process.returncode}):\n{tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise RequestFailed(f"the server did not listen within {_START_TIMEOUT_S:.0f} s:\n{tail(log)}")
        time.sleep(_POLL_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server with all that it started, first politely."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for member in family:
        with contextlib.suppress(psutil.Error):  # it knows one from another that has got its number
            member.kill()
