"""The measured host: the real server process, in a memory cgroup where one can be made, with a meter on it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from benchmarks.client import Client, RequestFailed
from benchmarks.places import ROOT
from modelhost.testing import cgroup
from modelhost.testing.cgroup import CgroupFigures, MemoryCgroup

_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.002
#: Short against a load (some 100 ms), long against a reading (some 50 microseconds).
_METER_INTERVAL_S: Final = 0.005

_SETTINGS: Final = {"PREPARE_ON_LOAD": "false"}

#: What the command `modelhost` does, without asking where it is installed.
SERVE: Final = [sys.executable, "-c", "from modelhost.cli.main import main; main()", "serve"]


class Target(Protocol):
    """A host that is measured, wherever it runs."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended, as far as can be seen."""

    def usage_bytes(self) -> int:
        """Reads the usage, on the scale of the host's thresholds."""

    def group_figures(self) -> CgroupFigures | None:
        """Reads the cgroup's figures; None where it is not ours to read."""

    def last_words(self) -> str:
        """The end of its log, where it is at hand."""


@dataclass(frozen=True, slots=True)
class RunningHost:
    """A host that somebody else started, in a container for example: it is asked for its own figures."""

    url: str

    @property
    def is_alive(self) -> bool:
        """Whether it answers."""
        try:
            self.usage_bytes()
        except RequestFailed:
            return False
        return True

    def usage_bytes(self) -> int:
        """Asks the host."""
        with Client(self.url) as client:
            return int(client.memory()["usage_bytes"])

    def group_figures(self) -> None:
        """Not ours to read."""

    def last_words(self) -> str:
        """Not at hand."""
        return f"{self.url} does not answer"


@dataclass(slots=True)
class HostProcess:
    """A host that was started here."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    group: MemoryCgroup | None
    announced_s: float
    """From the start of the process to its word that it listens."""
    ready_s: float
    """From the start of the process to the first 200 of `/v2/health/ready`."""

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def usage_bytes(self) -> int:
        """Reads the usage from the kernel, from outside of the process."""
        if self.group is not None:
            return self.group.read().usage_bytes
        return _anonymous_bytes(self.pid)

    def group_figures(self) -> CgroupFigures | None:
        """Reads the cgroup's figures; None where the limit is only a setting."""
        return self.group.read() if self.group is not None else None

    def last_words(self) -> str:
        """The end of its log."""
        return tail(self.log)


class Meter:
    """A thread that reads the usage every few milliseconds, for the scope of the context, and keeps its peak."""

    def __init__(self, host: Target) -> None:
        self._host = host
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.readings = 0

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_METER_INTERVAL_S):
            with contextlib.suppress(OSError, RequestFailed):  # it is gone; whoever drives it will notice
                self.peak_bytes = max(self.peak_bytes, self._host.usage_bytes())
                self.readings += 1


@contextlib.contextmanager
def running_host(
    models: Path,
    *,
    limit_bytes: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[HostProcess]:
    """Runs `modelhost serve` on `models` until the scope ends.

    With `limit_bytes` it runs in a memory cgroup of that size, or with `memory.limit` where none can
    be made. `settings` are MODELHOST_* variables without the prefix; the caller's own are left out.
    Nothing is prepared on the side unless they say so: what is prepared decides what is measured.
    Raises RequestFailed, with the end of the log, where the host does not come up.
    """
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MODELHOST_")}
    environ |= {f"MODELHOST_{key}": value for key, value in {**_SETTINGS, **(settings or {})}.items()}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelhost-bench-")))
        command, group = [*SERVE, "--models", str(models), "--port", "0"], None
        if limit_bytes is not None and cgroup.available() is None:
            group = stack.enter_context(MemoryCgroup(limit_bytes))
            command = group.command(command)
        elif limit_bytes is not None:
            command += ["--memory-limit", str(limit_bytes)]
        said, log = scratch / "host.out", scratch / "host.log"
        # The working directory decides which modelhost.toml is read: an empty one has none.
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))
        started = time.monotonic()
        with said.open("wb") as out, log.open("wb") as err:
            process = subprocess.Popen(command, env=environ, cwd=scratch, stdout=out, stderr=err)
        stack.callback(_stop, process)
        url = _wait_for_url(process, said, log)
        announced_s = time.monotonic() - started
        with Client(url) as client:
            client.wait_for("/v2/health/ready", timeout_s=_START_TIMEOUT_S)
        yield HostProcess(process, url, log, group, announced_s, time.monotonic() - started)


def _wait_for_url(process: subprocess.Popen[bytes], said: Path, log: Path) -> str:
    """Reads what the host says until it says where it listens."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        has_ended = process.poll() is not None
        for line in said.read_text().splitlines(keepends=True):
            if " listens on " in line and line.endswith("\n"):
                return line.split(" listens on ")[1].split()[0]
        if has_ended:
            raise RequestFailed(f"the host ended before it was ready ({process.returncode}):\n{tail(log)}")
        if time.monotonic() > deadline:
            raise RequestFailed(f"the host did not come up in {_START_TIMEOUT_S} s:\n{tail(log)}")
        time.sleep(_POLL_S)


def tail(log: Path, lines: int = 15) -> str:
    """Returns the end of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _anonymous_bytes(pid: int) -> int:
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
