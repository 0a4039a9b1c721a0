"""What is above the table, and all of it in one for `--once`: the feed's JSON in, lines out. Pure."""

from __future__ import annotations

import textwrap
from typing import Any, Final

from modelhost.cli.memory_bar import bar, legend, mark_legend, marks_of, parts_of_feed
from modelhost.cli.memory_text import event_line, forecast_text, policy_text, pressure_line, usage_parts
from modelhost.cli.segments import Line, Role, Segment, cut_line, line, printable, wrapped
from modelhost.cli.top.models import SORTS, Table, figure, is_loaded, ordered, table
from modelhost.units import format_span

#: A bar that is longer says no more.
_LONGEST_BAR: Final = 160
#: What one of these may say in the live view; all of it stands in `/memory`.
_LINES_OF_TEXT: Final = 2


def heading(url: str, snapshot: dict[str, Any]) -> list[Line]:
    """Who it is: version, where, whether it takes work, since when."""
    host = snapshot["host"]
    state = (
        Segment("draining", Role.WARNING)
        if host["draining"]
        else Segment("ready", Role.GOOD)
        if host["ready"]
        else Segment("NOT READY", Role.CRITICAL)
    )
    return [
        line(Segment("modelhost", Role.STRONG), f" {printable(host['version'])}"),
        line(printable(url)),
        line(state),
        line(f"up {format_span(host['uptime_s'])}"),
    ]


def conditions(snapshot: dict[str, Any], width: int) -> list[Line]:
    """What is not as it should be, by name."""
    found = snapshot["memory"].get("conditions") or []
    lines: list[Line] = []
    for condition in found:
        lines += _text(f"! {condition['name']}: {condition['text']}", width, Role.WARNING)
    return lines


def totals(snapshot: dict[str, Any]) -> list[Line]:
    """How much is asked, how that goes, and what it took; what matters least is last."""
    found = snapshot["totals"]
    parts = [line(f"requests: {figure(found['requests_per_s']) or '0'}/s")]
    if found["failures_per_s"]:
        parts.append(line(Segment(f"{figure(found['failures_per_s'])} failures/s", Role.WARNING)))
    known = [name for name in ("p50", "p99") if found[f"{name}_ms"] is not None]
    parts += [line(f"{name} {figure(found[f'{name}_ms'])} ms") for name in known]
    parts += [line(f"{found[key]} {name}") for name, key in (("in flight", "in_flight"), ("waiting", "waiting"))]
    since = (("refused", "refusals"), ("loads", "loads"), ("evictions", "evictions"), ("cold starts", "cold_starts"))
    return parts + [line(f"{found[key]} {name}") for name, key in since]


def overview(url: str, snapshot: dict[str, Any], width: int) -> list[Line]:
    """All that is above the table."""
    memory = snapshot["memory"]
    parts, marks = parts_of_feed(snapshot["bar"]), marks_of(memory)
    forecast, policy = forecast_text(memory.get("forecast")), policy_text(snapshot.get("policy"))
    return [
        *wrapped(heading(url, snapshot), width),
        *conditions(snapshot, width),
        wrapped(usage_parts(memory), width, gap=", ")[0],
        bar(parts, marks, width=min(width, _LONGEST_BAR)),
        *wrapped([*legend(parts), *mark_legend(marks)[:-1]], width),
        cut_line(pressure_line(memory["page_cache"]), width),
        *([] if policy is None else _text(policy, width, Role.PLAIN)),
        *_text(f"forecast: {forecast or 'nothing grows'}", width, Role.WARNING if forecast else Role.PLAIN),
        wrapped(totals(snapshot), width)[0],
    ]


def _text(text: str, width: int, role: Role) -> list[Line]:
    """A sentence that may be longer than a line."""
    lines = textwrap.wrap(printable(text), width, subsequent_indent="  ", max_lines=_LINES_OF_TEXT, placeholder=" ...")
    return [line(Segment(part, role)) for part in lines]


def models_title(
    snapshot: dict[str, Any], shown: int, *, sort: str, is_reversed: bool = False, search: str = ""
) -> Line:
    """How many models there are, how many of them the table has, and in which order."""
    models = snapshot["models"]
    loaded = sum(map(is_loaded, models))
    known = snapshot.get("models_known", len(models))
    order = f"by {SORTS[sort].head}{', the other way round' if is_reversed else ''}"
    found = [Segment(f", {shown} with '{printable(search)}'", Role.WARNING)] if search else []
    return line(Segment("models", Role.STRONG), f" {loaded} in memory, {known} known, {order}", *found)


def once(
    url: str, snapshot: dict[str, Any], *, width: int, sort: str, is_reversed: bool = False, events: int = 10
) -> list[Line]:
    """Returns all of it as a text that stands by itself."""
    models = ordered(snapshot["models"], sort, is_reversed=is_reversed)
    shown = table(models, width=width, now=snapshot["at"], sort=sort)
    lines = overview(url, snapshot, width)
    lines += [(), models_title(snapshot, len(models), sort=sort, is_reversed=is_reversed)]
    if models:
        lines += table_lines(shown)
    if events and snapshot["events"]:
        lines += [(), line(Segment("events", Role.STRONG))]
        lines += [cut_line(event_line(event), width) for event in snapshot["events"][-events:]]
    return lines


def table_lines(shown: Table) -> list[Line]:
    """Returns heads and rows as lines."""
    gap = Segment(shown.gap)

    def joined(cells: tuple[Segment, ...]) -> Line:
        first, *rest = cells
        return (first, *(piece for cell in rest for piece in (gap, cell)))

    return [joined(shown.heads), *(joined(row.cells) for row in shown.rows)]
