"""Who of a benchmark goes first where it shares its cores with the host: clients stand for other machines.

What a client needs of the CPU before it can ask, and after the answer has come, is none of the host's time; and what
makes load, or checks answers, must not be what the host waits for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import Final

_BACK: Final = 10
_FRONT: Final = -10
#: Threads that measure get the interpreter back from one that checks an answer after this long, not after 5 ms.
_SWITCH_S: Final = 0.0005


def stand_back() -> None:
    """Has this thread let everybody else go first, until it ends."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACK)


def stand_in_front() -> None:
    """Has this process go first, with the threads that it will have; where it may not, it stays where it is."""
    sys.setswitchinterval(_SWITCH_S)
    with contextlib.suppress(AttributeError, PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _FRONT)
