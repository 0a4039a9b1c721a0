"""The parent of several processes: what it does when one ends, and when it is told to end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from modelhost.memory.board import Board, Figure, Seat
from modelhost.supervisor import Supervisor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board() -> Board:
    board = Board(2)
    board.has_served = True
    return board


@pytest.fixture
def supervisor(board: Board, clock: Clock) -> Supervisor:
    """Its processes have numbers that no process has: none is forked, and none is told anything."""
    return Supervisor(board, lambda number: 0, drain_timeout_s=10.0, clock=clock)


def test_what_a_process_had_claimed_is_taken_back_when_it_ends(supervisor: Supervisor, board: Board) -> None:
    Seat(board, 1).publish(Figure.LOADING, 7)
    supervisor._ended(supervisor._processes[1], -signal.SIGKILL)
    assert Seat(board, 0).others(Figure.LOADING) == 0


def test_it_is_started_again_at_once_and_later_each_time_until_it_has_lived_for_a_while(
    supervisor: Supervisor, clock: Clock
) -> None:
    process = supervisor._processes[0]
    waits = []
    for _ in range(8):
        process.started = clock.now
        supervisor._ended(process, 1)
        waits.append(process.starts_at - clock.now)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    process.started = clock.now - 61
    supervisor._ended(process, -signal.SIGSEGV)
    assert process.starts_at == clock.now


def test_one_that_cannot_start_ends_a_host_that_has_never_served(supervisor: Supervisor, board: Board) -> None:
    board.has_served = False
    supervisor._ended(supervisor._processes[0], 3)
    assert supervisor._ending_since is not None
    assert supervisor._status == 3


def test_what_is_started_after_a_reload_has_what_was_reloaded(board: Board, clock: Clock) -> None:
    reloads: list[str] = []
    supervisor = Supervisor(
        board, lambda number: 0, drain_timeout_s=10.0, on_hangup=lambda: reloads.append("again"), clock=clock
    )
    supervisor._signals = [signal.SIGCHLD, signal.SIGHUP]
    supervisor._pass_on()
    assert reloads == ["again"]
    assert supervisor._ending_since is None


@pytest.fixture
def handlers() -> Iterator[None]:
    """A supervisor takes signals as the main program that it is; the tests get theirs back."""
    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    former = {number: signal.getsignal(number) for number in taken}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (5, 5)])
def test_it_ends_when_all_have_and_with_the_status_of_one_that_failed(
    board: Board, handlers: None, status: int, expected: int
) -> None:
    def serve(number: int) -> int:
        seat = Seat(board, number)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        seat.publish(Figure.IS_UP, 1)
        if number == 0:
            while not board.is_full:
                os.sched_yield()
            os.kill(os.getppid(), signal.SIGTERM)
        signal.sigwait({signal.SIGTERM})
        return status if number else 0

    assert Supervisor(board, serve, drain_timeout_s=10.0).run() == expected


def test_a_signal_that_comes_before_a_process_listens_is_not_lost(board: Board, handlers: None) -> None:
    """It ends by the signal's default then, which is what was wanted."""

    def serve(number: int) -> int:
        if number == 1:
            os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
        return 0

    assert Supervisor(board, serve, drain_timeout_s=10.0).run() == 0
