"""What wants a process to itself, as a fork of one that has imported everything: importing takes ten times as long.

Measurements of memory, and commands of ours that end by themselves. A host that serves is a process of its own
(`host_process`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from host_process import environment

ROOT = Path(__file__).resolve().parents[1]

#: The kernel counts resident pages in batches per processor: a code that begins with this stays on one.
ONE_PROCESSOR = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"

_LOOP = """
import json, os, sys, traceback
for line in sys.stdin:
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        if status:
            print(f"ended with status {status}", flush=True)
        continue
    try:
        print(*measure(*json.loads(line)), flush=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
"""


@contextmanager
def forking(code: str) -> Iterator[Callable[..., list[str]]]:
    """Runs `code`, which defines `measure(...)`, once; yields what calls it, each time in a fork of that process, and
    returns the words of its answer. A fork's highest mark of memory begins with what it has."""
    with subprocess.Popen(
        [sys.executable, "-c", code + _LOOP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=str(ROOT)),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(*arguments: object) -> list[str]:
            questions.write(json.dumps(arguments) + "\n")
            questions.flush()
            return answers.readline().split()

        yield ask
        questions.close()


#: Runs a command line in a fork: its output goes into files, its status is the answer.
_COMMAND = """
import os, sys, traceback
from modelhost.cli import prepare, serve
from modelhost.api import app, drain
from modelhost import host
from modelhost.runtime import ort
from modelhost.cli.main import main

def measure(arguments, directory, variables, output, errors):
    if child := os.fork():
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    os.chdir(directory)
    os.environ.update(variables)
    for number, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    status = 1
    try:
        main(arguments)
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        else:
            status = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
"""


@contextmanager
def commands(directory: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Yields what runs `modelhost ARGUMENTS` in a working directory, with settings of the environment, until it has
    ended; `directory` gets its output."""
    output, errors = directory / "output", directory / "errors"
    with forking(_COMMAND) as ask:

        def run(working: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
            (status,) = ask(arguments, str(working), settings, str(output), str(errors))
            return subprocess.CompletedProcess(arguments, int(status), output.read_text(), errors.read_text())

        yield run
