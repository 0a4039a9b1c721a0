"""Who goes first where threads are more than cores. Imports next to nothing: what forks workers has it too."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
import threading
from typing import Final

#: What threads want of a core at a time, of those that are at work on all cores: who wants less is let in sooner, and
#: has no more of the core in all. The least that Linux takes, for who has something to do now and then, and little …
_FIRST_NS: Final = 100_000
#: … and several times what others take, for work that nobody's answer is made of: loads, unloads, scans.
_LAST_NS: Final = 10_000_000
#: As the system has it, 1 to 3 ms.
_USUAL_NS: Final = 0

#: By so much is who goes last nicer than others: it has a third of what they have of a core. Turns alone do not
#: do: who wakes up has to have had less than others so far, and waits for the end of a turn of theirs where it had
#: not, which is until the next tick of the clock, 4 ms. With two busy threads and one like this one beside it, a thread
#: that is awake for a tenth of the time waits for a core for 160 ms of each second instead of 210. No more than that:
#: who goes last may hold the interpreter's lock, which all others need.
_NICER: Final = 5
#: And who runs a model for milliseconds is a little nicer than the event loop, by half of its share, for the same
#: reason: with heavy runs on both of two cores, the 99th percentile of tiny models' answers was 5.4 to 5.8 ms, and 5.8
#: to 8.0 without (three minutes of `python -m benchmarks soak` each). Among themselves runs are equals, and so they are
#: to other containers; to other processes of the same group they give way.
_RUNS_NICER: Final = 3
_NICEST: Final = 19

#: The system call that says so has no function in the C library; other architectures are left out.
_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
#: `struct sched_attr` of sched(7): size, policy, flags, nice, priority, runtime, deadline, period.
_SCHED_ATTR: Final = struct.Struct("IIQiIQQQ")


def go_first() -> None:
    """Has this thread get a core soon after there is something to do for it, though others are at work on all cores.

    Linux grants it from 6.12 on, to everybody; elsewhere nothing changes. Threads and processes begin as the one was
    that has started them, so those that are to be as usual say so.
    """
    _want(_FIRST_NS)


def go_as_usual() -> None:
    """Has this thread take turns as the system has them."""
    _want(_USUAL_NS)


def go_behind() -> None:
    """Has this thread, which runs models, let those go first who take requests and answer them. For good. Once for
    each thread."""
    _want(_USUAL_NS, nicer=_RUNS_NICER)


def go_last() -> None:
    """Has this thread let others go first, where they are at work on all cores; it still has a share, smaller than
    theirs. For good, with all threads and processes that it starts. Once for each thread."""
    _want(_LAST_NS, nicer=_NICER)


def _want(slice_ns: int, *, nicer: int = 0) -> None:
    if sys.platform != "linux":
        return
    own = threading.get_native_id()
    number = _SCHED_SETATTR.get(os.uname().machine)
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, own)
        if nicer:
            nice = min(_NICEST, nice + nicer)
            os.setpriority(os.PRIO_PROCESS, own, nice)
        if number is None:
            return
        attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, os.sched_getscheduler(own), 0, nice, 0, slice_ns, 0, 0)
        # What a sandbox refuses it refuses: the order is the system's own then.
        ctypes.CDLL(None).syscall(number, own, ctypes.c_char_p(attributes), 0)
