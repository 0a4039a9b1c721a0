"""The table of models: which columns there is room for, in which order, and what stands in them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelhost.cli.segments import Role, Segment, fit, printable
from modelhost.units import format_bytes, format_span

#: From so many columns on there is room for the second half of the table: terminals of 120, less a scroll bar.
_WIDE: Final = 119
#: And for two blanks between columns.
_SPACIOUS: Final = 139
_LEAST_NAME: Final = 12
#: Figures are hard to follow from a name that is further away.
_LONGEST_NAME: Final = 40

#: What a model of the feed has that is not in memory.
_ON_DISK: Final = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: what it says of a model, as of `now` in Unix seconds."""

    head: str
    width: int
    text: Callable[[dict[str, Any], float], str]
    is_wide: bool = False
    """Whether it is shown only where there is room."""
    is_text: bool = False
    """Whether it begins at the left; figures end at the right."""


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of the models, the most interesting first."""

    head: str
    """Of the column that it goes by."""
    key: Callable[[dict[str, Any]], float | str | None]
    """What is compared; what has none comes last, either way."""
    is_falling: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """One model as the table shows it; `name` is what the host knows it by."""

    name: str
    version: str
    is_pinned: bool
    is_loaded: bool
    cells: tuple[Segment, ...]

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.name}\0{self.version}"


@dataclass(frozen=True, slots=True)
class Table:
    """Heads and rows, each cell as wide as its column; `gap` goes before each but the first."""

    gap: str
    heads: tuple[Segment, ...]
    rows: tuple[Row, ...]


def is_loaded(model: dict[str, Any]) -> bool:
    """Whether it is in memory, or on its way there."""
    return str(model["state"]) != _ON_DISK


def _bytes(size_bytes: int | None) -> str:
    return "" if size_bytes is None else format_bytes(size_bytes)


def _committed(model: dict[str, Any]) -> str:
    return format_bytes(model["committed_bytes"]) if is_loaded(model) else ""


def figure(value: float | None) -> str:
    """Returns a rate or time in three digits; nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 99.95 or value == 0 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _used(model: dict[str, Any], now: float) -> str:
    return "" if model["last_used"] is None else format_span(max(0, now - model["last_used"]))


def _state(model: dict[str, Any]) -> str:
    return str(model["state"]) if is_loaded(model) else "on disk"


_NAME: Final = "model"
_COLUMNS: Final = (
    Column(_NAME, _LEAST_NAME, lambda model, now: f"{model['name']}:{model['version']}", is_text=True),
    Column("state", 9, lambda model, now: _state(model), is_text=True),
    Column("pin", 3, lambda model, now: "P" if model["pinned"] else "", is_text=True),
    Column("committed", 10, lambda model, now: _committed(model)),
    Column("in cache", 9, lambda model, now: _bytes(model["cached_bytes"])),
    Column("weights", 9, lambda model, now: _bytes(model["weights_bytes"]), is_wide=True),
    Column("req/s", 6, lambda model, now: figure(model["requests_per_s"])),
    Column("p50 ms", 6, lambda model, now: figure(model["p50_ms"])),
    Column("p99 ms", 7, lambda model, now: figure(model["p99_ms"])),
    Column("failed", 7, lambda model, now: str(model["failures"]), is_wide=True),
    Column("loads", 6, lambda model, now: str(model["loads"]), is_wide=True),
    Column("evicted", 8, lambda model, now: str(model["evictions"]), is_wide=True),
    Column("leases", 6, lambda model, now: str(model["leases"]), is_wide=True),
    Column("used", 7, _used),
)

#: By the name of `--sort`, in the order in which a key goes through them.
SORTS: Final[dict[str, Sort]] = {
    "committed": Sort("committed", lambda model: model["committed_bytes"]),
    "cache": Sort("in cache", lambda model: model["cached_bytes"]),
    "requests": Sort("req/s", lambda model: model["requests_per_s"]),
    "p99": Sort("p99 ms", lambda model: model["p99_ms"]),
    "used": Sort("used", lambda model: model["last_used"]),
    "loads": Sort("loads", lambda model: model["loads"]),
    "name": Sort(_NAME, lambda model: model["name"], is_falling=False),
}


def sort_of(head: str) -> str | None:
    """Returns the order that goes by a column; None where there is none."""
    return next((name for name, sort in SORTS.items() if sort.head == head), None)


def ordered(models: Iterable[dict[str, Any]], sort: str, *, is_reversed: bool = False) -> list[dict[str, Any]]:
    """Returns the models in an order; equal ones by name, those without a figure last."""
    order = SORTS[sort]
    by_name = sorted(models, key=lambda model: (model["name"], len(model["version"]), model["version"]))
    has = [model for model in by_name if order.key(model) is not None]
    # Sorting keeps the order of equals either way round.
    has.sort(key=lambda model: order.key(model) or 0, reverse=order.is_falling != is_reversed)
    return has + [model for model in by_name if order.key(model) is None]


def matching(models: Iterable[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Returns the models whose name has `text` in it, in whatever case."""
    return [model for model in models if text.casefold() in model["name"].casefold()]


def table(models: Sequence[dict[str, Any]], *, width: int, now: float, sort: str) -> Table:
    """Returns the table of models, which are in order, as wide as `width` allows and helps.

    The head of the column that they are sorted by is in capitals.
    """
    gap = "  " if width >= _SPACIOUS else " "
    columns = [column for column in _COLUMNS if not column.is_wide or width >= _WIDE]
    rest = sum(column.width + len(gap) for column in columns[1:])
    name_width = min(max(_LEAST_NAME, width - rest), _LONGEST_NAME)

    def fitted(column: Column, text: str) -> str:
        return fit(text, name_width if column.head == _NAME else column.width, right=not column.is_text)

    def head(column: Column) -> str:
        return column.head.upper() if column.head == SORTS[sort].head else column.head

    heads = tuple(Segment(fitted(column, head(column)), Role.STRONG) for column in columns)
    rows = tuple(
        Row(
            model["name"],
            model["version"],
            bool(model["pinned"]),
            is_loaded(model),
            tuple(
                Segment(fitted(column, printable(column.text(model, now))), _role(column, model)) for column in columns
            ),
        )
        for model in models
    )
    return Table(gap, heads, rows)


def _role(column: Column, model: dict[str, Any]) -> Role:
    if not is_loaded(model):
        return Role.DIM
    if column.head != "state":
        return Role.PLAIN
    return Role.GOOD if model["state"] == "ready" else Role.WARNING
