"""The live view of `modelhost top`, by textual's own pilot: a fake host, a clock that is set, and no threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from fake_monitor import MB, FakeSource, event, model, snapshot
from textual.pilot import Pilot
from textual.widgets import Footer, Input, OptionList, Static

from modelhost.cli.client import RequestFailed
from modelhost.cli.segments import plain
from modelhost.cli.top.app import TopApp, in_background
from modelhost.cli.top.dialogs import ConfirmDialog, LoadDialog
from modelhost.cli.top.grid import ModelGrid

pytestmark = pytest.mark.anyio

NEVER_S = 3600.0


class Stage:
    """The view with its fake host. What waits is done at once, or when the test says so."""

    def __init__(self) -> None:
        self.source, self.now_s = FakeSource(), 100.0
        self.held: list[Callable[[], None]] | None = None
        """What would be on its way to the host, where it is not done at once."""
        first = self.source.look()
        self.app = TopApp(self.source, first, interval_s=NEVER_S, spawn=self._spawn, clock=lambda: self.now_s)
        self.pilot: Pilot[None]

    def _spawn(self, work: Callable[[], None]) -> None:
        if self.held is None:
            work()
        else:
            self.held.append(work)

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await self.pilot.pause(0)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Returns when something has come true: messages make others, of which nobody knows how many."""
        while not holds():
            await self.pilot.pause(0)

    def text(self, part: str) -> str:
        return str(self.app.query_one(part, Static).content)

    @property
    def marked(self) -> str | None:
        row = self.app.query_one(ModelGrid).marked
        return None if row is None else row.name

    @property
    def names(self) -> list[str]:
        grid = self.app.query_one(ModelGrid)
        return [str(grid.get_row_at(row)[0]).strip().removesuffix(":1") for row in range(grid.row_count)]

    @property
    def said(self) -> list[str]:
        return [plain(line)[9:] for line in self.app.board.events.lines]


@asynccontextmanager
async def staged(width: int = 80, height: int = 24) -> AsyncIterator[Stage]:
    stage = Stage()
    async with stage.app.run_test(size=(width, height)) as stage.pilot:
        await stage.until(lambda: stage.app.query_one(ModelGrid).row_count > 0)
        yield stage


