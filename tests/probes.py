"""Measurements that want a process to themselves: forks of one that has imported what they measure, since importing it
takes ten times as long as they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: The kernel counts resident pages in batches per processor: everything stays on one.
_LOOP = """
import json, os, sys, traceback
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
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
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def ask(*arguments: str | int) -> list[str]:
            questions.write(json.dumps(arguments) + "\n")
            questions.flush()
            return answers.readline().split()

        yield ask
        questions.close()
