"""What waits to be posted, and the thread that posts it: bounded, in order, tried again with growing waits."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Protocol

from modelhost.alerts.alert import DropReason
from modelhost.alerts.webhook import Outcome

log = logging.getLogger("modelhost")

_FIRST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 60.0


class Poster(Protocol):
    """Where alerts go."""

    shown: str

    def post(self, body: bytes) -> Outcome:
        """Sends a body once; blocks, and raises nothing."""


class Sender:
    """Posts bodies one after another. `put` from one thread, which never waits; figures may be read from any.

    The thread is there from the first body on, and never keeps the process from ending. `wait` and `jitter`
    are for tests: one waits on an event, the other returns 0 to 1.
    """

    def __init__(
        self,
        poster: Callable[[], Poster],
        *,
        max_waiting: int,
        retries: int,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._make_poster, self._max_waiting, self._retries = poster, max_waiting, retries
        self._jitter, self._clock, self._wait = jitter, clock, wait
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._until: float | None = None  # when closing: nothing is begun after that
        self._thread: threading.Thread | None = None
        self._on_end: Callable[[], None] = lambda: None
        self._is_failing = False
        self.sent = 0
        self.retried = 0
        self.dropped: Counter[DropReason] = Counter()

    @property
    def waiting(self) -> int:
        """Bodies that have not been sent, and are not being sent."""
        return len(self._waiting)

    def put(self, body: bytes) -> None:
        """Has a body posted; where too many wait, the oldest is dropped."""
        with self._changed:
            if self._closing.is_set():
                self.dropped["shutdown"] += 1
                return
            if len(self._waiting) >= self._max_waiting:
                self._waiting.popleft()
                self.dropped["queue_full"] += 1
            self._waiting.append(body)
            self._changed.notify()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="modelhost-alerts", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has none to give now; the next alert tries again
            return
        self._thread = thread

    def close(self, patience_s: float, on_end: Callable[[], None]) -> None:
        """Sends what waits, for so long, without waiting between tries; `on_end` is called on the thread then,
        or at once where there is none."""
        with self._changed:
            self._until, self._on_end = self._clock() + patience_s, on_end
            self._closing.set()
            self._changed.notify()
            thread = self._thread
            if thread is None:
                self._drop_rest()
        if thread is None:
            on_end()

    def _serve(self) -> None:
        try:
            poster = self._make_poster()
            while (body := self._next()) is not None:
                self._send(poster, body)
        except Exception:
            log.exception("alerts are no longer posted")
        finally:
            with self._changed:
                self._closing.set()
                self._drop_rest()
            self._on_end()

    def _next(self) -> bytes | None:
        """Waits for a body; returns None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closing.is_set():
                    return None
                self._changed.wait()
            return None if self._is_over() else self._waiting.popleft()

    def _send(self, poster: Poster, body: bytes) -> None:
        for tries in range(self._retries + 1):
            if tries:
                self.retried += 1
            outcome = poster.post(body)
            if outcome.is_done:
                self.sent += 1
                self._note(poster, None)
                return
            if not outcome.may_try_again:
                self._drop(poster, "refused", outcome.error)
                return
            self._note(poster, outcome.error)
            if self._is_over():
                self._drop(poster, "shutdown", outcome.error)
                return
            if tries < self._retries:
                self._wait(self._closing, max(self._pause_s(tries), outcome.retry_after_s))
        self._drop(poster, "unreachable", outcome.error)

    def _pause_s(self, tries: int) -> float:
        """Returns half to all of a wait that doubles: hosts that lost one webhook at once come back one by one."""
        return min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**tries) * (0.5 + 0.5 * self._jitter())

    def _is_over(self) -> bool:
        return self._until is not None and self._clock() >= self._until

    def _note(self, poster: Poster, error: str | None) -> None:
        """Logs where it begins to fail, and where that is over."""
        if (error is not None) == self._is_failing:
            return
        self._is_failing = error is not None
        if error is None:
            log.info("alerts reach %s again", poster.shown)
        else:
            log.warning("alerts do not reach %s: %s; they are tried again", poster.shown, error)

    def _drop(self, poster: Poster, reason: DropReason, error: str) -> None:
        self.dropped[reason] += 1
        log.warning("an alert could not be posted to %s and is dropped: %s", poster.shown, error)

    def _drop_rest(self) -> None:
        self.dropped["shutdown"] += len(self._waiting)
        self._waiting.clear()
