"""Adaptive thresholds by themselves: what each rule does, its guards, and that an hour of any load does not swing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from benchmarks.adaptive_hour import FIXED, GUARDS, LOADS, live
from modelhost.memory.adaptive import Adaptive
from modelhost.memory.adaptive_learnt import Learnt
from modelhost.memory.adaptive_words import Decision, Guards, Reading
from modelhost.memory.thresholds import Thresholds

MB = 1 << 20


class Machine:
    """Makes readings of a load, four a second unless `every_s` says so, and keeps what is decided."""

    def __init__(self, adaptive: Adaptive | None = None) -> None:
        self.adaptive = adaptive or Adaptive(GUARDS)
        self.now = 0.0
        self.reading = Reading(0.0, 170 * MB, resident_bytes=110 * MB, refaulted_bytes=0, cache_bytes=80 * MB)
        self.decisions: list[Decision] = []

    def live(self, seconds: float, *, runs: int = 40, departures: float = 0.0, **more: Any) -> list[Decision]:
        """Lives on; totals grow by so much a second: `refaulted`, `load_s`; the rest is as readings have it."""
        refaulted, load_s = more.pop("refaulted", 0), more.pop("load_s", 0.0)
        every_s = more.pop("every_s", 0.25)
        before = len(self.decisions)
        for _ in range(int(seconds / every_s)):
            self.now += every_s
            was = self.reading
            assert was.refaulted_bytes is not None
            self.reading = replace(
                was,
                at_s=self.now,
                runs=was.runs + int(runs * every_s),
                load_s=was.load_s + load_s * every_s,
                departures=int(departures * self.now),
                refaulted_bytes=was.refaulted_bytes + int(refaulted * every_s),
                **more,
            )
            self.take(self.adaptive.note(self.reading))
        return self.decisions[before:]

    def take(self, decision: Decision | None) -> None:
        if decision is not None:
            self.decisions.append(decision)
            check(decision.thresholds, self.adaptive.guards)


def check(found: Thresholds, guards: Guards) -> None:
    fixed = guards.fixed
    assert fixed.baseline_bytes < found.warning_bytes < found.critical_bytes
    assert found.critical_bytes <= fixed.limit_bytes - fixed.min_free_bytes
    assert (found.limit_bytes, found.min_free_bytes) == (fixed.limit_bytes, fixed.min_free_bytes)
    if guards.highest_critical_bytes is not None:
        assert found.critical_bytes <= guards.highest_critical_bytes
    if guards.highest_warning_bytes is not None:
        assert found.warning_bytes <= guards.highest_warning_bytes


# --- the rules --------------------------------------------------------------------------------------


def test_nothing_learnt_is_as_fixed_and_nothing_wanted_changes_nothing() -> None:
    machine = Machine()
    assert machine.adaptive.thresholds == FIXED
    assert machine.live(600) == []


def test_where_models_leave_for_want_of_room_and_runs_are_small_more_is_committed_in_small_steps() -> None:
    machine = Machine()
    steps = machine.live(300, departures=0.5, claimed_bytes=4 * MB, run_bytes=2 * MB)
    assert {step.rule for step in steps} == {"more"}
    assert all(after.at_s - before.at_s >= 15 for before, after in pairwise(steps))
    assert steps[0].at_s >= 30
    found = machine.adaptive.thresholds
    assert found.critical_bytes == (256 - 16 - 16 - 8) * MB  # bodies, a 16th for runs, a margin
    assert found.warning_bytes == 196 * MB
    assert "left or were refused for want of room" in steps[0].reason
    assert steps[0].details["departures"] > 0


def test_what_loads_read_again_is_no_reason_to_hold_back() -> None:
    machine = Machine()
    steps = machine.live(120, departures=1.0, load_s=0.4, refaulted=6 * MB)
    assert {step.rule for step in steps} == {"more"}
    assert Machine().live(120, departures=1.0, load_s=0.05, refaulted=6 * MB) == []


def test_too_few_runs_are_no_reason_to_keep_less_room_for_them() -> None:
    assert Machine().live(300, runs=0, departures=0.5) == []


@pytest.mark.parametrize(
    ("claimed_mb", "run_mb", "critical_mb"),
    [
        (1, 1, 256 - 16 - 16 - 8),  # a 16th at least
        (20, 10, 256 - 16 - 25 - 8),
        (20, 40, 256 - 16 - 40 - 8),
        (60, 60, 192),  # never more than by default
    ],
)
def test_the_room_is_what_runs_take_with_a_margin(claimed_mb: int, run_mb: int, critical_mb: int) -> None:
    machine = Machine()
    machine.live(400, departures=0.5, claimed_bytes=claimed_mb * MB, run_bytes=run_mb * MB)
    assert machine.adaptive.thresholds.critical_bytes == critical_mb * MB


def test_a_run_that_wants_more_has_it_at_once_and_for_a_day() -> None:
    machine = Machine()
    machine.live(300, departures=0.5, claimed_bytes=4 * MB)
    decision = machine.adaptive.want(50 * MB, machine.now)
    assert decision is not None
    assert decision.rule == "room"
    assert decision.thresholds.critical_bytes == 192 * MB
    assert decision.thresholds.warning_bytes == 172 * MB
    assert machine.adaptive.want(50 * MB, machine.now) is None
    assert machine.live(3600, departures=0.5, claimed_bytes=4 * MB, every_s=5) == []
    assert {step.rule for step in machine.live(25 * 3600, departures=0.5, claimed_bytes=4 * MB, every_s=20)} == {"more"}


def test_runs_together_do_not_reach_critical_where_warning_has_gone_up() -> None:
    machine = Machine()
    machine.live(400, departures=0.5, claimed_bytes=4 * MB, extra_bytes=10 * MB)
    raised = machine.adaptive.thresholds
    assert (raised.warning_bytes, raised.critical_bytes) == (206 * MB, 216 * MB)
    (burst,) = machine.live(1, claimed_bytes=24 * MB)
    assert burst.rule == "room"
    assert burst.thresholds.warning_bytes == 192 * MB
    assert burst.thresholds.critical_bytes == 216 * MB
    assert "24.0 MB at the most, which would reach critical" in burst.reason
    assert machine.live(400, departures=0.5, claimed_bytes=4 * MB) == []  # ten minutes of work
    assert {step.rule for step in machine.live(400, departures=0.5, claimed_bytes=4 * MB)} == {"more"}


def test_what_runs_take_together_is_no_reason_to_go_below_the_fixed_warning() -> None:
    machine = Machine()
    assert machine.live(400, departures=0.5, claimed_bytes=50 * MB) == []


def test_a_page_cache_that_is_read_again_is_given_room_within_seconds_and_warning_pays_not_critical() -> None:
    machine = Machine()
    machine.live(60)
    (first,) = machine.live(7, refaulted=60 * MB)
    assert first.rule == "cache"
    assert first.at_s <= 66
    assert first.thresholds.warning_bytes == 170 * MB - round(256 * MB / 12)
    assert first.thresholds.critical_bytes == FIXED.critical_bytes
    assert "MB of file pages are read again each second, the page cache holds 80.0 MB" in first.reason


def test_what_pays_is_kept_and_goes_on_until_it_is_calm() -> None:
    machine = Machine()
    machine.live(60)
    machine.live(6, refaulted=60 * MB)
    steps = machine.live(12, refaulted=40 * MB, usage_bytes=149 * MB, resident_bytes=89 * MB)
    assert [step.rule for step in steps] == ["cache"]
    assert machine.live(100, usage_bytes=128 * MB, resident_bytes=68 * MB) == []
    assert machine.adaptive.thresholds == steps[0].thresholds


def test_what_does_not_pay_is_undone_and_not_tried_again_for_longer_each_time() -> None:
    machine = Machine()
    machine.live(60)
    steps = machine.live(1200, refaulted=60 * MB)
    downs = [step for step in steps if step.rule == "cache"]
    undone = [step for step in steps if step.rule == "undone"]
    assert len(downs) == len(undone) <= 5
    assert all(9 <= after.at_s - before.at_s <= 12 for before, after in zip(downs, undone, strict=True))
    waits = [after.at_s - before.at_s for before, after in zip(undone, downs[1:], strict=False)]
    assert waits == sorted(waits)
    assert waits[0] >= 60
    assert machine.adaptive.thresholds == FIXED
    assert "did not pay" in undone[0].reason


def test_a_step_up_that_the_page_cache_suffers_from_is_undone() -> None:
    machine = Machine()
    while not machine.decisions:
        machine.live(1, departures=0.5)
    raised = machine.adaptive.thresholds
    undone, *_ = machine.live(11, departures=0.5, refaulted=60 * MB)
    assert undone.rule == "undone"
    assert undone.thresholds == FIXED
    assert raised.warning_bytes > FIXED.warning_bytes
    assert "more" not in {step.rule for step in machine.live(200, departures=0.5)}


@pytest.mark.parametrize(("load_s", "is_undone"), [(0.0, True), (0.6, False)])
def test_where_runs_are_too_few_to_tell_a_step_up_is_undone_for_pages_that_no_load_reads(
    load_s: float, is_undone: bool
) -> None:
    machine = Machine()
    while not machine.decisions:
        machine.live(1, runs=40 if machine.now < 20 else 0, departures=0.5, load_s=0.6)
    steps = machine.live(11, runs=0, departures=0.5, refaulted=60 * MB, load_s=load_s)
    assert ("undone" in {step.rule for step in steps}) is is_undone


def test_what_has_paid_is_not_taken_back_for_minutes_unless_each_run_costs_far_more_now() -> None:
    for load_s, after_s in ((0.05, 300), (2.0, 120)):
        machine = Machine()
        machine.live(60)
        (down,) = machine.live(7, refaulted=60 * MB)
        machine.live(30, usage_bytes=149 * MB, resident_bytes=89 * MB)
        first, *_ = machine.live(330, departures=0.5, load_s=load_s, usage_bytes=149 * MB, resident_bytes=89 * MB)
        assert first.rule == "more"
        assert after_s <= first.at_s - down.at_s <= after_s + 12
        grown_bytes = first.thresholds.warning_bytes - down.thresholds.warning_bytes
        assert grown_bytes == round(256 * MB / (32 if load_s < 0.1 else 12))


def test_a_wait_that_another_load_has_ended_does_not_begin_again_when_it_costs_less() -> None:
    machine = Machine()
    machine.live(60)
    machine.live(7, refaulted=60 * MB)
    machine.live(80, usage_bytes=149 * MB, resident_bytes=89 * MB)
    first, *_ = machine.live(40, departures=0.5, load_s=2.0)
    second, *_ = machine.live(30, departures=0.5, load_s=0.05)
    assert first.rule == second.rule == "more"
    assert second.at_s - first.at_s <= 30


def test_where_nothing_could_leave_to_the_page_cache_nothing_is_moved() -> None:
    machine = Machine()
    assert machine.live(120, refaulted=60 * MB, usage_bytes=62 * MB, resident_bytes=2 * MB) == []
    pinned = Machine()
    assert pinned.live(120, refaulted=60 * MB, kept_bytes=110 * MB) == []


def test_never_below_the_baseline_and_one_model() -> None:
    machine = Machine()
    machine.live(10, largest_model_bytes=80 * MB)
    refaulted = 100 * MB
    for _ in range(20):
        refaulted = refaulted * 3 // 4
        machine.live(15, refaulted=refaulted + 30 * MB)
    assert machine.adaptive.thresholds.warning_bytes >= 140 * MB


def test_models_that_are_pinned_do_not_get_the_room_of_runs() -> None:
    machine = Machine()
    machine.live(300, departures=0.5)
    assert machine.adaptive.thresholds.critical_bytes > FIXED.critical_bytes
    (step,) = machine.live(10, kept_bytes=115 * MB)
    assert step.rule == "room"
    assert step.thresholds.critical_bytes == FIXED.critical_bytes


def test_what_the_user_has_set_is_the_highest() -> None:
    fixed = replace(FIXED, warning_bytes=150 * MB, critical_bytes=190 * MB)
    guards = replace(GUARDS, fixed=fixed, highest_warning_bytes=150 * MB, highest_critical_bytes=190 * MB)
    machine = Machine(Adaptive(guards))
    assert machine.live(300, departures=0.5) == []
    only_critical = Machine(Adaptive(replace(guards, highest_warning_bytes=None)))
    only_critical.live(300, departures=0.5, extra_bytes=10 * MB)
    found = only_critical.adaptive.thresholds
    assert (found.warning_bytes, found.critical_bytes) == (180 * MB, 190 * MB)


def test_loads_that_overshoot_lower_critical_by_as_much_at_the_next_move() -> None:
    machine = Machine()
    machine.live(300, departures=0.5, over_bytes=6 * MB)
    assert machine.adaptive.thresholds.critical_bytes == 210 * MB


def test_another_limit_begins_anew_and_keeps_what_is_known_of_runs() -> None:
    machine = Machine()
    machine.live(300, departures=0.5, run_bytes=12 * MB)
    other = Guards(Thresholds(128 * MB, 60 * MB, 78 * MB, 96 * MB, 30 * MB), 8 * MB, 32 * MB)
    machine.adaptive.rebase(other)
    assert machine.adaptive.thresholds == other.fixed
    assert machine.adaptive.learnt.largest_run_bytes == 12 * MB


# --- an hour ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOADS)
def test_an_hour_of_any_load_settles(name: str) -> None:
    hour = live(LOADS[name], seed=1, check=lambda decision: check(decision.thresholds, GUARDS))
    made = [(decision.at_s, decision.rule) for decision in hour.decisions]
    assert hour.turns <= 12, made
    assert hour.after(1200) <= 8 or LOADS[name].shift_mb or LOADS[name].other, made
    assert len(hour.decisions) <= 30 or LOADS[name].other, made


def test_a_load_that_changes_to_and_fro_has_its_thresholds_within_a_minute_and_keeps_them() -> None:
    hour = live(LOADS["phases"], seed=1)
    for start_s in range(0, 3600, 300):
        own = [decision for decision in hour.decisions if start_s <= decision.at_s < start_s + 300]
        is_thrash = start_s % 600 == 0
        assert {decision.rule for decision in own} == {"cache" if is_thrash else "more"}
        assert own[-1].at_s <= start_s + 60
        assert own[-1].thresholds.warning_bytes == (88 if is_thrash else 172) * MB


# --- from one start to the next ---------------------------------------------------------------------


def test_what_is_learnt_can_be_written_and_read() -> None:
    machine = Machine()
    machine.live(300, departures=0.5, claimed_bytes=20 * MB, run_bytes=10 * MB, extra_bytes=5 * MB, over_bytes=MB)
    table = json.loads(json.dumps(machine.adaptive.learnt.to_table()))
    again = Learnt.from_table(table)
    assert again.as_dict() == machine.adaptive.learnt.as_dict()
    warning_bytes = machine.adaptive.thresholds.warning_bytes
    restarted = Adaptive(GUARDS, again, warning_bytes=warning_bytes)
    assert restarted.thresholds == machine.adaptive.thresholds


def test_a_warning_of_before_is_held_to_the_guards_of_now() -> None:
    assert Adaptive(GUARDS, warning_bytes=250 * MB).thresholds == FIXED  # nothing is learnt
    found = Adaptive(GUARDS, warning_bytes=5 * MB).thresholds
    assert found.warning_bytes == 88 * MB
    check(found, GUARDS)


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True, 1 << 60, {}])
@pytest.mark.parametrize("name", ["runs", "hours", "claimed", "extra", "over"])
def test_garbage_is_refused(name: str, value: object) -> None:
    table = Learnt().to_table()
    table[name] = value if name == "runs" else [value]
    with pytest.raises((ValueError, TypeError)):
        Learnt.from_table(table)
