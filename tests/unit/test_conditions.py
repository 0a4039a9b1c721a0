"""What is not as it should be: told once when it begins and once when it ends, whatever the clock does."""

from __future__ import annotations

import logging

import pytest

from modelhost.conditions import Conditions


def test_a_condition_is_logged_when_it_begins_and_when_it_ends_and_not_between(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    at = [1000.0]
    conditions = Conditions(wall_clock=lambda: at[0])
    conditions.clear("disk_full")
    conditions.note("disk_full", "5 MB are free")
    at[0] += 60
    conditions.note("disk_full", "4 MB are free")
    conditions.note("probe_unreadable", "it is gone")
    assert [held.as_dict() for held in conditions.snapshot()] == [
        {"name": "disk_full", "text": "4 MB are free", "since": 1000.0},
        {"name": "probe_unreadable", "text": "it is gone", "since": 1060.0},
    ]
    conditions.clear("disk_full")
    assert not conditions.holds("disk_full")
    assert conditions.holds("probe_unreadable")
    assert [record.getMessage() for record in caplog.records] == [
        "disk_full: 5 MB are free",
        "probe_unreadable: it is gone",
        "disk_full is over, after 60 s",
    ]


def test_a_clock_that_jumps_back_ends_a_condition_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    at = [1_000_000.0]
    conditions = Conditions(wall_clock=lambda: at[0])
    conditions.note("disk_full", "")
    at[0] = 5.0
    conditions.clear("disk_full")
    assert conditions.snapshot() == ()
    assert caplog.messages[-1] == "disk_full is over, after 0 s"
