"""A real `modelhost serve` in a process of its own, for end-to-end tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-c", "from modelhost.cli.main import main; main()")
MODELS = Path(__file__).parents[1] / "models"
_LISTENS = re.compile(r"modelhost listens on (http://\S+)")


class HostProcess:
    """A host that listens; `banner` is what it printed until then."""

    def __init__(self, process: subprocess.Popen[str], banner: list[str], errors: Path) -> None:
        self.process, self.banner, self._errors = process, banner, errors
        match = _LISTENS.match(banner[0])
        assert match is not None
        self.url = match[1]

    @property
    def address(self) -> str:
        """`host:port`, which tritonclient takes."""
        return self.url.removeprefix("http://")

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_text()

    def stop(self, timeout_s: float = 20) -> int:
        """Asks it to end, as a process manager would; returns its exit status."""
        self.process.terminate()
        return self.process.wait(timeout_s)


def environment(**settings: str) -> dict[str, str]:
    """The test's environment without a host's own variables, and `settings`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MODELHOST_")}
    return inherited | settings


@contextmanager
def running_host(
    directory: Path,
    models: Path = MODELS,
    *flags: str,
    through: Sequence[str] = (),
    command: Sequence[str] | None = None,
    **settings: str,
) -> Iterator[HostProcess]:
    """Runs a host on a free port until the scope is left; `directory` gets its log. `through` is a command that
    becomes the one behind it."""
    errors = directory / "serve.log"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [*through, *(command or COMMAND), "serve", "--models", str(models), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            cwd=directory,
            env=environment(**settings),
        )
    assert process.stdout is not None
    try:
        banner: list[str] = []
        for line in process.stdout:
            banner.append(line.rstrip("\n"))
            if "curl" in line:
                break
        assert banner, f"the host did not start: {errors.read_text()}"
        yield HostProcess(process, banner, errors)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(20)
        process.stdout.close()
