"""What asks before something is done: which model to load, whether to clean up; and what explains the keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeAlias

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from modelhost.cli.segments import printable

#: Of what the host takes, 256 letters, half.
_LONGEST_SEARCH: Final = 128

#: Gets what the host answered, or why it did not, on the view's thread.
Answer: TypeAlias = Callable[[dict[str, Any] | None, str | None], None]
#: Has the host asked for the models that match a text.
Search: TypeAlias = Callable[[str, Answer], None]


_HELP: Final = """\
arrows   choose a model        l  load one (search)      u  unload it
p        pin or unpin it       c  clean up: unload all that is idle
s, S     next order, turn it   /  filter by name         Esc  no filter
r        look now              t  dark or light          q  quit

bar      # the host itself   = models   > models being loaded
         ~ activations of runs   : weights in the page cache,
         which are beside usage: the kernel takes them back
marks    b baseline: the idle host   w warning: idle models leave
         C critical: nothing loads beyond it   ] the limit
table    P pinned: stays whatever comes; committed: what the model
         holds; in cache: of its weights, in the page cache;
         req/s, p50, p99: of the last 10 to 20 seconds"""

#: Of all three, within the view's own.
FRAME: Final = """
    LoadDialog, ConfirmDialog, HelpDialog { align: center middle; }
    .dialog {
        width: 76; max-width: 100%; height: auto; max-height: 90%;
        border: round $primary; padding: 0 1; background: $surface;
    }
    #found { height: auto; max-height: 12; border: none; }
    #search { border: none; height: 1; padding: 0; margin: 1 0; }
"""


class LoadDialog(ModalScreen[str | None]):
    """Finds a model of the repository by a part of its name; ends with the name that was chosen, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Back"),
        Binding("up", "move(-1)", "Up", show=False, priority=True),
        Binding("down", "move(1)", "Down", show=False, priority=True),
    ]

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search
        self._is_asking = False
        self._asked = ""
        self._names: list[str] = []

    def compose(self) -> ComposeResult:
        """Input, what was found, and how much that is."""
        with Vertical(classes="dialog"):
            yield Static(Text("Load a model: a part of its name, Enter loads, Esc goes back"))
            yield Input(placeholder="name", id="search", max_length=_LONGEST_SEARCH)
            yield OptionList(id="found")
            yield Static(id="count")

    def on_mount(self) -> None:
        """Shows what there is before anything is typed."""
        self.query_one("#found", OptionList).can_focus = False
        self.query_one(Input).focus()
        self._ask()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Asks for what matches now, unless an answer is still on its way."""
        event.stop()
        if not self._is_asking and event.value != self._asked:
            self._ask()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Takes the name that is marked."""
        event.stop()
        marked = self.query_one("#found", OptionList).highlighted
        if marked is not None:
            self.dismiss(self._names[marked])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Takes the name that was clicked on."""
        event.stop()
        self.dismiss(self._names[event.option_index])

    def action_move(self, step: int) -> None:
        """Marks another name; the keys go on to the input."""
        found = self.query_one("#found", OptionList)
        if step > 0:
            found.action_cursor_down()
        else:
            found.action_cursor_up()

    def _ask(self) -> None:
        self._asked, self._is_asking = self.query_one(Input).value, True
        self._search(self._asked, self._take)

    def _take(self, answer: dict[str, Any] | None, error: str | None) -> None:
        self._is_asking = False
        if not self.is_mounted:
            return
        if answer is None:
            self.query_one("#count", Static).update(Text(error or "no answer"))
            return
        self._show(answer["models"], answer["total"])
        if self.query_one(Input).value != self._asked:  # typed on meanwhile
            self._ask()

    def _show(self, models: list[dict[str, Any]], total: int) -> None:
        found = self.query_one("#found", OptionList)
        self._names = [model["name"] for model in models]
        found.clear_options()
        found.add_options(Option(Text(_described(model), no_wrap=True)) for model in models)
        if models:
            found.highlighted = 0
        more = f"{len(models)} of {total}; type more of the name" if total > len(models) else f"{total} found"
        self.query_one("#count", Static).update(Text(more))


def _described(model: dict[str, Any]) -> str:
    state = "on disk" if model["state"] == "UNAVAILABLE" else str(model["state"])
    pinned = ", pinned" if model["pinned"] else ""
    return printable(f"{model['name']}  (versions {', '.join(model['versions'])}; {state}{pinned})")


class ConfirmDialog(ModalScreen[bool]):
    """Asks whether something is to be done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "end(True)", "Yes"),
        Binding("n,escape,q", "end(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question, and the keys that answer it."""
        with Vertical(classes="dialog"):
            yield Static(Text(f"{self._question}\n\ny yes    n no"))

    def action_end(self, answer: bool) -> None:
        """Ends with the answer."""
        self.dismiss(answer)


class HelpDialog(ModalScreen[None]):
    """Explains keys, bar and table."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter,space", "dismiss", "Back")]

    def compose(self) -> ComposeResult:
        """The text."""
        with Vertical(classes="dialog"):
            yield Static(Text(_HELP))
