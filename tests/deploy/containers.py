"""Containers as the tests run them: hardened, in 256 MB without swap, by whichever tool the machine has.

`CONTAINER_TOOL` is that tool with its own flags (`podman --cgroup-manager cgroupfs`), `CONTAINER_FLAGS` are more of
`run` (`--network host`), `CONTAINER_BUILD_FLAGS` of `build`. `CONTAINER_IMAGE` is an image of the bundled variant;
without it one is built.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from built_package import ROOT

#: As docs/deploying.md has it. Nothing that a test does wants more.
HARDENED = (
    *("--memory", "256m", "--memory-swap", "256m"),
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
)
CACHE = "/var/cache/modelhost"


@functools.cache
def tool() -> tuple[str, ...]:
    """Returns the command that runs containers; empty where there is none."""
    named = os.environ.get("CONTAINER_TOOL")
    if named is not None:
        return tuple(shlex.split(named))
    return next(((name,) for name in ("docker", "podman") if _works(name)), ())


def _works(name: str) -> bool:
    return shutil.which(name) is not None and subprocess.run([name, "info"], capture_output=True).returncode == 0


def call(*arguments: str, timeout_s: float = 600) -> str:
    """Runs the tool, which has to succeed; returns what it printed."""
    done = subprocess.run([*tool(), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def run_flags() -> list[str]:
    """Returns what `run` needs on this machine."""
    return shlex.split(os.environ.get("CONTAINER_FLAGS", ""))


def build_flags() -> list[str]:
    """Returns what `build` needs on this machine."""
    form = ["--format", "docker"] if "podman" in tool()[0] else []  # which keeps the health check
    return form + shlex.split(os.environ.get("CONTAINER_BUILD_FLAGS", ""))


@functools.cache
def image() -> str:
    """Returns the bundled image."""
    named = os.environ.get("CONTAINER_IMAGE")
    if named is None:
        named = "modelhost-under-test"
        call("build", *build_flags(), "--tag", named, str(ROOT), timeout_s=1800)
    return named


class Container:
    """A running host."""

    def __init__(self, identity: str, port: int) -> None:
        self.identity, self.port = identity, port

    def connect(self) -> http.client.HTTPConnection:
        """Returns a new connection to the host."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, path: str, document: object = None) -> Any:
        """Asks once, on a connection of its own; returns the answer, which has to be 200."""
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, path, document)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command beside the host, in its container and so in its memory group."""
        return subprocess.run(
            [*tool(), "exec", self.identity, *command], capture_output=True, text=True, timeout=120, check=False
        )

    def until(self, holds: Callable[[], bool], within_s: float = 30) -> None:
        """Waits until something holds; fails with the host's log."""
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.005)

    def answers(self) -> bool:
        """Says whether the host is ready."""
        try:
            return bool(self.ask("/v2/health/ready")["ready"])
        except (OSError, AssertionError, http.client.HTTPException):
            return False

    def state(self) -> dict[str, Any]:
        """Returns what the tool says of it."""
        return dict(json.loads(call("inspect", self.identity))[0]["State"])

    def started_at(self) -> float:
        """Returns when its process was started, in Unix seconds."""
        text = self.state()["StartedAt"].replace("Z", "+00:00")
        whole, _, rest = text.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :].replace(" ", "").removesuffix("UTC") or "+00:00"
        moment = datetime.datetime.fromisoformat(whole.replace(" ", "T") + zone[:6])
        return moment.timestamp() + float(f"0.{digits or 0}")

    def kills(self) -> int:
        """Returns how many processes of its memory group the kernel has killed for their memory."""
        said = self.run(
            "python",
            "-ISc",
            "import pathlib; g = pathlib.Path('/sys/fs/cgroup')\n"
            "f = [f for f in (g / 'memory.events', g / 'memory/memory.oom_control') if f.exists()][0]\n"
            "print(dict(l.split() for l in f.read_text().splitlines())['oom_kill'])",
        )
        assert said.returncode == 0, said.stderr
        return int(said.stdout)

    def log(self) -> str:
        """Returns what it has written."""
        done = subprocess.run([*tool(), "logs", self.identity], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def end(self) -> int:
        """Asks it to end; returns its exit status."""
        call("kill", "--signal", "TERM", self.identity)
        return int(call("wait", self.identity))


@contextlib.contextmanager
def running(*flags: str, of: str | None = None, **settings: str) -> Iterator[Container]:
    """Runs a hardened container on a free port, without waiting for it; it is gone at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"SERVER_PORT": str(port), "SECURITY_INSECURE": "true", **settings}
    variables = [part for key, value in settings.items() for part in ("--env", f"MODELHOST_{key}={value}")]
    extra = run_flags()
    if "host" not in extra:
        extra += ["--publish", f"127.0.0.1:{port}:{port}"]
    identity = call("run", "--detach", *HARDENED, *extra, *variables, *flags, of or image()).strip()
    try:
        yield Container(identity, port)
    finally:
        call("rm", "--force", "--volumes", identity)


def ask(connection: http.client.HTTPConnection, path: str, document: object = None) -> Any:
    """Asks on a connection; returns the answer, which has to be 200."""
    if document is None:
        connection.request("GET", path)
    else:
        connection.request("POST", path, json.dumps(document))
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, f"{path}: {answer.status} {body.decode()}"
    return json.loads(body)


def writable(folder: Path) -> Path:
    """Makes a folder that the image's user may write to."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return folder
