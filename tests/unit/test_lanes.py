"""The order of jobs that wait for a thread: played on a clock, without threads."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from modelhost.pool.lanes import FairQueue, Lane, Taken

MS = 1_000_000


class Work:
    """A job that takes so long."""

    def __init__(self, took_ns: int, holds_interpreter: bool = False) -> None:
        self.took_ns, self.holds_interpreter = took_ns, holds_interpreter
        self.asked_ns = 0

    def work(self) -> None: ...

    def ended(self) -> None: ...


class Play:
    """Threads that take jobs and are done with them, one event after another."""

    def __init__(self, threads: int) -> None:
        self.now_ns, self.threads = 0, threads
        self.queue = FairQueue(threads, clock_ns=lambda: self.now_ns)
        self.running: list[tuple[int, Taken]] = []
        self.waits_ns: dict[str, list[int]] = {}
        self.ended: list[str] = []
        self.most_running: dict[str, int] = {}
        self.most_holding = 0
        self.on_end: Callable[[str], None] = lambda name: None

    def put(self, lane: Lane, took_ns: int, *, holds_interpreter: bool = False) -> None:
        job = Work(took_ns, holds_interpreter)
        job.asked_ns = self.now_ns
        self.queue.put(lane, job)

    def look(self) -> None:
        """Every free thread looks for a job, as often as there is a token for it."""
        while len(self.running) < self.threads and self.queue._tokens.qsize():
            self.queue._tokens.get()
            with self.queue._lock:
                taken = self.queue._choose()
            if taken is not None:
                assert isinstance(taken.job, Work)
                holding = [taken, *(other for _, other in self.running)]
                self.most_holding = max(self.most_holding, sum(other.job.holds_interpreter for other in holding))
                self.waits_ns.setdefault(taken.lane.name, []).append(self.now_ns - taken.job.asked_ns)
                self.running.append((self.now_ns + taken.job.took_ns, taken))
                name = taken.lane.name
                at_once = sum(other.lane.name == name for _, other in self.running)
                self.most_running[name] = max(self.most_running.get(name, 0), at_once)

    def step(self) -> bool:
        """Goes on to the next end of a job; returns False where nothing runs."""
        self.look()
        if not self.running:
            return False
        self.running.sort(key=lambda entry: entry[0])
        self.now_ns, taken = self.running.pop(0)
        assert isinstance(taken.job, Work)
        self.queue.done(taken, taken.job.took_ns)
        self.ended.append(taken.lane.name)
        self.on_end(taken.lane.name)
        return True


def flood(play: Play, lane: Lane, took_ns: int, connections: int) -> Callable[[str], None]:
    """So many clients that ask again as soon as they are answered."""
    for _ in range(connections):
        play.put(lane, took_ns)
    return lambda name: play.put(lane, took_ns) if name == lane.name else None


def worst_wait_ms(play: Play, name: str) -> float:
    return max(play.waits_ns[name]) / MS


def test_jobs_of_one_lane_go_in_their_order() -> None:
    play, lane = Play(1), Lane("a")
    for number in range(20):
        play.put(lane, number)
    taken = []
    while play.step():
        taken.append(len(taken))
    assert play.waits_ns["a"] == [sum(range(number)) for number in range(20)]


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("long_ms", "short_ms"), [(5, 1), (200, 1), (1, 1)])
def test_a_flood_delays_others_by_what_runs_not_by_what_waits(threads: int, long_ms: int, short_ms: int) -> None:
    play, flooded, other = Play(threads), Lane("flooded"), Lane("other")
    again = flood(play, flooded, long_ms * MS, 64)

    def on_end(name: str) -> None:
        again(name)
        if name == "other":
            play.put(other, short_ms * MS)

    play.on_end = on_end
    for _ in range(10):
        play.step()
    play.put(other, short_ms * MS)
    for _ in range(2000):
        play.step()
    # The rest of one job at most; of the first few, two of them, as nobody knew yet.
    assert worst_wait_ms(play, "other") <= long_ms + short_ms
    assert len(play.waits_ns["other"]) > 100
    assert play.ended.count("flooded") > 3


@pytest.mark.parametrize("threads", [2, 4])
def test_long_jobs_leave_a_thread_to_others_while_there_are_others(threads: int) -> None:
    play, flooded, other = Play(threads), Lane("flooded"), Lane("other")
    again = flood(play, flooded, 200 * MS, 64)

    def on_end(name: str) -> None:
        again(name)
        if name == "other":
            play.put(other, MS)

    play.on_end = on_end
    for _ in range(20):
        play.step()
    assert play.most_running["flooded"] == threads  # nobody else is there
    play.put(other, MS)
    for _ in range(10):
        play.step()
    play.waits_ns.clear()
    for _ in range(3000):
        play.step()
    assert worst_wait_ms(play, "other") == 0
    # When the others have gone, all threads are the flooded model's again.
    play.on_end = again
    play.most_running.clear()
    for _ in range(200):
        play.step()
    assert play.most_running["flooded"] == threads


def test_time_is_shared_evenly_between_lanes_that_want_more_than_there_is() -> None:
    play = Play(2)
    lanes = {"a": (Lane("a"), 1 * MS), "b": (Lane("b"), 3 * MS), "c": (Lane("c"), 10 * MS)}
    for lane, took_ns in lanes.values():
        for _ in range(30):
            play.put(lane, took_ns)
    play.on_end = lambda name: play.put(*lanes[name])
    for _ in range(3000):
        play.step()
    times = {name: play.ended.count(name) * took_ns for name, (_, took_ns) in lanes.items()}
    assert max(times.values()) <= 1.1 * min(times.values())


def test_a_lane_that_has_waited_for_nothing_saves_nothing_up() -> None:
    play, busy, late = Play(1), Lane("busy"), Lane("late")
    play.on_end = flood(play, busy, MS, 8)
    play.put(late, MS)
    for _ in range(1000):
        play.step()
    for _ in range(100):
        play.put(late, MS)
    before = len(play.ended)
    for _ in range(100):
        play.step()
    assert play.ended[before:].count("busy") >= 48


@pytest.mark.parametrize("most", [1, 2])
def test_a_lane_with_a_bound_runs_no_more_at_once_and_all_of_it_in_the_end(most: int) -> None:
    play, bound, free = Play(4), Lane("bound"), Lane("free")
    bound.max_running = most
    for _ in range(50):
        play.put(bound, 5 * MS)
        play.put(free, 7 * MS)
    while play.step():
        pass
    assert play.most_running == {"bound": most, "free": 4}
    assert play.ended.count("bound") == play.ended.count("free") == 50


def test_what_was_withdrawn_is_not_taken_and_what_was_taken_is_not_withdrawn() -> None:
    queue, lane = FairQueue(2), Lane("a")
    jobs = [Work(MS) for _ in range(3)]
    for job in jobs:
        queue.put(lane, job)
    taken = queue.take()
    assert taken is not None
    assert taken.job is jobs[0]
    assert not queue.withdraw(lane, jobs[0])
    assert queue.withdraw(lane, jobs[1])
    assert not queue.withdraw(lane, jobs[1])
    following = queue.take()
    assert following is not None
    assert following.job is jobs[2]
    queue.end()
    assert (queue.take(), queue.take()) == (None, None)


def known(name: str, job_ns: int) -> Lane:
    """A lane whose last jobs took so long."""
    lane = Lane(name)
    lane.job_ns = job_ns
    return lane


def spares(queue: FairQueue) -> Taken | None:
    """What the spare thread begins where it looks now; it does not wait."""
    while queue._spare_tokens.qsize():
        with queue._lock:
            taken = queue._choose(is_spare=True) if queue._lasting >= queue._threads else None
        if taken is not None:
            return taken
        queue._spare_tokens.get()
    return None


def taken(queue: FairQueue) -> Taken:
    found = queue.take()
    assert found is not None
    return found


@pytest.mark.parametrize("is_first", [True, False])
def test_brief_jobs_do_not_wait_for_threads_that_are_all_at_work_on_others(is_first: bool) -> None:
    queue, long, brief = FairQueue(2), known("long", 15 * MS), known("brief", MS)
    queue.put(long, Work(15 * MS))
    queue.put(long, Work(15 * MS))
    running = [taken(queue)]
    if is_first:  # there before the last thread has begun
        queue.put(brief, job := Work(MS))
        brief._tag_ns = 1000 * MS  # and it is not its turn
        assert spares(queue) is None
    running.append(taken(queue))
    if not is_first:
        queue.put(brief, job := Work(MS))
    assert [one.lane for one in running] == [long, long]
    found = spares(queue)
    assert found is not None
    assert found.job is job
    queue.done(found, MS)
    queue.put(long, Work(15 * MS))
    assert spares(queue) is None  # that one has to wait
    queue.done(running.pop(), 15 * MS)
    assert taken(queue).lane is long


def test_the_spare_thread_rests_while_a_thread_is_at_brief_work_or_nobody_knows_how_long_jobs_are() -> None:
    queue, long, brief, new = FairQueue(2), known("long", 15 * MS), known("brief", MS), Lane("new")
    queue.put(long, Work(15 * MS))
    queue.put(brief, Work(MS))
    taken(queue)
    short = taken(queue)
    queue.put(brief, Work(MS))
    assert spares(queue) is None  # the other ends soon
    queue.done(short, MS)
    queue.put(new, Work(MS))
    brief._tag_ns = 1000 * MS
    assert taken(queue).lane is new  # which may be long
    queue.put(new, Work(MS))
    found = spares(queue)
    assert found is not None
    assert found.lane is brief
    assert spares(queue) is None


def test_a_lanes_bound_holds_for_the_spare_thread_too() -> None:
    queue, long, brief = FairQueue(1), known("long", 15 * MS), known("brief", MS)
    brief.max_running = 1
    queue.put(long, Work(15 * MS))
    taken(queue)
    queue.put(brief, Work(MS))
    queue.put(brief, Work(MS))
    first = spares(queue)
    assert first is not None
    assert spares(queue) is None
    queue.done(first, MS)
    queue.put(brief, Work(MS))
    assert spares(queue) is not None


def test_an_end_comes_after_all_that_waits_whatever_its_bound() -> None:
    queue, lane = FairQueue(1), Lane("a")
    lane.max_running = 1
    jobs = [Work(MS) for _ in range(3)]
    for job in jobs:
        queue.put(lane, job)
    assert queue.take() is not None
    with queue._lock:
        assert queue._choose() is None  # held up
    queue._tokens.get()
    queue.end()
    assert [taken and taken.job for taken in (queue.take(), queue.take(), queue.take())] == [jobs[1], jobs[2], None]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_forgotten_and_tokens_do_not_pile_up(seed: int) -> None:
    dice = random.Random(seed)
    play = Play(dice.choice((1, 2, 4)))
    lanes = [Lane(name) for name in "abcde"]
    for lane in lanes[:2]:
        lane.max_running = dice.choice((1, 2, None))
    asked: dict[str, int] = {}
    for _ in range(400):
        if dice.random() < 0.6:
            lane = dice.choice(lanes)
            asked[lane.name] = asked.get(lane.name, 0) + 1
            play.put(lane, dice.choice((0, MS, 30 * MS)), holds_interpreter=dice.random() < 0.3)
        else:
            play.step()
        waiting = sum(len(lane._jobs) for lane in lanes)
        assert play.queue._tokens.qsize() <= waiting + play.threads
    while play.step():
        pass
    assert {name: play.ended.count(name) for name in asked} == asked
    assert play.most_holding == 1


@pytest.mark.parametrize("threads", [2, 4])
def test_jobs_that_hold_the_interpreter_take_one_thread_and_leave_the_others_to_runs(threads: int) -> None:
    play, lanes, runs = Play(threads), [Lane("a"), Lane("b")], Lane("runs")
    for lane in lanes:
        for _ in range(4):
            play.put(lane, 10 * MS, holds_interpreter=True)
    play.look()
    assert [taken.lane.name for _, taken in play.running] == ["a"]
    play.put(lanes[0], MS)  # as the run of a request that is decoded already
    for _ in range(8):
        play.put(runs, 5 * MS)
    while play.step():
        pass
    assert play.now_ns == 80 * MS
    assert play.most_holding == 1
    assert play.most_running["runs"] == threads - 1
    assert play.waits_ns["a"][1] == 0, "a run does not wait for what stands before it and may not begin"
    assert len(play.ended) == 17


def test_what_was_held_up_by_the_interpreter_begins_at_the_end_too() -> None:
    play, lane = Play(2), Lane("a")
    for _ in range(4):
        play.put(lane, MS, holds_interpreter=True)
    play.look()
    play.queue.end()
    while play.step():
        pass
    assert len(play.ended) == 4


def test_a_job_that_was_held_up_is_taken_though_its_lane_has_become_short_meanwhile() -> None:
    play, long, short = Play(2), Lane("long"), Lane("short")
    long.job_ns = 21 * MS  # as its jobs were while the machine had other work
    play.put(short, MS)
    play.put(long, MS)
    play.put(long, MS)
    while play.step():
        pass
    assert sorted(play.ended) == ["long", "long", "short"]
    assert not play.queue._waiting


@pytest.mark.timeout(60)
def test_a_long_job_begins_beside_another_when_others_have_not_come_for_a_while() -> None:
    """Though nothing happens then that could say so: the thread looks at the clock."""
    now_ns = 0
    queue, lane = FairQueue(2, clock_ns=lambda: now_ns), Lane("long")
    short = Lane("short")
    queue.put(short, Work(MS))
    taken = queue.take()
    assert taken is not None
    queue.done(taken, MS)
    lane.job_ns = 10_000 * MS
    for _ in range(2):
        queue.put(lane, Work(10_000 * MS))
    assert queue.take() is not None
    looked: list[float | None] = []
    has_token = queue._has_token

    def look(wait_s: float | None) -> bool:
        nonlocal now_ns
        looked.append(wait_s)
        assert len(looked) < 10
        if wait_s is not None:  # as if it had waited
            now_ns += int(wait_s * 1e9)
            return True
        return has_token(None)

    queue._has_token = look  # type: ignore[method-assign]
    second = queue.take()
    assert second is not None
    assert second.lane is lane
    assert [wait_s for wait_s in looked if wait_s] == [pytest.approx(1.001)]