@pytest.fixture(autouse=True)
def waits_for_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pilot waits until the process takes no time of the processor; here messages are waited for."""

    async def give_way(*_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr("textual.pilot.wait_for_idle", give_way)
    monkeypatch.setattr("textual.app.wait_for_idle", give_way)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40), (6, 3)])
async def test_everything_has_its_place(width: int, height: int) -> None:
    async with staged(width, height) as stage:
        if width < 20:  # shows what it can, and goes on
            assert stage.names[0].startswith("digits")
            return
        grid, footer = stage.app.query_one(ModelGrid), stage.app.query_one(Footer)
        await stage.until(lambda: footer.region.bottom == height)
        assert "level normal: 96.0 MB of 256.0 MB"[:width] in stage.text("#overview")
        assert len(grid.columns) == (14 if width >= 120 else 9)
        assert stage.names[0] == "digits"
        assert "recovery" in stage.text("#log")
        assert max(map(len, stage.text("#overview").splitlines())) <= width
        assert grid.region.height >= 7
        assert sum(column.get_render_width(grid) for column in grid.columns.values()) == width - 1
        assert stage.app.query_one("#events").region.bottom == footer.region.y


async def test_figures_are_drawn_as_they_come_and_the_cursor_stays_on_its_model() -> None:
    async with staged() as stage:
        await stage.press("down")
        await stage.until(lambda: stage.marked == "wine")
        feed = stage.source.now = snapshot(level="warning", usage_bytes=180 * MB)
        feed["models"] = [model(f"new{n}", committed_bytes=(20 + n) * MB) for n in range(3)] + feed["models"]
        feed["events"].append(event(3, "level", level="warning", **{"from": "normal"}))
        await stage.press("r")
        await stage.until(lambda: "level warning: 180.0 MB" in stage.text("#overview"))
        assert stage.names[:2] == ["new2", "new1"]
        assert stage.marked == "wine"
        assert stage.said[-1] == "level: level warning, was normal, 96.0 MB (request)"
        feed["models"] = feed["models"][:1]
        await stage.press("r")
        await stage.until(lambda: stage.marked == "new0")
        feed["models"] = []
        await stage.press("r")
        await stage.until(lambda: stage.marked is None)
        await stage.press("u", "p")
        assert stage.source.asked == []


async def test_a_host_that_goes_away_is_told_and_looked_for() -> None:
    async with staged() as stage:
        stage.source.error, stage.now_s = RequestFailed("no host answers at http://h (refused)"), 112.0
        await stage.press("r")
        await stage.until(lambda: stage.text("#overview").startswith("NO FIGURES for 12 s"))
        assert stage.names == ["digits", "wine", "iris"]
        assert stage.said[-1] == "no host answers at http://h (refused)"
        stage.source.error, stage.held = None, []
        await stage.press("r", "r")  # one look at a time
        await stage.until(lambda: len(stage.held or []) == 1)
        thread = threading.Thread(target=stage.held.pop())  # which is where answers come from
        thread.start()
        await stage.until(lambda: stage.text("#overview").startswith("modelhost 0.1.0"))
        thread.join()
        assert stage.said[-1] == "the host answers again"
        assert stage.held == []
        assert stage.app.board.link.next_s == stage.now_s + NEVER_S


async def test_models_are_sorted_and_filtered_by_keys() -> None:
    async with staged() as stage:
        stage.source.now["models"] += [model("wide", committed_bytes=5 * MB, cached_bytes=99 * MB)]
        await stage.press("r")
        await stage.until(lambda: stage.names == ["digits", "wide", "wine", "iris"])
        await stage.press("s")
        await stage.until(lambda: stage.names[0] == "wide" and "by in cache" in stage.text("#title"))
        await stage.press("S")
        await stage.until(lambda: stage.names[0] == "digits" and "the other way round" in stage.text("#title"))
        await stage.press("slash", "w", "i")
        await stage.until(lambda: stage.names == ["wide", "wine"] and "2 with 'wi'" in stage.text("#title"))
        await stage.press("q")  # is typed, and ends nothing
        await stage.until(lambda: stage.names == [])
        await stage.press("backspace", "enter")
        await stage.until(lambda: not stage.app.query_one("#filter", Input).display)
        assert len(stage.names) == 2
        await stage.press("escape")
        await stage.until(lambda: len(stage.names) == 4)
        await stage.pilot.click(ModelGrid, offset=(2, 0))
        await stage.until(lambda: stage.app.board.sort == "name")


async def test_a_model_is_found_and_loaded() -> None:
    async with staged() as stage:
        await stage.press("l")
        await stage.until(lambda: isinstance(stage.app.screen, LoadDialog) and bool(stage.source.asked))
        dialog = stage.app.screen
        found, count = dialog.query_one("#found", OptionList), dialog.query_one("#count", Static)
        await stage.until(lambda: str(count.content) == "50 of 60; type more of the name")
        assert found.option_count == 50
        stage.held = []
        await stage.press("5", "1")  # while an answer is on its way the next is asked for after it
        await stage.until(lambda: dialog.query_one(Input).value == "51")
        held, stage.held = stage.held, None
        assert len(held) == 1
        held[0]()
        await stage.until(lambda: found.option_count == 1)
        assert stage.source.asked == [("search", ""), ("search", "5"), ("search", "51")]
        await stage.press("enter")
        await stage.until(lambda: stage.said[-2:] == ["load model51 ...", "load model51: done in 0 s"])
        assert stage.source.asked[-1] == ("load", "model51")
        await stage.press("l")
        await stage.until(lambda: bool(stage.app.screen.query("#found")) and stage.source.asked[-1] == ("search", ""))
        await stage.press("down", "down", "up", "enter")  # another of those found
        await stage.until(lambda: stage.source.asked[-1] == ("load", "model01"))


async def test_a_search_that_is_not_allowed_says_so() -> None:
    async with staged() as stage:
        stage.source.error = RequestFailed("403: the key 'app' is for infer")
        await stage.press("l")
        await stage.until(lambda: isinstance(stage.app.screen, LoadDialog))
        dialog = stage.app.screen
        await stage.until(lambda: "the key 'app'" in str(dialog.query_one("#count", Static).content))
        await stage.press("enter")  # there is none to load
        assert stage.app.screen is dialog
        await stage.press("escape")
        await stage.until(lambda: stage.app.screen is not dialog)


async def test_models_are_unloaded_pinned_and_cleaned_up() -> None:
    async with staged() as stage:
        asked = stage.source.asked
        await stage.press("u")  # which is pinned
        await stage.until(lambda: isinstance(stage.app.screen, ConfirmDialog))
        await stage.press("n")
        await stage.until(lambda: not isinstance(stage.app.screen, ConfirmDialog))
        await stage.press("p", "down")
        await stage.until(lambda: stage.marked == "wine")
        await stage.press("u", "p", "c")
        await stage.until(lambda: isinstance(stage.app.screen, ConfirmDialog))
        assert asked == [("pin", "digits", False), ("unload", "wine"), ("pin", "wine", True)]
        await stage.press("y")
        await stage.until(lambda: asked[-1] == ("clean up",))
        await stage.until(lambda: stage.said[-1] == "clean up: done in 0 s, 14.0 MB came back")
        stage.source.error = RequestFailed("403: the key 'app' is for observe, this needs manage", status=403)
        stage.held = []  # so that no look follows, which would fail as well
        await stage.press("p")
        stage.held.pop()()
        await stage.until(lambda: stage.said[-1] == f"pin wine: {stage.source.error}")
        stage.source.error = ZeroDivisionError()  # a fault of ours is told as well
        await stage.press("u")
        stage.held.pop()()
        await stage.until(lambda: stage.said[-1] == "unload wine: unexpected: ZeroDivisionError()")


async def test_the_keys_are_explained_and_it_is_dark_or_light() -> None:
    async with staged() as stage:
        await stage.press("question_mark")
        await stage.until(lambda: bool(stage.app.screen.query(".dialog Static")))
        shown = str(stage.app.screen.query_one(".dialog Static", Static).content)
        for letter in "lupcsS/rtq":
            assert f"{letter} " in shown or f"{letter}," in shown
        await stage.press("escape", "t")
        await stage.until(lambda: not stage.app.current_theme.dark)


async def test_it_ends_while_the_host_is_silent() -> None:
    source, silent, asked = FakeSource(), threading.Event(), threading.Event()

    def look() -> dict[str, object]:
        asked.set()
        silent.wait(60)
        return snapshot()

    app = TopApp(source, source.look(), interval_s=NEVER_S, spawn=in_background)
    source.look = look  # type: ignore[method-assign]
    async with app.run_test() as pilot:
        await pilot.press("r")
        await asyncio.to_thread(asked.wait)
        await pilot.press("q")
    assert app.return_code == 0
    silent.set()
