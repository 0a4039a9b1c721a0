"""The live view: textual's side of it. What is shown is the board's, what is asked the source's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.timer import Timer
from textual.widgets import DataTable, Footer, Input, Static

from modelhost.cli.client import RequestFailed
from modelhost.cli.segments import Line, Role, printable
from modelhost.cli.top.board import Board
from modelhost.cli.top.dialogs import FRAME, Answer, ConfirmDialog, HelpDialog, LoadDialog
from modelhost.cli.top.grid import ModelGrid
from modelhost.cli.top.looks import DARK, LIGHT, block, text
from modelhost.cli.top.models import sort_of
from modelhost.cli.top.source import Source
from modelhost.units import format_bytes, format_duration

#: Ages are drawn again this often, whatever the interval.
_REDRAW_S: Final = 1.0
_LEAST_EVENTS: Final = 4
#: What is narrower is cut off.
_LEAST_WIDTH: Final = 20

T = TypeVar("T")


_PANES: Final = """
    Screen { layout: vertical; }
    #overview, #title { height: auto; width: 100%; }
    #models { height: 1fr; min-height: 3; scrollbar-size: 1 1; overflow-x: hidden; }
    #filter { display: none; border: none; height: 1; padding: 0; }
    #filter.open { display: block; }
    #events { scrollbar-size: 1 1; border-top: solid $panel-lighten-2; border-title-color: $text; }
    #log { width: 100%; height: auto; }
"""


def in_background(work: Callable[[], None]) -> None:
    """Runs `work` on a thread that the program's end does not wait for: a host may be long silent."""
    threading.Thread(target=work, daemon=True).start()


