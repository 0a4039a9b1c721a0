"""Which other servers there are, their environments, and how each is started."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.client import RequestFailed
from benchmarks.places import default_cache
from benchmarks.servers import Running, Server, free_port, running
from benchmarks.wires import V2, OneTensor, Wire
from benchmarks.workloads import Workload

_FOLDER: Final = "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """One of them."""

    name: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    """After the path of its environment's programs; `{port}` is where to listen."""
    path: str = "/predict"
    is_v2: bool = False
    forms: tuple[str, ...] = ("json", "binary")

    def wire(self, workload: Workload, form: str) -> Wire:
        """Returns how it is asked: in V2 where it speaks that, else one tensor both ways."""
        return V2() if self.is_v2 else OneTensor(workload.answer.shape, self.path)


def _python(name: str) -> tuple[str, ...]:
    return ("python", "-m", f"benchmarks.peers.{name}")


_BENTOML: Final = ("bentoml", "serve", "benchmarks.peers.bentoml:service", "--host", "127.0.0.1", "--port", "{port}")

PEERS: Final[dict[str, Peer]] = {
    peer.name: peer
    for peer in (
        Peer("mlserver", ("mlserver>=1.7",), _python("mlserver"), is_v2=True, forms=("json",)),
        Peer("litserve", ("litserve>=0.2.17",), _python("litserve")),
        Peer("bentoml", ("bentoml>=1.4",), _BENTOML),
        Peer("mosec", ("mosec>=0.9",), _python("mosec"), path="/inference"),
        Peer("ray", ("ray[serve]>=2.40",), _python("ray")),
    )
}


def environment(name: str, cache: Path | None = None) -> Path:
    """Returns where a server's virtual environment is, or would be."""
    return (cache or default_cache()) / _FOLDER / name


def is_installed(name: str, cache: Path | None = None) -> bool:
    """Says whether its environment is complete."""
    return (environment(name, cache) / "complete").exists()


def install(name: str, *, python: str | None, cache: Path | None = None, progress: Callable[[str], None]) -> None:
    """Makes a server's environment, of this Python or another, from the package index that pip is set to.

    Raises RequestFailed, with the end of what pip said, where that does not work.
    """
    peer, directory = PEERS[name], environment(name, cache)
    progress(f"{name}: {', '.join(peer.requirements)} into {directory}")
    shutil.rmtree(directory, ignore_errors=True)
    commands = [
        [python or sys.executable, "-m", "venv", str(directory)],
        [str(directory / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"],
    ]
    commands[1] += [*peer.requirements, "onnxruntime>=1.29", "numpy>=2.0"]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RequestFailed(f"{name} cannot be installed:\n{(done.stderr or done.stdout)[-1500:]}")
    (directory / "complete").touch()


def choose(text: str | None, cache: Path | None = None) -> list[str]:
    """Returns the names that `text` means: `all`, `none`, some with commas; None: those that are installed.

    Raises ValueError on an unknown one.
    """
    if text is None:
        return [name for name in PEERS if is_installed(name, cache)]
    if text in ("all", "none"):
        return list(PEERS) if text == "all" else []
    names = text.split(",")
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"no server '{unknown[0]}' to compare with; there are {', '.join(PEERS)}")
    return names


def servers(names: Sequence[str], *, cache: Path | None = None) -> list[Server]:
    """Returns these, to be started; one that is not installed says so when it is."""
    return [_server(PEERS[name], cache) for name in names]


def _server(peer: Peer, cache: Path | None) -> Server:
    @contextlib.contextmanager
    def start(workload: Workload, form: str) -> Iterator[Running]:
        if not is_installed(peer.name, cache):
            raise RequestFailed(f"not installed: `python -m benchmarks peers --install {peer.name}`")
        if form not in peer.forms:
            raise RequestFailed(f"does not speak {form}")
        port = free_port()
        program, *arguments = (part.format(port=port) for part in peer.command)
        command = [str(environment(peer.name, cache) / "bin" / program), *arguments]
        told = {"BENCHMARK_FILE": str(workload.file), "BENCHMARK_PORT": str(port), "BENCHMARK_FORM": form}
        with running(command, port, told) as server:
            yield server

    return Server(peer.name, peer.wire, start)
