"""The inference threads: a bounded queue of jobs, each of which ends exactly once on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

from modelhost.errors import DeadlineExceeded, HostClosed, ModelHostError, Overloaded
from modelhost.runtime.base import CancelToken

T = TypeVar("T")

#: What ends a thread; as many as there are threads.
_END: Final = None


class Job(Protocol):
    """Something to do on an inference thread."""

    def work(self) -> None:
        """Does it, on an inference thread; raises nothing."""

    def ended(self) -> None:
        """Is called on the event loop when `work` has returned, once."""


class Runner:
    """Runs blocking work on `threads` threads. Methods are for the event-loop thread.

    A job that was started always ends: `ended` is called on the event loop when the work has
    returned, however long after its requester was cancelled. That is what leases hang on.

    The threads are plain ones on a plain queue: a future and an executor for each run cost more than
    some runs do.
    """

    def __init__(self, *, threads: int, max_waiting: int) -> None:
        self.threads, self.max_waiting = threads, max_waiting
        self.started = 0
        self.in_flight = 0
        """Jobs that are running or wait for a thread."""
        self._is_closed = False
        self._admitted = 0  # runs that wait and are no job of their own, as far as is known
        self._begun: deque[int] = deque()  # how many of them have begun since; the threads append
        self._queue: SimpleQueue[tuple[Job, asyncio.AbstractEventLoop] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def quiet_marker(self) -> object | None:
        """A value that changes with every job, or None while one is in flight."""
        return None if self.in_flight else self.started

    def check_open(self) -> None:
        """Raises HostClosed after `close`."""
        if self._is_closed:
            raise HostClosed("the host is shutting down")

    def check_room(self) -> None:
        """Raises HostClosed, or Overloaded where the queue is full."""
        self.check_open()
        if self._waiting >= self.max_waiting:
            while self._begun:
                self._admitted -= self._begun.popleft()
            if (waiting := self._waiting) >= self.max_waiting:
                raise Overloaded("the queue for inference threads", waiting=waiting, limit=self.max_waiting)

    @property
    def _waiting(self) -> int:
        """Runs that wait for a thread, or for others to share one with; at least so many."""
        return self.in_flight - self.threads + self._admitted

    def start(self, job: Job) -> None:
        """Queues a job. Raises Overloaded where the queue is full, HostClosed; the job then never ends."""
        self.check_room()
        self._put(job)

    def admit(self) -> None:
        """Counts a run that waits and is no job of its own, until `note_begun`. Raises what `start` raises."""
        self.check_room()
        self._admitted += 1

    def note_begun(self, count: int) -> None:
        """Says that so many runs that were admitted wait no longer. Any thread."""
        self._begun.append(count)

    def start_admitted(self, job: Job) -> None:
        """Queues a job whose first run was admitted: there is room for it. Raises HostClosed."""
        self.check_open()
        self._put(job)
        self._admitted -= 1

    def _put(self, job: Job) -> None:
        if len(self._threads) < self.threads and len(self._threads) <= self.in_flight:
            thread = threading.Thread(target=self._serve, name=f"modelhost-run-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self.started += 1
        self.in_flight += 1
        self._queue.put((job, asyncio.get_running_loop()))

    def note_run_in_place(self) -> None:
        """Counts a run that the event loop itself has made; nothing else was decided meanwhile."""
        self.started += 1

    def _serve(self) -> None:
        """One thread: takes jobs until it is told to end."""
        while (item := self._queue.get()) is not _END:
            job, loop = item
            job.work()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(self._ended, job)
            del item, job  # a thread that waits keeps nothing of the last request

    def _ended(self, job: Job) -> None:
        self.in_flight -= 1
        job.ended()

    def submit(
        self,
        work: Callable[[], T],
        *,
        cancel: CancelToken,
        on_end: Callable[[], None] = lambda: None,
    ) -> asyncio.Future[T]:
        """Queues `work` for one who waits. Raises Overloaded where the queue is full; then `on_end` is not called."""
        job = _Awaited(work, cancel, on_end)
        self.start(job)
        return job.future

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

    def refuse(self) -> None:
        """Takes no more jobs; those in flight go on. Harmless when closed."""
        if not self._is_closed:
            self._is_closed = True
            for _ in self._threads:
                self._queue.put(_END)

    def close(self) -> None:
        """Waits for the jobs in flight; blocks. After `refuse`, which the event loop's thread has to call, on any."""
        self.refuse()
        for thread in self._threads:
            thread.join()


class _Awaited:
    """A job whose result a future takes."""

    __slots__ = ("_cancel", "_error", "_on_end", "_result", "_work", "future")

    def __init__(self, work: Callable[[], Any], cancel: CancelToken, on_end: Callable[[], None]) -> None:
        self._work, self._cancel, self._on_end = work, cancel, on_end
        self._result: Any = None
        self._error: BaseException | None = None
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def work(self) -> None:
        if not self._cancel.is_cancelled:  # else abandoned while it waited for a thread
            try:
                self._result = self._work()
            except BaseException as error:
                self._error = without_frames(error)
        del self._work  # and what it holds

    def ended(self) -> None:
        result, error = self._result, self._error
        self._result = self._error = None
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        self._on_end()


def without_frames(error: BaseException) -> BaseException:
    """Returns an error, one of ours without its traceback: its words have the figures, its frames hold tensors."""
    return error.with_traceback(None) if isinstance(error, ModelHostError) else error


def _expire(future: asyncio.Future[Any], started: float, deadline: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the run", waited_s=max(0.0, deadline - started)))