class TopApp(App[None]):
    """The live view of one host; `spawn` runs what waits. Textual's event loop, and nothing waits on it."""

    ENABLE_COMMAND_PALETTE = False
    CSS = FRAME + _PANES
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "load", "Load"),
        Binding("u", "unload", "Unload"),
        Binding("p", "pin", "Pin"),
        Binding("c", "clean_up", "Clean up"),
        Binding("s", "sort", "Sort"),
        Binding("S", "turn", "Turn the order", show=False),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "no_filter", "No filter", show=False),
        Binding("r", "look", "Look now", show=False),
        Binding("t", "turn_theme", "Dark or light", show=False),
        Binding("question_mark", "explain", "Help", key_display="?"),
        Binding("q,ctrl+c", "quit", "Quit", key_display="q"),
    ]

    class Looked(Message):
        """A look has ended, with a snapshot or with an error."""

        def __init__(self, snapshot: dict[str, Any] | None, error: str | None) -> None:
            super().__init__()
            self.snapshot, self.error = snapshot, error

    class Done(Message):
        """Something that was asked for has ended; `then` is called with what came of it, on the view's thread."""

        def __init__(self, then: Callable[[], None]) -> None:
            super().__init__()
            self.then = then

    def __init__(
        self,
        source: Source,
        first: dict[str, Any],
        *,
        interval_s: float,
        sort: str = "committed",
        is_reversed: bool = False,
        spawn: Callable[[Callable[[], None]], None] = in_background,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.animation_level = "none"  # over slow lines, too
        self._source, self._spawn, self._clock = source, spawn, clock
        self.board = Board(source.url, first, clock(), interval_s=interval_s, sort=sort, is_reversed=is_reversed)
        self._is_looking = False
        self._drawn_s = 0.0
        self._next_look: Timer | None = None
        self._event_lines: list[Line] = []

    # --- parts -------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Figures above, models in the middle, events below, keys at the bottom."""
        yield Static(id="overview")
        yield Static(id="title")
        yield ModelGrid(id="models")
        yield Input(placeholder="a part of the name; Enter keeps it, Esc shows all", id="filter")
        with VerticalScroll(id="events"):
            yield Static(id="log")
        yield Footer()

    def on_mount(self) -> None:
        """Draws the first figures, and begins to look."""
        events_pane = self.query_one("#events")
        events_pane.border_title = "events"
        events_pane.can_focus = False
        self._grid.focus()
        self._draw()
        self._look_later()
        self.set_interval(_REDRAW_S, self._draw_ages)

    def on_resize(self, event: events.Resize) -> None:
        """Gives the events a fifth, and draws everything as wide as there is room."""
        for pane in self.query("#events"):
            pane.styles.height = 1 + max(_LEAST_EVENTS, event.size.height // 5)
        self._draw()

    @property
    def _grid(self) -> ModelGrid:
        return self.query_one("#models", ModelGrid)

    @property
    def _looks(self) -> dict[Role, str]:
        return DARK if self.current_theme.dark else LIGHT

    # --- looking -----------------------------------------------------------------------------------

    def action_look(self) -> None:
        """Asks the host for its figures, unless an answer is on its way."""
        if self._is_looking:
            return
        self._is_looking = True
        self._spawn(self._look)

    def _look(self) -> None:
        """On a thread of its own."""
        self._tell(self.Looked(*_outcome(self._source.look)))

    def _tell(self, message: Message) -> None:
        """From any thread; nobody is told any more where the view has ended meanwhile."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.post_message(message)

    def on_top_app_looked(self, message: Looked) -> None:
        """Shows what came of a look, and sees to the next one."""
        self._is_looking = False
        if message.snapshot is not None:
            self.board.answered(message.snapshot, self._clock())
        else:
            self.board.failed(message.error or "no answer", self._clock())
        self._draw()
        self._look_later()

    def _look_later(self) -> None:
        if self._next_look is not None:
            self._next_look.stop()
        self._next_look = self.set_timer(max(0.0, self.board.link.next_s - self._clock()), self.action_look)

    # --- drawing -----------------------------------------------------------------------------------

    def _draw_ages(self) -> None:
        """Draws again where no answer has had that done a moment ago."""
        if self._clock() - self._drawn_s > _REDRAW_S / 2:
            self._draw()

    def _draw(self) -> None:
        if not self.query("#log"):  # not made yet, or gone with the view's end
            return
        self._drawn_s = now_s = self._clock()
        width, looks = max(_LEAST_WIDTH, self.size.width), self._looks
        self.query_one("#overview", Static).update(block(self.board.overview(width, now_s), looks))
        self.query_one("#title", Static).update(text(self.board.title(width), looks))
        self._grid.show(self.board.table(max(1, width - 1), now_s), looks)  # the last column is the scroll bar's
        lines = self.board.events.shown(max(1, width - 1))
        if lines != self._event_lines:
            self._event_lines = lines
            self.query_one("#log", Static).update(block(lines, looks))
            self.query_one("#events", VerticalScroll).scroll_end(animate=False)

    # --- keys --------------------------------------------------------------------------------------

    def action_sort(self) -> None:
        """Goes on to the next order."""
        self.board.sort_by_next()
        self._draw()

    def action_turn(self) -> None:
        """Turns the order round."""
        self.board.sort_by(self.board.sort)
        self._draw()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """Sorts by the column whose head was clicked on."""
        sort = sort_of(str(event.column_key.value))
        if sort is not None:
            self.board.sort_by(sort)
            self._draw()

    def action_filter(self) -> None:
        """Opens the line for the filter."""
        line = self.query_one("#filter", Input)
        line.add_class("open")
        line.focus()

    def action_no_filter(self) -> None:
        """Shows all models."""
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filters as it is typed."""
        self.board.search = event.value
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keeps the filter, and goes back to the table."""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).remove_class("open")
        self._grid.focus()

    def action_turn_theme(self) -> None:
        """Dark, or light."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"
        self._event_lines = []
        self._draw()

    def action_explain(self) -> None:
        """Shows what the keys do, and what the letters stand for."""
        self.push_screen(HelpDialog())

    # --- doing -------------------------------------------------------------------------------------

    def action_load(self) -> None:
        """Asks for a model, and has it loaded."""

        def chosen(name: str | None) -> None:
            if name is not None:
                self._grid.mark(name)
                self._do(f"load {name}", partial(self._source.load, name))

        def search(text: str, then: Answer) -> None:
            self._ask(partial(self._source.search, text), then)

        self.push_screen(LoadDialog(search), chosen)

    def action_unload(self) -> None:
        """Has the marked model unloaded; asks first where it is pinned."""
        row = self._grid.marked
        if row is None:
            return
        unload = partial(self._do, f"unload {row.name}", partial(self._source.unload, row.name))
        if row.is_pinned:
            self._confirm(f"{row.name} is pinned. Unload all its versions?", unload)
        else:
            unload()

    def action_pin(self) -> None:
        """Pins the marked model, or lets it go again."""
        row = self._grid.marked
        if row is not None:
            what = "unpin" if row.is_pinned else "pin"
            self._do(f"{what} {row.name}", partial(self._source.pin, row.name, pinned=not row.is_pinned))

    def action_clean_up(self) -> None:
        """Has all that is idle unloaded, once that is confirmed."""
        question = "Unload every idle model that is not pinned, and give their memory back?"
        self._confirm(question, partial(self._do, "clean up", self._source.clean_up))

    def _confirm(self, question: str, then: Callable[[], None]) -> None:
        def answered(is_wanted: bool | None) -> None:
            if is_wanted:
                then()

        self.push_screen(ConfirmDialog(printable(question)), answered)

    def _do(self, what: str, work: Callable[[], dict[str, Any] | None]) -> None:
        """Has something done; the events say that it was asked for, and what came of it."""
        began_s = self._clock()

        def ended(found: dict[str, Any] | None, error: str | None) -> None:
            if error is not None:
                self.board.say(f"{what}: {error}", self._clock(), Role.CRITICAL)
            else:
                took = format_duration(self._clock() - began_s)
                self.board.say(f"{what}: done in {took}{_came_back(found)}", self._clock(), Role.GOOD)
            self._draw()
            self.action_look()

        self.board.say(f"{what} ...", began_s)
        self._draw()
        self._ask(work, ended)

    def _ask(self, work: Callable[[], dict[str, Any] | None], then: Answer) -> None:
        """Asks the host on a thread; `then` gets what came of it on the view's."""

        self._spawn(lambda: self._tell(self.Done(partial(then, *_outcome(work)))))

    def on_top_app_done(self, message: Done) -> None:
        """Goes on with what was asked for."""
        message.then()


def _outcome(work: Callable[[], T]) -> tuple[T | None, str | None]:
    """Returns what came of `work`, or why nothing did. On a thread of its own, whose end nobody would see."""
    try:
        return work(), None
    except RequestFailed as error:
        return None, error.message
    except Exception as error:
        return None, f"unexpected: {error!r}"


def _came_back(recovered: dict[str, Any] | None) -> str:
    if recovered is None:
        return ""
    return f", {format_bytes(recovered['freed_bytes'])} came back"
