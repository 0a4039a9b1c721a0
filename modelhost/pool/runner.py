"""The inference threads: bounded queues of jobs in fair order, each of which ends exactly once on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from modelhost.errors import DeadlineExceeded, HostClosed, ModelHostError
from modelhost.pool.bounds import QueueBound
from modelhost.pool.cores import Cores
from modelhost.pool.guard import RunGuard
from modelhost.pool.lanes import FairQueue, Job, Lane, Taken
from modelhost.precedence import go_behind, go_first
from modelhost.runtime.base import CancelToken
from modelhost.threads import for_future

T = TypeVar("T")

#: Runs on the event loop itself in one turn of it: what comes in the same turn waits for all of them.
_TURN_NS: Final = 10_000_000

#: From so much on it is told when a turn is over.
_TURN_TOLD_NS: Final = 1_000_000


class Runner:
    """Runs blocking work on `threads` threads, and brief work on a spare one where all of these are at work on other.
    Methods are for the event-loop thread.

    A job that was started always ends: `ended` is called on the event loop when the work has
    returned, however long after its requester was cancelled. That is what leases hang on.

    Jobs have a lane, that of their model, or none in particular: that is one lane for all of these. The
    threads are plain ones: a future and an executor for each run cost more than some runs do.
    """

    def __init__(
        self,
        *,
        threads: int,
        max_waiting: int,
        max_waiting_per_model: int | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        guard: RunGuard | None = None,
    ) -> None:
        self.threads, self.max_waiting = threads, max_waiting
        self.clock_ns = clock_ns
        """What the time of jobs, and of runs on the event loop itself, is read from."""
        self.max_waiting_per_model = max_waiting_per_model
        """None: a share of `max_waiting`."""
        self._bound = QueueBound(max_waiting, max_waiting_per_model)
        self.started = 0
        self.in_flight = 0
        """Jobs that are running or wait for a thread."""
        self._is_closed = False
        self._admitted = 0  # runs that wait and are no job of their own, as far as is known
        self._begun: deque[tuple[Lane, int]] = deque()  # how many of them have begun since; the threads append
        self._queue = FairQueue(threads, clock_ns=clock_ns)
        self._lanes: dict[str, Lane] = {}
        self._common = self.lane("")
        self._threads: list[threading.Thread] = []
        self._spare: threading.Thread | None = None
        self._cores = Cores(threads)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_place_ns = 0  # of runs on the event loop itself in this turn of it, and perhaps in some before
        self.guard = guard or RunGuard()
        """Stops runs on the event loop itself that turn out to be long."""

    def lane(self, name: str) -> Lane:
        """Returns the lane of a model, the same at each call: some 300 bytes for each model that was asked for."""
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = Lane(name)
        return found

    def waiting_for(self, name: str) -> int:
        """Returns how many runs of a model wait for a thread, or for others to share one with, as far as is known."""
        lane = self._lanes.get(name)
        return 0 if lane is None else max(0, self._waiting_in(lane))

    def quiet_marker(self) -> object | None:
        """A value that changes with every job, or None while one is in flight."""
        return None if self.in_flight else self.started

    def check_open(self) -> None:
        """Raises HostClosed after `close`."""
        if self._is_closed:
            raise HostClosed("the host is shutting down")

    def check_room(self, lane: Lane | None = None) -> None:
        """Raises HostClosed, or Overloaded where the queue is full, or the lane's part of it."""
        self.check_open()
        lane = lane or self._common
        if not self._is_full(lane):
            return
        while self._begun:
            begun, count = self._begun.popleft()
            begun.admitted -= count
            self._admitted -= count
        if self._is_full(lane):
            raise self._bound.refusal(
                "the queue for inference threads",
                lane.name or "decoding",
                self._waiting,
                self._waiting_in(lane),
                lane.max_waiting,
            )

    def _is_full(self, lane: Lane) -> bool:
        return self._bound.is_full(self._waiting, self._waiting_in(lane), lane.max_waiting)

    @property
    def _waiting(self) -> int:
        """Runs that wait for a thread, or for others to share one with; at least so many."""
        return self.in_flight - self.threads + self._admitted

    def _waiting_in(self, lane: Lane) -> int:
        return lane.in_flight - min(self.threads, lane.max_running or self.threads) + lane.admitted

    def start(self, job: Job, lane: Lane | None = None) -> None:
        """Queues a job. Raises Overloaded where the queue is full, HostClosed; the job then never ends."""
        self.check_room(lane)
        self._put(job, lane or self._common)

    def admit(self, lane: Lane | None = None) -> None:
        """Counts a run that waits and is no job of its own, until `note_begun`. Raises what `start` raises."""
        self.check_room(lane)
        self.note_admitted(lane)

    def note_admitted(self, lane: Lane | None = None) -> None:
        """Does so where there is room, as `check_room` has just said."""
        self._admitted += 1
        (lane or self._common).admitted += 1

    def note_begun(self, count: int, lane: Lane | None = None) -> None:
        """Says that so many runs that were admitted wait no longer. Any thread."""
        self._begun.append((lane or self._common, count))

    def start_admitted(self, job: Job, lane: Lane | None = None) -> None:
        """Queues a job whose first run was admitted: there is room for it. Raises HostClosed."""
        self.check_open()
        lane = lane or self._common
        self._put(job, lane)
        self._admitted -= 1
        lane.admitted -= 1

    def add_thread(self) -> None:
        """Starts a thread; where the system has none to give, those that are there go on. Raises RuntimeError
        where there is none at all, which is why a host starts one before it takes requests."""

        def begin() -> None:
            go_behind()
            self._cores.join()

        thread = self._thread(self._queue.take, begin, f"modelhost-run-{len(self._threads)}")
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            return
        self._threads.append(thread)

    def _add_spare(self) -> None:
        thread = self._thread(self._queue.take_brief, go_first, "modelhost-run-spare")
        with contextlib.suppress(RuntimeError):  # none is to be had: the others do
            thread.start()
            self._spare = thread

    def _thread(self, take: Callable[[], Taken | None], begin: Callable[[], None], name: str) -> threading.Thread:
        return threading.Thread(target=self._serve, args=(take, begin), name=name, daemon=True)

    def _put(self, job: Job, lane: Lane) -> None:
        if len(self._threads) <= self.in_flight:  # all that there are may be at work
            if len(self._threads) < self.threads:
                self.add_thread()
            elif self._spare is None and lane.is_brief:
                self._add_spare()
        self._loop = asyncio.get_running_loop()
        self.started += 1
        self.in_flight += 1
        lane.in_flight += 1
        self._queue.put(lane, job)
        if self.in_flight >= self.threads:
            self._cores.note_crowd(lane.job_ns)

    def withdraw(self, job: Job, lane: Lane | None = None) -> bool:
        """Ends a job that nobody wants and that has not begun, soon; returns False for one that has, which goes on."""
        lane = lane or self._common
        if not self._queue.withdraw(lane, job):
            return False
        asyncio.get_running_loop().call_soon(self._ended, job, lane)
        return True

    def has_turn_left(self) -> bool:
        """Whether the event loop may make another run itself before others have a turn of it."""
        return self._in_place_ns < _TURN_NS

    def note_run_in_place(self, took_ns: int) -> None:
        """Counts a run that the event loop itself has made; nothing else was decided meanwhile."""
        self.started += 1
        before_ns = self._in_place_ns
        self._in_place_ns = after_ns = before_ns + took_ns
        if before_ns < _TURN_TOLD_NS <= after_ns:  # once in many runs: short ones need not pay for it
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._in_place_ns = 0

    def _serve(self, take: Callable[[], Taken | None], begin: Callable[[], None]) -> None:
        """One thread: takes jobs until it is told to end."""
        begin()
        while (taken := take()) is not None:
            job, lane, began_ns = taken.job, taken.lane, self.clock_ns()
            job.work()
            took_ns = self.clock_ns() - began_ns
            self._queue.done(taken, took_ns)
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._ended, job, lane)
            self._cores.call_loop(took_ns)
            del taken, job  # a thread that waits keeps nothing of the last request

    def _ended(self, job: Job, lane: Lane) -> None:
        self.in_flight -= 1
        lane.in_flight -= 1
        job.ended()

    def submit(
        self,
        work: Callable[[], T],
        *,
        cancel: CancelToken,
        on_end: Callable[[], None] = lambda: None,
        lane: Lane | None = None,
        holds_interpreter: bool = False,
    ) -> asyncio.Future[T]:
        """Queues `work` for one who waits. Raises Overloaded where the queue is full; then `on_end` is not called.

        `holds_interpreter`: see Job.
        """
        job = _Awaited(work, cancel, on_end, holds_interpreter)
        self.start(job, lane)
        cancel.bind(lambda: self.withdraw(job, lane))
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
            self._cores.end()  # while there are its threads: the system may give their numbers to others then
            self._queue.end()
            self.guard.close()

    def close(self) -> None:
        """Waits for the jobs in flight; blocks. After `refuse`, which the event loop's thread has to call, on any."""
        self.refuse()
        for thread in self._threads:
            thread.join()
        if self._spare is not None:
            self._spare.join()
        self.guard.join()


class _Awaited:
    """A job whose result a future takes."""

    __slots__ = ("_cancel", "_error", "_on_end", "_result", "_work", "future", "holds_interpreter")

    def __init__(
        self, work: Callable[[], Any], cancel: CancelToken, on_end: Callable[[], None], holds_interpreter: bool
    ) -> None:
        self.holds_interpreter = holds_interpreter
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
        self._cancel.release()
        result, error = self._result, self._error
        self._result = self._error = None
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        self._on_end()


def without_frames(error: BaseException) -> BaseException:
    """Returns an error as a future takes it, one of ours without its traceback: its words have the figures, its
    frames hold tensors. So do those of what it was raised in place of."""
    if not isinstance(error, ModelHostError):
        return for_future(error)
    if error.__suppress_context__:
        error.__context__ = None
    return error.with_traceback(None)


def _expire(future: asyncio.Future[Any], started: float, deadline: float) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the run", waited_s=max(0.0, deadline - started)))
