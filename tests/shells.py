"""A shell as a reader has one: in a folder, with what is installed, and a host that listens."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from host_process import environment
from snippets import ADDRESS, ROOT, Block, Command, commands, is_as_shown

#: Not here: environments are made by the tests that need one of their own.
INSTALLS: Final = re.compile(r"(\S*pip|apt-get) (install|update)|python3? -m (pip|venv)|\. \.venv/")
#: Commands after which the rest of a shell is another.
_STATE: Final = re.compile(r"(cd|export|\.|source) |\w+=\S*$")
_HOST: Final = re.compile(r"(\w+=\S+ )*(modelhost serve|make serve)\b")
_LISTENS: Final = re.compile(r"modelhost listens on http://(\S+)")


class Shell:
    """Runs commands in a folder, one after another. A host that a command starts runs until `close`."""

    def __init__(self, folder: Path, *, address: str | None = None, variables: Mapping[str, str] | None = None) -> None:
        self.folder, self.address = folder, address
        given = dict(variables or {})
        path = given.pop("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        self._environment = environment(MODELHOST_SERVER_PORT="0", PATH=f"{_commands_folder(folder)}:{path}", **given)
        self._state: list[str] = []
        self._hosts: list[subprocess.Popen[str]] = []

    def run(self, block: Block, *, skip: re.Pattern[str] | None = INSTALLS) -> None:
        """Runs a block, whatever its language. Raises AssertionError where it fails, or prints what is not shown."""
        if block.title:
            (self.folder / block.title).write_text(self._here(block.text))
        elif block.language == "python":
            printed = self._python(block)
            assert block.printed is None or is_as_shown(printed, block.printed), f"{block.name} printed:\n{printed}"
        elif block.language in ("sh", "console"):
            for command in commands(block):
                if skip is None or skip.match(command.text) is None:
                    self._command(command, block)

    def close(self) -> None:
        """Ends the hosts that were started."""
        for host in self._hosts:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGTERM)
        for host in self._hosts:
            host.wait(30)
            if host.stdout is not None:
                host.stdout.close()

    def _here(self, text: str) -> str:
        return text if self.address is None else text.replace(ADDRESS, self.address)

    def _python(self, block: Block) -> str:
        script = "\n".join([*self._state, f"exec python -W error -c {shlex.quote(self._here(block.text))}"])
        ended = subprocess.run(
            ["sh", "-eu", "-c", script],
            cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stderr) == (0, ""), f"{block.name}: {ended.stderr}"
        return ended.stdout

    def _command(self, command: Command, block: Block) -> None:
        text = command.text
        if _STATE.match(text):
            self._state.append(text)
            return
        if _HOST.match(text):
            self._serve(text, block)
            return
        ended = subprocess.run(
            ["sh", "-eu", "-c", self._script(text)],
            cwd=self.folder, env=self._with_host(), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{block.name}: {text}\n{ended.stdout}{ended.stderr}"
        if command.shown is not None:
            assert is_as_shown(ended.stdout, command.shown), f"{block.name}: {text}\nprinted:\n{ended.stdout}"

    def _script(self, text: str) -> str:
        return "\n".join([*self._state, self._here(text)])

    def _with_host(self) -> dict[str, str]:
        return self._environment | ({} if self.address is None else {"MODELHOST_URL": f"http://{self.address}"})

    def _serve(self, text: str, block: Block) -> None:
        host = subprocess.Popen(  # in a session of its own, so that all of it ends: shell, make, host
            ["sh", "-eu", "-c", "\n".join([*self._state, text])],
            cwd=ROOT if text.startswith("make") else self.folder, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._hosts.append(host)
        assert host.stdout is not None
        printed = ""
        for line in host.stdout:
            printed += line
            if match := _LISTENS.search(line):
                self.address = match[1]
            if "curl" in line:
                break
        else:
            raise AssertionError(f"{block.name}: {text}\nthe host ended:\n{printed}")
        if block.printed is not None:
            assert _is_banner(printed[printed.index("modelhost listens") :], self._here(block.printed)), printed


def _is_banner(found: str, shown: str) -> bool:
    """Says whether a host says what is shown, on a machine with other figures."""
    parts = re.split(r"\.\.\.|[\d.]+ MB|\([^)]*\)", shown.strip())
    return re.fullmatch(".*".join(map(re.escape, parts)), found.strip()) is not None


def _commands_folder(folder: Path) -> Path:
    """Returns a folder with a `curl` that fails where an answer is an error."""
    found = folder / ".commands"
    if not found.exists():
        found.mkdir()
        curl = found / "curl"
        curl.write_text(f'#!/bin/sh\nexec {shutil.which("curl")} --fail-with-body "$@"\n')
        curl.chmod(0o755)
    return found
