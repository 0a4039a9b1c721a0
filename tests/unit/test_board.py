"""What the processes of one host tell each other: figures, the lock, turns, portions of a room."""

from __future__ import annotations

import os
import signal

import pytest

from modelhost.memory.board import Board, Figure, Portion, Seat, Siblings, most_of
from modelhost.memory.shelf import PLACES

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="a host is one process where there is no fork")

MB = 1 << 20


def seats(count: int) -> list[Seat]:
    board = Board(count)
    found = [Seat(board, number) for number in range(count)]
    for seat in found:
        seat.sit()
    return found


def test_figures_of_the_others_add_up_and_ones_own_do_not() -> None:
    first, second, third = seats(3)
    first.publish(Figure.LOADING, 5)
    second.publish(Figure.LOADING, 7)
    second.publish(Figure.RESIDENT, 100)
    assert (first.others(Figure.LOADING), second.others(Figure.LOADING), third.others(Figure.LOADING)) == (7, 5, 12)
    assert first.others(Figure.LOADING, Figure.RESIDENT) == 107


def test_what_an_ended_process_had_written_does_not_count() -> None:
    first, second = seats(2)
    second.publish(Figure.LOADING, 7)
    second.publish(Figure.WANTED, 9)
    first.board.clear(second.number)
    assert first.others(Figure.LOADING) == first.wanted_bytes() == 0
    assert list(first.seated) == []
    assert os.read(first.board.pokes(0), 16), "who is left is told"


def test_a_host_of_one_process_sees_nobody_and_decides_at_once() -> None:
    alone = Siblings()
    with alone.decision() as is_mine:
        assert is_mine
    assert alone.others(*Figure) == alone.wanted_bytes() == 0
    assert alone.is_my_turn()


def test_figures_cross_a_fork_and_the_lock_is_given_back_by_a_process_that_dies() -> None:
    first, second = seats(2)
    ready, go = os.pipe()
    pid = os.fork()
    if not pid:
        with second.decision() as is_mine:
            second.publish(Figure.LOADING, 11 if is_mine else 0)
            os.write(go, b"!")
            signal.pause()
    os.read(ready, 1)
    assert first.others(Figure.LOADING) == 11
    with first.decision() as is_mine:
        assert not is_mine, "it is in the middle of a decision"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with first.decision() as is_mine:
        assert is_mine


def test_a_decision_within_a_decision_is_part_of_it() -> None:
    first, _ = seats(2)
    with first.decision() as outer, first.decision() as inner:
        assert outer
        assert inner
    with first.decision() as again:
        assert again


@pytest.mark.parametrize(
    ("rested", "turns"),
    [
        ((0, 0, 0), (True, True, True)),  # nothing rests: nobody holds anybody up
        ((30, 20, 40), (False, True, False)),
        ((0, 20, 40), (False, True, False)),
        ((20, 20, 40), (True, False, False)),
        ((5, 0, 0), (True, False, False)),
    ],
)
def test_who_has_what_rested_longest_lets_go_first(rested: tuple[int, ...], turns: tuple[bool, ...]) -> None:
    found = seats(3)
    for seat, since in zip(found, rested, strict=True):
        seat.publish(Figure.RESTING_SINCE, since)
    assert tuple(seat.is_my_turn() for seat in found) == turns


# --- portions ------------------------------------------------------------------------------------


def portions(room_bytes: int, count: int = 2) -> list[Portion]:
    return [Portion.of(room_bytes, seat, Figure.RUNS) for seat in seats(count)]


def test_alone_the_whole_room_is_its_portion() -> None:
    portion = Portion.of(64 * MB, Siblings(), Figure.RUNS)
    assert portion.limit_bytes == 64 * MB
    assert portion.fits(64 * MB)
    assert not portion.fits(64 * MB + 1)
    assert not portion.is_contended


def test_what_one_does_not_use_the_other_may_and_both_together_never_more_than_the_room() -> None:
    first, second = portions(64 * MB)
    assert first.limit_bytes == most_of(64 * MB, 2) == 60 * MB
    assert first.fits(60 * MB)
    assert second.is_contended
    assert second.fits(4 * MB), "its own part is never lent"
    assert not second.fits(4 * MB + 1)
    first.use(20 * MB)
    assert second.fits(44 * MB)
    assert not second.fits(44 * MB + 1)
    assert not first.fits(20 * MB + 1)
    first.use(0)
    second.use(0)
    assert first.fits(60 * MB)


def test_who_waits_is_told_when_something_is_given_back() -> None:
    first, second = portions(64 * MB)
    board = first._siblings.board  # type: ignore[attr-defined]
    assert first.fits(60 * MB)
    first.use(10 * MB)
    with pytest.raises(BlockingIOError):
        os.read(board.pokes(1), 16)
    assert first.fits(60 * MB)
    assert not second.fits(30 * MB)
    first.use(10 * MB)
    assert os.read(board.pokes(1), 16)
    assert second.fits(30 * MB)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_portions_never_add_up_to_more_than_the_room(count: int) -> None:
    import random

    choose = random.Random(count)
    room = 64 * MB
    found = portions(room, count)
    used = [0] * count
    for _ in range(3000):
        one = choose.randrange(count)
        wanted = choose.randrange(0, room)
        if wanted < used[one] or found[one].fits(wanted):
            used[one] = wanted
            found[one].use(wanted)
        assert sum(used) <= room
    for portion in found:
        portion.use(0)
    assert all(portion.fits(portion.own_bytes) for portion in found)


def test_the_room_may_shrink() -> None:
    first, second = portions(64 * MB)
    assert first.fits(30 * MB)
    for portion in (first, second):
        portion.resize(32 * MB)
    assert first.limit_bytes == 30 * MB
    assert second.fits(2 * MB)
    assert not second.fits(3 * MB)


def test_who_holds_a_model_is_seen_by_the_others_until_it_does_not() -> None:
    one, other, third = seats(3)
    assert other.holder("a:1") is None
    one.show("a:1")
    one.show("a:1")
    third.show("b:1")
    assert (other.holder("a:1"), third.holder("a:1"), one.holder("a:1")) == (0, 0, None)
    assert other.holder("b:1") == 2
    one.hide("a:1")
    one.hide("never:1")
    assert other.holder("a:1") is None
    one.show("c:1")
    one.board.clear(0)
    assert other.holder("c:1") is None


def test_what_has_no_place_is_not_seen_and_places_are_used_again() -> None:
    one, other = seats(2)
    names = [f"m{number}:1" for number in range(PLACES + 1)]
    for name in names:
        one.show(name)
    assert other.holder(names[0]) == other.holder(names[-2]) == 0
    assert other.holder(names[-1]) is None
    one.hide(names[5])
    one.show(names[-1])
    assert (other.holder(names[-1]), other.holder(names[5])) == (0, None)
