"""A repository whose files change, the answers that ONNX Runtime itself gives to them, and processes to be killed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models import ARTIFACTS, TOLERANCE, Array, Case, ModelSet
from benchmarks.places import ROOT
from benchmarks.process import SERVE
from modelhost.prepare.processes import family

#: Contents of each model, which replace one another.
CONTENTS: Final = 2
_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.002
#: What a log says of the machine and not of the start: others' files push ours out of the page cache.
_NOT_OURS: Final = "memory thrashes"
_PREPARE: Final = [*SERVE[:-1], "prepare"]
#: Totals are written so often: the more writes, the more of them are interrupted.
_SETTINGS: Final = {"MODELHOST_STATE_INTERVAL_S": "0.1"}


@dataclass(slots=True)
class Repository:
    """Some models of `CONTENTS` contents each; files are replaced at once, as one should."""

    directory: Path
    contents: Mapping[str, Sequence[tuple[Path, Case]]]
    answers: Mapping[Path, Array]
    current: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def make(cls, directory: Path, models: ModelSet, count: int) -> Repository:
        """Takes `CONTENTS` of the models for each of `count` names, and asks ONNX Runtime for their answers."""
        contents = {
            f"k{number}": [
                (models.directory / case.name / "1" / "model.onnx", case)
                for case in models.cases[number * CONTENTS : (number + 1) * CONTENTS]
            ]
            for number in range(count)
        }
        answers = {file: _answer(file, found[0][1].question) for found in contents.values() for file, _ in found}
        made = cls(directory, contents, answers)
        for name in contents:
            made.put(name, 0)
        return made

    @property
    def cache(self) -> Path:
        """Where artifacts lie."""
        return self.directory / ARTIFACTS

    def put(self, name: str, index: int) -> None:
        """Gives a model another content, by a rename."""
        file = self.directory / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = self.directory.parent / f"{name}.onnx"
        shutil.copyfile(self.contents[name][index][0], aside)
        with self.lock:
            aside.replace(file)
            self.current[name] = index

    def question(self, name: str) -> Array:
        """What a model is asked; the same for each of its contents."""
        return self.contents[name][0][1].question

    def is_right(self, name: str, answer: Array, *, of: int | None = None) -> bool:
        """Says whether ONNX Runtime answers the same, with one content, or (None) with any that the model ever has."""
        indices = range(CONTENTS) if of is None else (of,)
        wanted = (self.answers[self.contents[name][index][0]] for index in indices)
        return any(answer.shape == one.shape and np.allclose(answer, one, rtol=0, atol=TOLERANCE) for one in wanted)

    def lose_artifact(self, random: np.random.Generator) -> None:
        """Takes an artifact away, so that it has to be made again."""
        found = [entry for entry in self.cache.glob("*") if len(entry.name) == 32]
        if found:
            shutil.rmtree(found[int(random.integers(len(found)))], ignore_errors=True)

    def broken(self) -> list[str]:
        """Returns what is wrong in the cache while nobody prepares: halves of things, and leftovers."""
        wrong = [f"{path.relative_to(self.cache)} was left over" for path in left_over(self.cache)]
        for manifest in self.cache.glob("*/manifest.json"):
            for name, (size, _, digest) in json.loads(manifest.read_text())["files"].items():
                data = (manifest.parent / name).read_bytes()
                if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                    wrong.append(f"{manifest.parent.name}/{name} is not what was written")
        return wrong


class Killed:
    """A process of ours that is started, and killed with or without what it has started."""

    def __init__(self, command: Sequence[str], folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self.out, self.log = folder / f"{name}.out", folder / f"{name}.log"
        with self.out.open("wb") as out, self.log.open("wb") as err:
            self.process = subprocess.Popen(
                command, env=dict(environment), cwd=folder, stdout=out, stderr=err, start_new_session=True
            )

    def kill(self, *, with_group: bool) -> list[str]:
        """Ends it now; returns which of its children are there after some seconds."""
        alive = [(pid, _started(pid)) for pid in family(self.process.pid)]
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if with_group else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()
        end = time.monotonic() + _PATIENCE_S
        while left := [pid for pid, started in alive if started and _started(pid) == started]:
            if time.monotonic() > end:
                return [f"process {pid} outlived its parent" for pid in left]
            time.sleep(_POLL_S)
        return []

    def said(self) -> str:
        """What it said on standard output."""
        return self.out.read_text()

    def complaints(self) -> list[str]:
        """Lines of the log that say that something was wrong."""
        lines = self.log.read_text(errors="replace").splitlines()
        words = ("WARNING", "ERROR", "CRITICAL", "Traceback")
        return [line for line in lines if any(word in line for word in words) and _NOT_OURS not in line]


def left_over(folder: Path) -> list[Path]:
    """Returns the files aside that nobody is at work on.

    A host writes its totals all the time: what it writes is open, from its first moment to its rename.
    """
    aside = list(folder.rglob("tmp-*"))
    at_work = _open_files() if aside else frozenset()
    return [path for path in aside if str(path.resolve()) not in at_work and path.exists()]


def _open_files() -> frozenset[str]:
    """Returns what all processes that may be looked into have open now."""
    found = set()
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # closed, or its process gone
            found.add(os.readlink(link))
    return frozenset(found)


def start_host(repository: Repository, folder: Path, number: int) -> Killed:
    """Starts a host on the repository; returns at once."""
    command = [*SERVE, "--models", str(repository.directory), "--port", "0", "--memory-limit", "1GB"]
    return Killed(command, folder, f"host-{number}", _environment())


def start_preparing(repository: Repository, folder: Path, number: int) -> Killed:
    """Starts `modelhost prepare` beside it."""
    return Killed([*_PREPARE, "--models", str(repository.directory)], folder, f"prepare-{number}", _environment())


def url_of(host: Killed, *, until: float) -> str | None:
    """Waits for a host to listen, until a moment of the monotonic clock; None where it does not by then."""
    while time.monotonic() < until:
        for line in host.said().splitlines(keepends=True):
            if " listens on " in line and line.endswith("\n"):
                return line.split(" listens on ")[1].split()[0]
        if host.process.poll() is not None:
            return None
        time.sleep(_POLL_S)
    return None


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MODELHOST_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    return {**kept, **_SETTINGS, "PYTHONPATH": path}


def _started(pid: int) -> str:
    """Returns when a process was started, as its number may be somebody else's later; "" where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _answer(file: Path, question: Array) -> Array:
    """Asks ONNX Runtime, in a process of its own: it is to owe nothing to the host's way of running it."""
    program = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "question = numpy.frombuffer(sys.stdin.buffer.read(), numpy.float32).reshape(eval(sys.argv[2]))\n"
        "sys.stdout.buffer.write(session.run(['y'], {'x': question})[0].tobytes())\n"
    )
    answered = subprocess.run(
        [sys.executable, "-c", program, str(file), str(question.shape)],
        input=question.tobytes(),
        capture_output=True,
        check=True,
    )
    return np.frombuffer(answered.stdout, np.float32).reshape(1, -1)
