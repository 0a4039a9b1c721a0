"""Threads of the host's own that are there from the start: later the system may have none to give."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def one_thread(name: str) -> ThreadPoolExecutor:
    """Returns an executor whose one thread runs already.

    An executor that starts its thread with the first job, and cannot, raises and keeps the job: a thread that
    is started later would do what nobody waits for any more. Raises RuntimeError where there is none to be had.
    """
    executor = _OneThread(1, thread_name_prefix=name)
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
