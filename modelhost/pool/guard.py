"""Runs on the event loop itself that turn out to be long: a thread that looks now and then, and stops them."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final

from modelhost.runtime.base import CancelToken

#: A run that is still there after one to two of these is stopped: it was known to take 1.5 ms at most.
_PERIOD_S: Final = 0.02

#: Looks that find nothing before the thread sleeps until there is something.
_IDLE_LOOKS: Final = 50


class RunGuard:
    """Watches one run at a time, the event loop's. `begin` and `end` are for that thread; it costs them a microsecond.

    Shapes tell how long a run takes, but for models with loops whose turns are counted by a value.
    """

    def __init__(self, period_s: float = _PERIOD_S) -> None:
        self._period_s = period_s
        self._token: CancelToken | None = None  # of the run in progress
        self._thread: threading.Thread | None = None
        self._is_asleep = False
        self._is_closed = False
        self._wake = threading.Event()

    def begin(self) -> CancelToken:
        """Returns what will stop the run that begins now, should it be long."""
        token = self._token = CancelToken()
        if self._thread is None:
            thread = threading.Thread(target=self._watch, name="modelhost-guard", daemon=True)
            with contextlib.suppress(RuntimeError):  # none is to be had: the run goes unwatched, the next one tries
                thread.start()
                self._thread = thread
        elif self._is_asleep:
            self._wake.set()
        return token

    def end(self) -> None:
        """Says that the run has ended."""
        self._token = None

    def close(self) -> None:
        """Ends the thread, soon; harmless when there is none."""
        self._is_closed = True
        self._wake.set()

    def join(self) -> None:
        """Waits until the thread has ended; blocks."""
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        seen: CancelToken | None = None
        idle_looks = 0
        while not self._is_closed:
            token = self._token
            if token is not None and token is seen:
                token.cancel()
            seen, idle_looks = token, 0 if token is not None else idle_looks + 1
            if idle_looks >= _IDLE_LOOKS:
                self._sleep()
                idle_looks = 0
            time.sleep(self._period_s)

    def _sleep(self) -> None:
        self._wake.clear()
        self._is_asleep = True
        if self._token is None and not self._is_closed:  # looked at again: it may have begun before it could see that
            self._wake.wait()
        self._is_asleep = False
