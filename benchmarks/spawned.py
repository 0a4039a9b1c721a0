"""A process of its own for a part of the load, and the pipe to it; it lives for the scope of the context."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from benchmarks.client import RequestFailed


class Spawned:
    """Runs `main` with the other end of the pipe and `arguments` in a new interpreter. One thread's."""

    def __init__(self, main: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=main, args=(other, *arguments), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.join()

    @property
    def pid(self) -> int:
        """Its process; 0 before it has one."""
        return self._process.pid or 0

    def _tell(self, word: object) -> None:
        self._pipe.send(word)

    def _answer(self, patience_s: float, silent: str) -> Any:
        """Returns what comes next; raises RequestFailed that says `silent` where nothing does in time."""
        try:
            if self._pipe.poll(patience_s):
                return self._pipe.recv()
        except (OSError, EOFError):
            pass
        raise RequestFailed(silent)
