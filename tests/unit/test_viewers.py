"""Who looks all the time: one snapshot for all at a tick, events once each, nothing queued, nothing left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from modelhost.errors import HostClosed, Overloaded
from modelhost.memory.events import History, Level
from modelhost.monitor.viewers import BEGINNING, HEARTBEAT, HEARTBEAT_S, TICK_S, Viewer, Viewers, snapshot_frame

pytestmark = pytest.mark.anyio


class Scene:
    """Viewers whose ticks and clock a test moves; snapshots are numbered."""

    def __init__(self, *, limit: int = 32) -> None:
        self.now, self.made = 1000.0, 0
        self.history = History(10)
        self.fails = False
        self.may_make = asyncio.Event()
        self.may_make.set()
        self.viewers = Viewers(self.make, self.history, limit=limit, clock=lambda: self.now, sleep=self.sleep)
        self.ticks = 0

    async def make(self) -> object:
        self.made += 1
        made = self.made
        await self.may_make.wait()
        if self.fails:
            raise OSError("the disk")
        return {"number": made}

    async def sleep(self, seconds: float) -> None:
        await asyncio.get_running_loop().create_future()

    async def tick(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.now += TICK_S
            await self.viewers.tick()

    def happen(self, kind: str = "level") -> None:
        self.history.add(kind, level=Level.WARNING, usage_bytes=7, cause="test")
        self.viewers.look()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    scene.viewers.close()


class Reader:
    """Reads what a viewer is sent, as far as there is something; None is its end."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer, self._chunks = viewer, viewer.chunks()
        self._reading: asyncio.Task[bytes | None] | None = None

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)

    async def read(self) -> bytes | None:
        reading, self._reading = self._reading or asyncio.ensure_future(self._next()), None
        return await asyncio.wait_for(reading, 5)

    async def begin(self) -> bytes | None:
        """Returns the first snapshot."""
        assert await self.read() == BEGINNING
        return await self.read()

    async def nothing(self) -> bool:
        """Says whether nothing is there to be read."""
        self._reading = self._reading or asyncio.ensure_future(self._next())
        for _ in range(5):
            await asyncio.sleep(0)
        return not self._reading.done()


def numbered(number: int) -> bytes:
    return snapshot_frame({"number": number})


async def test_the_first_snapshot_comes_at_once_and_is_shared_by_who_comes_within_a_tick(scene: Scene) -> None:
    readers = [Reader(scene.viewers.join(1.0)) for _ in range(3)]
    assert [await reader.begin() for reader in readers] == [numbered(1)] * 3
    scene.now += TICK_S
    assert await Reader(scene.viewers.join(1.0)).begin() == numbered(2)


