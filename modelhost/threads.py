"""Threads of the host's own: there from the start, as the system may have none to give later, and in short turns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from modelhost.precedence import go_last

P = ParamSpec("P")
T = TypeVar("T")

#: The event loop asks for the interpreter's lock several times for each request (when the socket has something, after
#: the run, after the answer has gone), and each time waits so long for a thread that is at work in Python: one that
#: loads, scans the models' directory, or decodes. The interpreter's own 5 ms are more than most requests take in all;
#: shorter than this, threads that work would lose more than a few percent to the changes between them.
_TURN_S: Final = 0.0005


def take_short_turns() -> None:
    """Has the threads of this process give each other the interpreter after half a millisecond. For a process that is
    a host; one that embeds a host decides for itself."""
    sys.setswitchinterval(_TURN_S)


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread(name: str, *, begin: Callable[[], None] = go_last) -> ThreadPoolExecutor:
    """Returns an executor whose one thread runs already, and lets others go first where `begin` is nothing else.

    An executor that starts its thread with the first job, and cannot, raises and keeps the job: a thread that
    is started later would do what nobody waits for any more. Raises RuntimeError where there is none to be had.
    """
    executor = _OneThread(1, thread_name_prefix=name, initializer=begin)
    executor.submit(int).result()
    return executor


def for_future(error: BaseException) -> BaseException:
    """Returns an error that a future of asyncio takes: StopIteration it refuses, and who waits would wait for ever."""
    return RuntimeError(f"raised StopIteration: {error}") if isinstance(error, StopIteration) else error


class _OneThread(ThreadPoolExecutor):
    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has the thread do `work`; see `for_future` for what it may raise."""

        def do() -> T:
            try:
                return work(*args, **kwargs)
            except StopIteration as error:
                raise for_future(error) from error

        return super().submit(do)
