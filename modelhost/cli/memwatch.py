"""`modelhost memwatch`: any process that runs, how much memory it has, and how fast and where that grows."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from modelhost.cli.drawing import Redrawn, sparkline
from modelhost.cli.options import duration_option
from modelhost.units import format_bytes, format_change, format_duration

if TYPE_CHECKING:
    from modelhost.slope import Slope
    from modelhost.testing.watch import Look, Watch


@click.command("memwatch", short_help="Watch the memory of a process that runs.")
@click.argument("pid", type=click.IntRange(1))
@click.option("--children", is_flag=True, help="With all that it has started.")
@duration_option("--interval", default="1s", show_default=True, help="Between two looks at it.")
@duration_option("--for", "for_s", help='End after this time, as "10m". [default: Ctrl-C, or its end]')
@click.option("--count", type=click.IntRange(1), help="End after so many looks.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each look, and one for the summary.")
def command(pid: int, children: bool, interval: float, for_s: float | None, count: int | None, as_json: bool) -> None:
    """Watch process PID, which need know nothing of modelhost: what it has, how fast that grows, and where.

    On a terminal the figures are drawn again at each look, elsewhere each look is a line. Ctrl-C ends
    with a summary, as the process's own end does.

    \b
    Examples:
      modelhost memwatch 4242                          how is it?
      modelhost memwatch 4242 --children --for 10m     does the service leak, workers and all?
      modelhost memwatch $(pgrep -o gunicorn) --json > looks.jsonl

    \b
    Figures:
      committed   anonymous memory, which the kernel cannot take back
      RSS, PSS    resident; with shared pages counted whole, and divided among those who share them
      growth      of committed memory: the median of all slopes between looks, with the bounds within which
                  it is with a certainty of 99.9 %; from 8 looks on. "steady" where 0 lies within
      by kind     what the mappings hold: the heap (brk) and anonymous mappings are malloc's and Python's,
                  file pages the kernel takes back when it needs them

    A look reads every page table entry of the process: some milliseconds for each GB. What belongs to
    another user tells only committed and RSS, and those roughly, unless you are root.
    """
    if interval <= 0:
        raise click.UsageError("--interval: expected more than 0")
    from modelhost.testing.watch import Watch

    watch = Watch(pid, with_children=children, with_kinds=True)
    shown = Redrawn(sys.stdout)
    try:
        first = watch.look()
    except (ProcessLookupError, PermissionError) as error:
        click.echo(f"modelhost memwatch: {error}; `ps -e` shows what runs", err=True)
        sys.exit(1)
    if first.pss_bytes is None:
        click.echo(
            f"modelhost memwatch: PSS and mappings of process {pid} are for its owner and root: "
            "run this as one of them (sudo) to see them",
            err=True,
        )
    why = _watch(watch, first, _Pace(interval, for_s, count), shown, as_json=as_json)
    summary = _summary(watch)
    if as_json:
        click.echo(json.dumps({"kind": "summary", "pid": pid, "end": why, **summary}))
    else:
        shown.draw("")
        click.echo(f"process {pid}, watched until {why}\n{_text(watch, ends=True)}")


@dataclass(frozen=True, slots=True)
class _Pace:
    interval_s: float
    for_s: float | None
    count: int | None


def _watch(watch: Watch, look: Look, pace: _Pace, shown: Redrawn, *, as_json: bool) -> str:
    """Looks and shows until there is an end; returns which."""
    taken = 0
    try:
        while True:
            taken += 1
            if as_json:
                click.echo(json.dumps({"kind": "look", "pid": watch.pid, **asdict(look)}))
            elif shown.is_shown:
                shown.draw(f"process {watch.pid}, Ctrl-C ends\n{_text(watch)}")
            else:
                click.echo(_line(look, watch.growth()))
            if pace.for_s is not None and look.at_s >= pace.for_s:
                return "the time was over"
            if taken == pace.count:
                return "all looks were taken"
            time.sleep(pace.interval_s)
            look = watch.look()
    except ProcessLookupError:
        return "it ended"
    except KeyboardInterrupt:
        return "Ctrl-C"


def _text(watch: Watch, *, ends: bool = False) -> str:
    look = watch.looks[-1]
    pss = "" if look.pss_bytes is None else f", PSS {format_bytes(look.pss_bytes)}"
    committed = [look.committed_bytes for look in watch.looks]
    lines = [
        f"  committed  {format_bytes(look.committed_bytes)}, {_growth(watch.growth())}",
        f"             {sparkline(committed, encoding=sys.stdout.encoding)} 0 to {format_bytes(max(committed))}, "
        f"{len(committed)} looks in {format_duration(look.at_s)}",
        f"  resident   RSS {format_bytes(look.rss_bytes)}{pss}",
        f"  processes  {look.processes}, {_count(look.threads, 'thread', 'threads')}",
    ]
    first = watch.looks[0].kinds
    if look.kinds is not None and first is not None:
        slopes = watch.growth_by_kind() if ends else {}
        for kind, size_bytes in look.kinds.items():
            more = size_bytes - first.get(kind, 0)
            slope = f", {_growth(slopes[kind])}" if kind in slopes else ""
            lines.append(f"  {kind:<22} {format_bytes(size_bytes):>10}, {format_change(more)}{slope}")
    return "\n".join(lines)


def _line(look: Look, slope: Slope | None) -> str:
    pss = "" if look.pss_bytes is None else f", PSS {format_bytes(look.pss_bytes)}"
    return (
        f"{look.at_s:8.1f} s: committed {format_bytes(look.committed_bytes)}, RSS {format_bytes(look.rss_bytes)}{pss}, "
        f"{_count(look.processes, 'process', 'processes')}, {_growth(slope)}"
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _growth(slope: Slope | None) -> str:
    if slope is None:
        return "growth from 8 looks on"
    bounds = f"{format_bytes(slope.low)}/s to {format_bytes(slope.high)}/s"
    if slope.low <= 0 <= slope.high:
        return f"steady ({bounds})"
    return f"{'grows' if slope.value > 0 else 'shrinks'} by {format_bytes(abs(slope.value))}/s ({bounds})"


def _summary(watch: Watch) -> dict[str, Any]:
    slope = watch.growth()
    committed = [look.committed_bytes for look in watch.looks]
    return {
        "looks": len(committed),
        "for_s": watch.looks[-1].at_s,
        "peak_committed_bytes": max(committed),
        "peak_committed_at_s": watch.looks[committed.index(max(committed))].at_s,
        "peak_rss_bytes": max(look.rss_bytes for look in watch.looks),
        "growth_bytes_per_s": None if slope is None else asdict(slope),
        "growth_by_kind_bytes_per_s": {kind: asdict(slope) for kind, slope in watch.growth_by_kind().items()},
    }
