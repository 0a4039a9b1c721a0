"""Whose turn it is among those who wait for an inference thread: lanes, one for each model, in fair order.

The thread that is free goes to the lane whose jobs have had the least time of the threads, counted from
when it began to wait: a model that floods the host with long runs delays another one by what is running,
not by all that waits. Within a lane it is first come, first served.

Of jobs that hold the interpreter one runs at a time, whichever lane it is of: two would take it from each other some
hundred times, which takes longer (an eighth, of 8 MB of JSON each) than one after the other, and would keep the
thread from runs, which need no interpreter. What waits behind one in its lane goes first then.

What is running may still be long, and no order makes it shorter. So there is one thread more, for jobs that are
known to be brief, while all others are at work on some that are not: the system gives it a core between two turns
of theirs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Protocol

#: Jobs that take longer leave one thread to others, as long as there are others: they would have to wait for
#: the rest of such a job, which no order can change.
_LONG_NS: Final = 20_000_000

#: Jobs that take no longer are brief: behind others they would wait for many times what they take themselves.
_BRIEF_NS: Final = 5_000_000

#: There are others where one of their jobs has begun within so long.
_LATELY_NS: Final = 1_000_000_000

#: A look at the clock is not to come just before the time that it is for.
_A_MOMENT_S: Final = 0.001

#: What a job of a lane takes follows what its last ones took, by one part in so many.
_FOLLOWS: Final = 4

#: What ends a thread; as many as there are threads.
_END: Final = None


class Job(Protocol):
    """Something to do on an inference thread."""

    @property
    def holds_interpreter(self) -> bool:
        """Whether it hardly ever lets the interpreter go, so that two at once only wait for each other."""

    def work(self) -> None:
        """Does it, on an inference thread; raises nothing."""

    def ended(self) -> None:
        """Is called on the event loop when `work` has returned, or when nobody wants it any more; once."""


class Lane:
    """One model before the threads. The counts are the event loop's, the rest is the queue's, under its lock."""

    __slots__ = (
        "_jobs",
        "_running",
        "_tag_ns",
        "admitted",
        "in_flight",
        "job_ns",
        "max_running",
        "max_waiting",
        "name",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        """For words to people; empty for work that belongs to no model."""
        self.max_running: int | None = None
        """Jobs at once, at most; None: as many as there are threads, see `_LONG_NS`."""
        self.max_waiting: int | None = None
        """Runs that may wait; None: a share of the whole queue, see QueueBound."""
        self.in_flight = 0
        """Jobs that are running or wait for a thread."""
        self.admitted = 0
        """Runs that wait and are no job of their own, as far as is known."""
        self.job_ns = 0
        """What its last jobs took; 0 before the first."""
        self._jobs: deque[Job] = deque()
        self._running = 0
        self._tag_ns = 0  # time that its jobs have had, beginning at what others had when it began to wait

    @property
    def is_brief(self) -> bool:
        """Whether its jobs are known to be brief."""
        return 0 < self.job_ns <= _BRIEF_NS


class Taken:
    """A job that a thread has begun."""

    __slots__ = ("charged_ns", "is_lasting", "is_long", "job", "lane")

    def __init__(self, job: Job, lane: Lane, charged_ns: int, is_long: bool, is_lasting: bool) -> None:
        self.job, self.lane, self.charged_ns, self.is_long = job, lane, charged_ns, is_long
        self.is_lasting = is_lasting
        """Whether brief ones need not wait for its end."""


class FairQueue:
    """Jobs of all lanes, for `threads` threads and a spare one. Any thread; `clock_ns` is monotonic.

    Threads sleep on a plain queue of tokens, which costs less than a condition: there is one for each job that
    may begin, at least. A token that finds no job is only a look. The spare thread has tokens of its own, and looks
    before it sleeps.
    """

    def __init__(self, threads: int, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._threads, self._clock_ns = threads, clock_ns
        self._tokens: SimpleQueue[bool | None] = SimpleQueue()
        self._spare_tokens: SimpleQueue[bool | None] = SimpleQueue()
        self._lasting = 0  # jobs on the threads, the spare one left out, that are not known to be brief
        self._lock = threading.Lock()
        self._waiting: dict[Lane, None] = {}  # lanes with jobs, in the order in which they began to wait
        self._now_ns = 0  # the tag of the job that began last
        self._long_running = 0
        self._is_held = False  # the interpreter, by a job on one of the threads
        self._short_at_ns = -_LATELY_NS  # when a job that is not long began last
        self._is_ending = False

    def put(self, lane: Lane, job: Job) -> None:
        """Adds a job to its lane."""
        with self._lock:
            lane._jobs.append(job)
            if lane not in self._waiting:
                self._waiting[lane] = None
                lane._tag_ns = max(lane._tag_ns, self._now_ns)
            is_spares = self._lasting >= self._threads and lane.is_brief
        self._tokens.put(True)
        if is_spares:
            self._wake_spare()

    def withdraw(self, lane: Lane, job: Job) -> bool:
        """Takes a job out that has not begun; returns False for one that has."""
        with self._lock:
            try:
                lane._jobs.remove(job)
            except ValueError:
                return False
            if not lane._jobs:
                del self._waiting[lane]
        return True

    def end(self) -> None:
        """Ends all threads when the jobs that are here have begun, for which no bounds hold any more."""
        with self._lock:
            self._is_ending = True
            left = sum([len(lane._jobs) for lane in self._waiting])
        for _ in range(left):
            self._tokens.put(True)
        for _ in range(self._threads):
            self._tokens.put(_END)
        self._spare_tokens.put(_END)

    def take(self) -> Taken | None:
        """Returns the job whose turn it is; waits for one. None: the thread has to end."""
        wait_s: float | None = None
        while self._has_token(wait_s):
            with self._lock:
                taken = self._choose()
                is_spares = self._lasting >= self._threads and any(lane.is_brief for lane in self._waiting)
                wait_s = None if taken is not None else self._left_alone_s()
            if is_spares:
                self._wake_spare()
            if taken is not None:
                return taken
        return None

    def _has_token(self, wait_s: float | None) -> bool:
        """Waits for a token, or so long; False: the thread has to end."""
        try:
            return self._tokens.get(timeout=wait_s) is not _END
        except Empty:
            return True

    def _left_alone_s(self) -> float | None:
        """Returns when those may begin that leave this thread to others, where no others come: nothing else says so.
        None where nobody does."""
        if any(lane.max_running is None and not self._may_begin(lane) for lane in self._waiting):
            return max(0, _LATELY_NS - (self._clock_ns() - self._short_at_ns)) / 1e9 + _A_MOMENT_S
        return None

    def _wake_spare(self) -> None:
        if not self._spare_tokens.qsize():  # else it will look, and sees what is there by then
            self._spare_tokens.put(True)

    def take_brief(self) -> Taken | None:
        """Returns the brief job whose turn it is while all threads are at work on others; waits for one. None: the
        spare thread has to end."""
        while True:
            with self._lock:
                taken = self._choose(is_spare=True) if self._lasting >= self._threads else None
            if taken is not None:
                return taken
            if self._spare_tokens.get() is _END:
                return None

    def _choose(self, *, is_spare: bool = False) -> Taken | None:
        chosen: Lane | None = None
        job: Job | None = None
        for lane in self._waiting:
            if is_spare and not lane.is_brief:
                continue
            if (chosen is None or lane._tag_ns < chosen._tag_ns) and self._may_begin(lane):
                first = self._first(lane)
                if first is not None:
                    chosen, job = lane, first
        if chosen is None or job is None:
            return None
        chosen._jobs.remove(job)
        self._is_held |= job.holds_interpreter
        if not chosen._jobs:
            del self._waiting[chosen]
        self._now_ns = max(self._now_ns, chosen._tag_ns)
        job_ns = chosen.job_ns
        chosen._tag_ns += job_ns
        chosen._running += 1
        is_long = job_ns > _LONG_NS
        if is_long:
            self._long_running += 1
        else:
            self._short_at_ns = self._clock_ns()
        is_lasting = not (is_spare or 0 < job_ns <= _BRIEF_NS)
        if is_lasting:
            self._lasting += 1
        return Taken(job, chosen, job_ns, is_long, is_lasting)

    def _first(self, lane: Lane) -> Job | None:
        """Returns the first job of a lane that may have the interpreter; None where none may."""
        if self._is_held and not self._is_ending:
            return next((job for job in lane._jobs if not job.holds_interpreter), None)
        return lane._jobs[0]

    def _may_begin(self, lane: Lane) -> bool:
        if lane.max_running is not None:
            return lane._running < lane.max_running or self._is_ending
        if lane.job_ns <= _LONG_NS or self._long_running < self._threads - 1 or self._long_running == 0:
            return True
        return self._clock_ns() - self._short_at_ns > _LATELY_NS or self._is_ending

    def done(self, taken: Taken, took_ns: int) -> None:
        """Takes note that a job has returned."""
        lane = taken.lane
        with self._lock:
            lane._running -= 1
            if taken.is_lasting:
                self._lasting -= 1
            self._long_running -= taken.is_long
            if taken.job.holds_interpreter:
                self._is_held = False
            lane._tag_ns += took_ns - taken.charged_ns
            lane.job_ns += (took_ns - lane.job_ns) // (_FOLLOWS if lane.job_ns else 1)
            # Who was not allowed to begin may be now, and has no token any more; also where nothing bounds its lane
            # now, as its jobs have become short.
            held_up = sum([len(waiting._jobs) for waiting in self._waiting])
            missing = min(held_up, self._threads) - self._tokens.qsize()
        for _ in range(missing):
            self._tokens.put(True)
