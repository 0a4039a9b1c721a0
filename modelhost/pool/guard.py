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
        # One for run after run, until it has stopped one: what a runtime binds to it takes a microsecond to make.
        self._token = CancelToken()
        self._runs = 0
        self._running = 0  # the number of the run in progress, 0 where there is none
        self._seen = self._idle_looks = 0  # the run of the last look, and how many looks have found none
        self._thread: threading.Thread | None = None
        self._is_asleep = False
        self._is_closed = False
        self._wake = threading.Event()

    def begin(self) -> CancelToken:
        """Returns what will stop the run that begins now, should it be long."""
        token = self._token
        if token.is_cancelled:
            token = self._token = CancelToken()
        self._runs = self._running = self._runs + 1
        if self._thread is None:
            self._start()
        elif self._is_asleep:
            self._wake.set()
        return token

    def end(self) -> None:
        """Says that the run has ended."""
        self._running = 0

    def close(self) -> None:
        """Ends the thread, soon; harmless when there is none."""
        self._is_closed = True
        self._wake.set()

    def join(self) -> None:
        """Waits until the thread has ended; blocks."""
        if self._thread is not None:
            self._thread.join()

    def look(self) -> bool:
        """Stops a run that the last look has seen, too; returns False where there has been none for many looks.

        The thread's, or of who has none.
        """
        token, running = self._token, self._running
        if running and running == self._seen:
            # Should it end just now, the next run is stopped in its place, and is made again on a thread.
            token.cancel()
        self._seen, self._idle_looks = running, 0 if running else self._idle_looks + 1
        return self._idle_looks < _IDLE_LOOKS

    def _start(self) -> None:
        thread = threading.Thread(target=self._watch, name="modelhost-guard", daemon=True)
        with contextlib.suppress(RuntimeError):  # none is to be had: the run goes unwatched, the next one tries
            thread.start()
            self._thread = thread

    def _watch(self) -> None:
        while not self._is_closed:
            if not self.look():
                self._sleep()
                self._idle_looks = 0
            time.sleep(self._period_s)

    def _sleep(self) -> None:
        self._wake.clear()
        self._is_asleep = True
        if not self._running and not self._is_closed:  # looked at again: it may have begun before it could see that
            self._wake.wait()
        self._is_asleep = False
