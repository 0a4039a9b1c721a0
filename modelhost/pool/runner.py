"""The inference threads: a bounded queue of jobs, each of which ends exactly once on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from modelhost.errors import DeadlineExceeded, HostClosed, ModelHostError, Overloaded
from modelhost.runtime.base import CancelToken

T = TypeVar("T")


class Runner:
    """Runs blocking work on `threads` threads. Methods are for the event-loop thread.

    A job that was submitted always ends: its `on_end` is called on the event loop when the work has
    returned, however long after its requester was cancelled. That is what leases hang on.
    """

    def __init__(self, *, threads: int, max_waiting: int) -> None:
        self.threads, self.max_waiting = threads, max_waiting
        self.started = 0
        self.in_flight = 0
        """Jobs that are running or wait for a thread."""
        self._is_closed = False
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="modelhost-run")

    def quiet_marker(self) -> object | None:
        """A value that changes with every job, or None while one is in flight."""
        return None if self.in_flight else self.started

    def submit(
        self,
        work: Callable[[], T],
        *,
        cancel: CancelToken,
        on_end: Callable[[], None] = lambda: None,
    ) -> asyncio.Future[T]:
        """Queues `work`. Raises Overloaded where the queue is full; then `on_end` is not called."""
        if self._is_closed:
            raise HostClosed("the host is shutting down")
        waiting = self.in_flight - self.threads
        if waiting >= self.max_waiting:
            raise Overloaded("the queue for inference threads", waiting=waiting, limit=self.max_waiting)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self.in_flight -= 1
            if not future.done():
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
            on_end()

        def job() -> None:
            result: Any = None
            error: BaseException | None = None
            if not cancel.is_cancelled:  # else abandoned while it waited for a thread
                try:
                    result = work()
                except ModelHostError as caught:
                    # Its words have the figures; its traceback holds what the work had made.
                    error = caught.with_traceback(None)
                except BaseException as caught:
                    error = caught
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(finish, result, error)
            # An error's traceback holds this frame, and with it what the work had made: a circle that
            # only the collector would find.
            result = error = None

        self._executor.submit(job)
        self.started += 1
        self.in_flight += 1
        return future

    async def result(self, future: asyncio.Future[T], *, cancel: CancelToken, deadline: float | None = None) -> T:
        """Waits for a submitted job; `deadline` is on the event loop's clock.

        Cancelling the caller, or the deadline, triggers `cancel` and does not wait for the work to
        notice. Raises DeadlineExceeded, or what the work raises.
        """
        loop = asyncio.get_running_loop()
        timer = None
        if deadline is not None:
            timer = loop.call_at(deadline, _expire, future, loop.time(), deadline)
        try:
            return await future
        except (asyncio.CancelledError, DeadlineExceeded):
            cancel.cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()
            # The future has the error, whose traceback has this frame: a circle, and in the frames
            # above it are the request's tensors.
            del future

    def close(self) -> None:
        """Takes no more jobs, and waits for those in flight; blocks."""
        self._is_closed = True
        self._executor.shutdown()


def _expire(future: asyncio.Future[Any], started: float, deadline: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the run", waited_s=max(0.0, deadline - started)))
