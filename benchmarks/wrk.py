"""The load: `wrk` posts one prepared body over some connections, as fast as answers come."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.client import RequestFailed
from benchmarks.wires import Request

#: wrk builds the request once and writes the same bytes again; `done` says what it saw, in one line.
_SCRIPT: Final = """\
wrk.method = "POST"
wrk.headers = %(headers)s
local file = io.open(%(body)s, "rb")
wrk.body = file:read("*a")
file:close()
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    '{"requests": %%d, "duration_us": %%d, "p50_us": %%d, "p99_us": %%d, "max_us": %%d, '
    .. '"connect": %%d, "read": %%d, "write": %%d, "status": %%d, "timeout": %%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""
_ERRORS: Final = ("connect", "read", "write", "status", "timeout")
#: Longer than any answer takes here: what is late is slow, not wrong.
_TIMEOUT_S: Final = 120


@dataclass(frozen=True, slots=True)
class Drive:
    """What one run of wrk saw; times are of whole requests, as the client sees them."""

    requests: int
    duration_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    errors: dict[str, int] = field(default_factory=dict)
    """By kind, those that there were; `status` is an answer of 400 and more."""
    cpu_s: float | None = None
    """What the server's processes took of all cores meanwhile; None where nobody looked."""

    @property
    def cpu_us(self) -> float | None:
        """The same for each request, in microseconds."""
        return None if self.cpu_s is None or not self.requests else self.cpu_s / self.requests * 1e6

    @property
    def requests_per_second(self) -> float:
        """Answers in a second, wrong ones too."""
        return self.requests / self.duration_s if self.duration_s else 0.0


def find() -> str:
    """Returns where wrk is. Raises RequestFailed that says how to get it."""
    found = shutil.which("wrk")
    if found is None:
        raise RequestFailed(
            "the benchmark is driven by wrk, which is not installed: `apt-get install wrk` (Debian, Ubuntu), "
            "`brew install wrk` (macOS), or https://github.com/wg/wrk"
        )
    return found


def write_script(directory: Path, request: Request, *, pause_ms: int = 0) -> Path:
    """Writes the request as a script for wrk, which pauses between two on a connection; returns the script."""
    script, body = directory / "request.lua", directory / "request.body"
    body.write_bytes(request.body)
    # A string in JSON is one in Lua as well, as long as it is ASCII without slashes escaped.
    headers = "{" + ", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in request.headers.items()) + "}"
    pause = f"function delay() return {pause_ms} end\n" if pause_ms else ""
    script.write_text(_SCRIPT % {"headers": headers, "body": json.dumps(str(body))} + pause)
    return script


def drive(url: str, script: Path, *, connections: int, seconds: float) -> Drive:
    """Asks for `seconds`, whole ones for wrk. Raises RequestFailed where wrk fails."""
    command = [find(), "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    command += ["--timeout", f"{_TIMEOUT_S}s", "--script", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RequestFailed(f"wrk ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return parse(done.stdout)


def parse(said: str) -> Drive:
    """Reads what the script's `done` prints. Raises RequestFailed where there is none of it."""
    line = next((line for line in reversed(said.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise RequestFailed(f"wrk said nothing of what it did: {said[-500:]}")
    figures = json.loads(line)
    return Drive(
        requests=figures["requests"],
        duration_s=figures["duration_us"] / 1e6,
        p50_ms=figures["p50_us"] / 1e3,
        p99_ms=figures["p99_us"] / 1e3,
        max_ms=figures["max_us"] / 1e3,
        errors={kind: figures[kind] for kind in _ERRORS if figures[kind]},
    )
