"""Which core an inference thread is on while all of them are at work.

Linux finds an idle core for a thread that wakes up, and late or never for one that waits behind another: before it goes
idle a core looks for such a thread only where its idle times have been long lately, and those of a host are short. So
two runs shared one of two cores for up to 16 ms while the other was idle (`perf sched` under 32 clients of a model that
shares runs, Linux 6.18). Threads that keep to a core each, and an event loop that goes to where a run has just ended,
answer 18 to 30 % more of the same requests a second; see docs/performance.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Set as AbstractSet
from typing import Final

#: With more cores there is more for the system to choose from; nobody has measured this there.
_MAX_CORES: Final = 4

#: A core each is for hosts that need all of them: who has not for so long shares them again as the system likes.
_LOOK_S: Final = 0.1

#: Shorter jobs are left to the system, which puts right what it did with the next of its ticks, of 4 ms at most: those
#: of 1 ms were a fifth slower on a core each.
_WORTH_NS: Final = 4_000_000


class Cores:
    """Has `threads` inference threads keep to a core each, while all have work and there are just as many cores.

    Alone on its machine or not: who has work for all cores has a share of all of them either way. A thread that has a
    core of its own while others are idle could be in somebody's way there, so that ends `_LOOK_S` after the last time.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._is_able = 1 < threads <= _MAX_CORES and hasattr(os, "sched_setaffinity")
        self._ids: list[int] = []  # of the threads; these append
        self._all: AbstractSet[int] | None = None  # the process's cores, while threads keep to one each
        self._core_of: dict[int, int] = {}
        self._loop_id = 0
        self._is_crowded = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def are_kept(self) -> bool:
        """Whether threads keep to a core each now."""
        return self._all is not None

    # --- on the event loop -----------------------------------------------------------------------------

    def note_crowd(self, job_ns: int) -> None:
        """Says that there is work for all threads, the last of it expected to take so long."""
        if job_ns < _WORTH_NS:
            return
        self._is_crowded = True
        if self._all is None and self._is_able and len(self._ids) == self._threads:
            self._keep()

    def _keep(self) -> None:
        cores = os.sched_getaffinity(0)
        if len(cores) != self._threads:
            return
        self._loop_id = threading.get_native_id()
        core_of = dict(zip(self._ids, sorted(cores), strict=True))
        try:
            for thread, core in core_of.items():
                os.sched_setaffinity(thread, {core})
        except OSError:  # a sandbox, or cores that were taken away just now: as the system likes
            self._is_able = False
            self._let_go(cores)
            return
        self._core_of, self._all = core_of, cores
        self._look_later()

    def _look_later(self) -> None:
        self._is_crowded = False
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        if self._is_crowded:
            self._look_later()
        else:
            self.end()

    def end(self) -> None:
        """Lets threads be wherever the system likes. Harmless where they are."""
        cores, self._all = self._all, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if cores is not None:
            self._let_go(cores)

    def _let_go(self, cores: AbstractSet[int]) -> None:
        for thread in self._ids:
            _allow(thread, cores)

    # --- on inference threads ----------------------------------------------------------------------------

    def join(self) -> None:
        """Says that this is one of the threads."""
        self._ids.append(threading.get_native_id())

    def call_loop(self, took_ns: int) -> None:
        """Has the event loop go on where this thread has just ended a job, as it is about to sleep: its core is free,
        and has in its caches what is to be answered. After it was told that."""
        cores = self._all
        if cores is None or took_ns < _WORTH_NS:
            return
        core = self._core_of.get(threading.get_native_id())
        if core is not None:
            # For a moment only: threads and processes begin with the cores of who starts them.
            _allow(self._loop_id, {core})
            _allow(self._loop_id, cores)


def _allow(thread: int, cores: AbstractSet[int]) -> None:
    # It may have ended, or the cores are not the process's any more, and the system has seen to that.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(thread, cores)
