"""Runs that find the arena full wait for it, and do not fail for want of luck."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from pool_stage import FEEDS, Stage, soon

from modelhost.errors import ActivationsFull
from modelhost.runtime.fake import FakeModel, FakeScript

pytestmark = pytest.mark.anyio


async def test_runs_that_fill_the_arena_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = []

    def run(self: FakeModel, feeds: object, outputs: Sequence[str], cancel: object) -> list[object]:
        running.append(1)
        try:
            if len(running) > 1:
                raise ActivationsFull("full", needed_bytes=2, available_bytes=1)
            return [FEEDS["x"]]
        finally:
            running.pop()

    monkeypatch.setattr(FakeModel, "run", run)
    async with Stage(tmp_path, {"a": FakeScript()}) as stage:
        async with stage.pool.lease("a") as lease:
            answers = await soon(asyncio.gather(*(lease.run(FEEDS) for _ in range(50))))
        assert len(answers) == 50
        assert stage.info("a").leases == 0
        assert stage.pool.runner.in_flight == 0
