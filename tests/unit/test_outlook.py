"""What an open host says of memory that grows."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_care import MB, host_of

from modelhost.memory import MemoryManager
from modelhost.outlook import MEMORY_GROWS, Outlook
from modelhost.runtime.fake import FakeMemory

pytestmark = pytest.mark.anyio


class Watched:
    """An outlook on a scripted machine and clock."""

    def __init__(self, host: object) -> None:
        self.now = 0.0
        self.memory: MemoryManager = host.memory  # type: ignore[attr-defined]
        self.outlook = Outlook(self.memory, host.pool, host.conditions, clock=lambda: self.now)  # type: ignore[attr-defined]

    def live(self, seconds: int, bytes_per_s: int) -> None:
        machine = self.memory.probe
        assert isinstance(machine, FakeMemory)
        for _ in range(seconds):
            self.now += 1
            machine.other_bytes += bytes_per_s
            self.memory.memory_info()
            self.outlook.look()


async def test_growth_is_a_condition_with_its_figures_until_it_is_over(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watched = Watched(host)
        watched.live(60, MB // 2)
        (told,) = [held for held in host.conditions.snapshot() if held.name == MEMORY_GROWS]
        assert "reaches critical in" in told.text
        assert watched.outlook.as_dict()["growth"]["bytes_per_s"] == pytest.approx(MB / 2, rel=0.05)
        left_s = watched.outlook.as_dict()["to_critical_s"]
        assert left_s["soonest"] <= left_s["expected"] <= left_s["latest"]
        assert [event.kind for event in host.memory.history.snapshot()].count("growth") == 1
        watched.live(300, 0)
        assert not host.conditions.holds(MEMORY_GROWS)
        assert watched.outlook.as_dict() == {
            "growth": None,
            "place": None,
            "to_warning_s": None,
            "to_critical_s": None,
        }


async def test_what_models_hold_is_no_growth(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watched = Watched(host)
        watched.live(60, 0)
        await host.pool.load("a")
        watched.live(60, 0)
        assert watched.outlook.forecast.growth is None
