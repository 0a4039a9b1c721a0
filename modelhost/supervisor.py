"""The parent of a host that is several processes: forks them, starts again what dies, passes signals on.

It opens no model and has no threads, so that it can fork at any time; what it has imported, its children share. A
process that dies takes the requests with it that it was answering, and nothing else: the listening socket is
everybody's, and what it had claimed on the board is taken back here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from modelhost.memory.board import Board
from modelhost.runtime.building_steps import end_with_parent

log = logging.getLogger("modelhost")

#: A process that dies is started again at once; one that does so again and again, later each time …
_BACKOFF_S: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
#: … until it has lived for so long.
_WELL_AFTER_S: Final = 60.0

#: What the processes have beyond `server.drain_timeout` before they are killed.
_KILL_AFTER_S: Final = 15.0


@dataclass(slots=True)
class _Process:
    """One seat's process. `pid` is 0 while there is none."""

    number: int
    pid: int = 0
    started: float = 0.0
    deaths: int = 0
    starts_at: float = 0.0


class Supervisor:
    """Runs `serve` in as many processes as the board has seats. Main thread, and no other.

    `serve` is called in each child with its seat's number and returns the exit status.
    """

    def __init__(
        self,
        board: Board,
        serve: Callable[[int], int],
        *,
        drain_timeout_s: float,
        on_hangup: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_hangup` is called at SIGHUP, so that those that are started from then on have what the others reload;
        `on_end` is called once no process is started any more, to close what they have all listened on."""
        self._on_hangup, self._on_end = on_hangup, on_end
        self._board, self._serve, self._drain_timeout_s, self._clock = board, serve, drain_timeout_s, clock
        self._processes = [_Process(number) for number in range(board.seats)]
        self._ending_since: float | None = None
        self._status = 0
        self._signals: list[int] = []
        self._pid = os.getpid()

    def run(self) -> int:
        """Serves until a signal ends it; returns the exit status: that of a process that could not start."""
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, self._note)
        while True:
            self._start()
            if self._ending_since is not None and not any(process.pid for process in self._processes):
                return self._status
            select.select([wake], [], [], self._patience_s())
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
            self._reap()
            self._pass_on()

    def _note(self, number: int, frame: object) -> None:
        self._signals.append(number)

    # --- starting ------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Forks those that are due."""
        now = self._clock()
        for process in self._processes:
            if not process.pid and self._ending_since is None and now >= process.starts_at:
                process.started = now
                sys.stdout.flush()
                sys.stderr.flush()
                process.pid = os.fork()
                if process.pid == 0:
                    self._become(process.number)

    def _become(self, number: int) -> NoReturn:
        """What a child does; never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(caught, signal.SIG_DFL)
            end_with_parent(self._pid)
            status = self._serve(number)
        except SystemExit as left:
            status = left.code if isinstance(left.code, int) else 1
        except BaseException:
            log.exception("a process of the host failed")
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    # --- ending --------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for process in self._processes:
            if not process.pid:
                continue
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                process.pid = 0
                self._ended(process, os.waitstatus_to_exitcode(status))

    def _ended(self, process: _Process, status: int) -> None:
        """Takes a process's claims back, and decides whether it is started again."""
        self._board.clear(process.number)
        if self._ending_since is not None:
            self._status = self._status or max(0, status)
            return
        if not self._board.has_served:  # what stops the first start of one stops them all
            self._status = status if status > 0 else 1
            self._end(signal.SIGTERM)
            return
        now = self._clock()
        if now - process.started >= _WELL_AFTER_S:
            process.deaths = 0
        wait_s = _BACKOFF_S[min(process.deaths, len(_BACKOFF_S) - 1)]
        process.deaths += 1
        process.starts_at = now + wait_s
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"left with status {status}"
        log.error("process %d of the host %s; it is started again in %g s", process.number, how, wait_s)

    def _pass_on(self) -> None:
        """Does what signals ask for."""
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGHUP:
                self._tell(signal.SIGHUP)
                self._on_hangup()
            elif number != signal.SIGCHLD:
                self._end(number)
        if self._ending_since is not None and self._clock() - self._ending_since >= self._end_within_s:
            self._tell(signal.SIGKILL)

    def _end(self, number: int) -> None:
        """Has all processes end; the second time at once, as each of them takes a second signal."""
        if self._ending_since is None:
            self._ending_since = self._clock()
            self._on_end()
        self._tell(number)

    def _tell(self, number: int) -> None:
        for process in self._processes:
            if process.pid:
                os.kill(process.pid, number)

    @property
    def _end_within_s(self) -> float:
        return self._drain_timeout_s + _KILL_AFTER_S

    def _patience_s(self) -> float | None:
        """Returns how long nothing is due."""
        now = self._clock()
        if self._ending_since is not None:
            return max(0.1, self._ending_since + self._end_within_s - now)
        due = [process.starts_at for process in self._processes if not process.pid]
        return max(0.0, min(due) - now) if due else None