async def test_who_comes_while_a_snapshot_is_made_shares_it(scene: Scene) -> None:
    scene.may_make.clear()
    reading = [asyncio.ensure_future(Reader(scene.viewers.join(1.0)).begin()) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    scene.may_make.set()
    assert await asyncio.gather(*reading) == [numbered(1)] * 3


async def test_a_tick_makes_one_snapshot_for_all_whose_interval_is_over(scene: Scene) -> None:
    often, seldom = Reader(scene.viewers.join(0.5)), Reader(scene.viewers.join(2.0))
    await often.begin()
    await seldom.begin()
    for number in (2, 3, 4):
        await scene.tick()
        assert await often.read() == numbered(number)
    await scene.tick()
    assert (await often.read(), await seldom.read()) == (numbered(5), numbered(5))
    assert scene.made == 5


async def test_where_none_is_due_nothing_is_made_and_without_viewers_nothing_ticks(scene: Scene) -> None:
    assert scene.viewers._ticking is None
    viewer = scene.viewers.join(60.0)
    ticking = scene.viewers._ticking
    assert ticking is not None
    await scene.tick(5)
    assert scene.made == 0
    viewer.leave()
    assert (scene.viewers._ticking, len(scene.viewers)) == (None, 0)
    with pytest.raises(asyncio.CancelledError):
        await ticking
    scene.happen()
    viewer.leave()


async def test_nothing_is_queued_for_who_is_slow(scene: Scene) -> None:
    slow = Reader(scene.viewers.join(0.5))
    await slow.begin()
    await scene.tick(10)
    assert await slow.read() == numbered(11)
    assert await slow.nothing()


async def test_events_are_told_once_each_in_order_with_ids(scene: Scene) -> None:
    scene.happen("before")
    reader = Reader(scene.viewers.join(1.0))
    await reader.begin()
    assert await reader.nothing()
    scene.happen("first")
    lines = (await reader.read()).decode().splitlines()
    assert lines[:2] == ["event: memory", "id: 2"]
    assert json.loads(lines[2].removeprefix("data: "))["kind"] == "first"
    scene.happen("second")
    scene.happen("third")
    assert [line for line in (await reader.read()).decode().splitlines() if line.startswith("id")] == ["id: 3", "id: 4"]
    assert await reader.nothing()


@pytest.mark.parametrize(("seen_id", "told"), [(None, []), (2, [3]), (3, []), (0, [1, 2, 3]), (99, [1, 2, 3])])
async def test_who_comes_back_goes_on_behind_what_it_has_seen(
    scene: Scene, seen_id: int | None, told: list[int]
) -> None:
    for _ in range(3):
        scene.happen()
    first = await Reader(scene.viewers.join(1.0, seen_id)).begin()
    assert [int(line[4:]) for line in first.splitlines() if line.startswith(b"id: ")] == told
    assert first.endswith(numbered(1))


async def test_frames_are_lines_that_end_with_an_empty_one() -> None:
    frame = snapshot_frame({"text": "two\nlines\r and \u2028"})
    assert frame.startswith(b"event: snapshot\ndata: {")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 3
    assert b"\r" not in frame


async def test_a_comment_comes_where_there_was_nothing_for_long(scene: Scene) -> None:
    reader = Reader(scene.viewers.join(60.0))
    await reader.begin()
    assert await reader.nothing()
    scene.now += HEARTBEAT_S - 1
    scene.viewers.look()
    assert await reader.nothing()
    scene.now += 1
    scene.viewers.look()
    assert await reader.read() == HEARTBEAT
    scene.viewers.look()
    assert await reader.nothing()


async def test_too_many_are_refused_with_the_figures(scene: Scene) -> None:
    scene = Scene(limit=2)
    first = scene.viewers.join(1.0)
    scene.viewers.join(1.0)
    with pytest.raises(Overloaded, match="2 views are open, which is the limit"):
        scene.viewers.join(1.0)
    first.leave()
    scene.viewers.join(1.0)
    scene.viewers.close()


async def test_all_end_at_the_end_and_those_that_take_nothing_are_cut_off(scene: Scene) -> None:
    waiting, sending = Reader(scene.viewers.join(1.0)), Reader(scene.viewers.join(1.0))
    cut_off = []
    waiting.viewer.cut_off = lambda: cut_off.append("waiting")
    sending.viewer.cut_off = lambda: cut_off.append("sending")
    await waiting.begin()
    assert await waiting.nothing()
    await sending.begin()  # and has not come back for more
    scene.viewers.close()
    assert (await waiting.read(), await sending.read()) == (None, None)
    assert cut_off == ["sending"]
    with pytest.raises(HostClosed):
        scene.viewers.join(1.0)


async def test_a_snapshot_that_cannot_be_made_ends_no_view(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    steps: asyncio.Queue[None] = asyncio.Queue()
    sleeps = 0

    async def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        await steps.get()
        scene.now += seconds

    scene.viewers = Viewers(scene.make, scene.history, clock=lambda: scene.now, sleep=sleep)
    reader = Reader(scene.viewers.join(0.5))
    await reader.begin()
    scene.fails = True
    steps.put_nowait(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (sleeps, caplog.messages) == (2, ["a snapshot for views could not be made"])
    scene.fails = False
    steps.put_nowait(None)
    assert await reader.read() == numbered(3)
    reader.viewer.leave()
