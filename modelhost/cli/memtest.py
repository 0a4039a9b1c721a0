"""`modelhost memtest`: runs any command under a memory limit, or merely watched, and says what it took."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

import click

from modelhost.cli.drawing import Redrawn, sparkline
from modelhost.cli.options import duration_option, size_option
from modelhost.cli.tested import Child, signals, start
from modelhost.units import format_bytes, format_duration

if TYPE_CHECKING:
    from modelhost.testing.watch import Look, Watch

#: Exit codes of our own; those of the command are below, and 128 + N says that signal N ended it.
_KILLED_BY_KERNEL: Final = 120
_BOUND_PASSED: Final = 121
_TIMED_OUT: Final = 124
_CANNOT_LIMIT: Final = 125
_CANNOT_EXECUTE: Final = 126
_NOT_FOUND: Final = 127
_REDRAW_INTERVAL_S: Final = 0.25
#: The first looks come sooner than `--interval` says: a command may be short.
_FIRST_LOOK_S: Final = 0.004


@click.command(
    "memtest",
    short_help="Run a command under a memory limit, or watched.",
    context_settings={"allow_interspersed_args": False},  # what follows COMMAND is its own
)
@size_option("--limit", help='Memory limit for all its processes together, as "256MB". [default: none]')
@size_option("--fail-over", help="Stop it, and exit with 121, where it has more than this in use.")
@click.option("--no-kill", is_flag=True, help="With --fail-over: let it end by itself, and exit with 121 then.")
@duration_option("--timeout", help='Stop it after this time, as "30s", and exit with 124.')
@duration_option("--interval", default="100ms", show_default=True, help="Between two looks at it.")
@click.option("--json", "json_file", type=click.File("w"), help="Write looks and summary here, - is stdout.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.argument("command_line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARGUMENT]...")
def command(
    limit: int | None,
    fail_over: int | None,
    no_kill: bool,
    timeout: float | None,
    interval: float,
    json_file: IO[str] | None,
    quiet: bool,
    command_line: tuple[str, ...],
) -> None:
    """Run any command, under a memory limit of the kernel or merely watched, and say how much memory it took.

    The command need know nothing of modelhost. Its input and output are its own; progress (on a terminal)
    and the summary go to stderr: the peak and when it was, what the kernel did, a curve over time.

    \b
    Examples:
      modelhost memtest -- python train.py             how much does it take?
      modelhost memtest --limit 256MB -- ./service     does it live in a container of 256 MB?
      modelhost memtest --fail-over 100MB -- pytest    in CI: fail where it takes more
      modelhost memtest --json looks.jsonl -- make     every look, for a plot

    "In use" is what the kernel cannot take back: with --limit the control group's memory without file
    pages, else the committed memory of the command and all that it has started.

    \b
    Exit code: the command's own, or
      120  the kernel killed one of its processes for memory
      121  it had more than --fail-over in use
      124  it was stopped after --timeout
      125  no limit can be set here (on Linux it takes root or a delegated control group, else an rlimit is set)
      126, 127  it cannot be executed, or is not there
      128+N  signal N ended it
    """
    if interval < 0.01:
        raise click.UsageError(f"--interval: expected at least 10 ms, got {format_duration(interval)}")
    if no_kill and fail_over is None:
        raise click.UsageError("--no-kill goes with --fail-over: it says what happens when that is passed")
    if shutil.which(command_line[0]) is None:
        click.echo(f"modelhost memtest: there is no command {command_line[0]!r}", err=True)
        sys.exit(_NOT_FOUND)
    test = _Test(fail_over, timeout, interval, stops=not no_kill)
    with ExitStack() as stack:
        try:
            child = start(stack, command_line, limit)
        except PermissionError as error:
            click.echo(f"modelhost memtest: {command_line[0]} cannot be executed: {error.strerror}", err=True)
            sys.exit(_CANNOT_EXECUTE)
        except OSError as error:
            click.echo(f"modelhost memtest: {error}", err=True)
            sys.exit(_CANNOT_LIMIT)
        test.watch(child, json_file, None if quiet else Redrawn(sys.stderr))
        report = test.summary(child, command_line, limit)
    if json_file is not None:
        _write(json_file, {"kind": "summary", **report})
    if not quiet:
        click.echo(_text(report, test.in_use), err=True)
    sys.exit(report["exit_code"])


@dataclass(slots=True)
class _Test:
    bound_bytes: int | None
    timeout_s: float | None
    interval_s: float
    stops: bool
    in_use: list[int] = field(default_factory=list)
    peaks: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Figure to its highest value and when that was."""
    processes: int = 0
    timed_out: bool = False

    def watch(self, child: Child, json_file: IO[str] | None, shown: Redrawn | None) -> None:
        """Looks until the command has ended, or is ended."""
        from modelhost.testing.watch import Watch

        watch, began_s, drawn_s = Watch(child.pid, with_children=True), time.monotonic(), 0.0
        with signals(child):
            while not child.has_ended(min(self.interval_s, _FIRST_LOOK_S * 2 ** min(10, len(watch.looks)))):
                now_s = time.monotonic()
                look = self._look(child, watch)
                if look is not None and json_file is not None:
                    _write(json_file, {"kind": "look", **asdict(look)})
                if look is not None and shown is not None and now_s - drawn_s >= _REDRAW_INTERVAL_S:
                    shown.draw(self._progress(look))
                    drawn_s = now_s
                if self.timeout_s is not None and now_s - began_s >= self.timeout_s and not self.timed_out:
                    self.timed_out = True
                    child.kill()
                if self.is_over and self.stops:
                    child.kill()
        if shown is not None:
            shown.draw("")

    @property
    def is_over(self) -> bool:
        """Whether more was in use than it may have."""
        return self.bound_bytes is not None and self.peaks.get("in_use", (0, 0.0))[0] > self.bound_bytes

    def _look(self, child: Child, watch: Watch) -> Look | None:
        try:
            look = watch.look(group_bytes=child.in_use_bytes())
        except ProcessLookupError:
            return None
        in_use = look.committed_bytes if look.group_bytes is None else look.group_bytes
        self.in_use.append(in_use)
        self.processes = max(self.processes, look.processes)
        for name, value in (
            ("in_use", in_use),
            ("committed", look.committed_bytes),
            ("rss", look.rss_bytes),
            ("pss", look.pss_bytes),
        ):
            if value is not None and value > self.peaks.get(name, (-1, 0.0))[0]:
                self.peaks[name] = (value, look.at_s)
        return look

    def _progress(self, look: Look) -> str:
        curve = sparkline(self.in_use, width=24, encoding=sys.stderr.encoding)
        peak_bytes, at_s = self.peaks["in_use"]
        return (
            f"{format_duration(look.at_s)}: {format_bytes(self.in_use[-1])} in use, peak {format_bytes(peak_bytes)} "
            f"at {format_duration(at_s)} {curve}"
        )

    def summary(self, child: Child, command_line: Sequence[str], limit_bytes: int | None) -> dict[str, Any]:
        """Returns all that is to be said; while the limit is open."""
        ended = child.end()
        code = ended["command_exit_code"]
        if ended.get("oom_kills", 0):
            code = _KILLED_BY_KERNEL
        elif self.is_over:
            code = _BOUND_PASSED
        elif self.timed_out:
            code = _TIMED_OUT
        elif code < 0:
            code = 128 - code
        peaks = {f"peak_{name}_bytes": value for name, (value, _) in self.peaks.items()}
        at = {f"peak_{name}_at_s": at_s for name, (_, at_s) in self.peaks.items()}
        return {
            "command": list(command_line),
            "exit_code": code,
            **ended,
            "timed_out": self.timed_out,
            "fail_over_bytes": self.bound_bytes,
            "is_over": self.is_over,
            "limit_bytes": limit_bytes,
            **peaks,
            **at,
            "processes": self.processes,
            "looks": len(self.in_use),
            "interval_s": self.interval_s,
        }


def _write(stream: IO[str], line: dict[str, Any]) -> None:
    stream.write(json.dumps(line) + "\n")
    stream.flush()


def _text(report: dict[str, Any], in_use: Sequence[int]) -> str:
    name = " ".join(shlex.join(report["command"]).split())
    lines = [
        f"modelhost memtest: {name if len(name) < 60 else name[:57] + '...'}: {_end(report)} after "
        f"{format_duration(report['wall_s'])} ({format_duration(report['cpu_s'])} of CPU)"
    ]
    if "means" in report:
        lines.append(f"  limit      {format_bytes(report['limit_bytes'])} by {report['means']}")
        if report["limited_by"]:
            effective = format_bytes(report["effective_limit_bytes"])
            lines.append(f"             {effective} of it hold, set by {report['limited_by']}")
    if in_use:
        peak, at_s = format_bytes(report["peak_in_use_bytes"]), format_duration(report["peak_in_use_at_s"])
        charged = report.get("peak_charged_bytes")
        tail = "" if charged is None else f"; with file pages {format_bytes(charged)}, as the kernel counts"
        lines.append(f"  peak       {peak} in use at {at_s}{tail}")
        pss = f", PSS {format_bytes(report['peak_pss_bytes'])}" if "peak_pss_bytes" in report else ""
        lines.append(
            f"             committed {format_bytes(report['peak_committed_bytes'])}, "
            f"RSS {format_bytes(report['peak_rss_bytes'])}{pss}; "
            f"{report['looks']} looks, most processes at once {report['processes']}"
        )
        curve = sparkline(in_use, encoding=sys.stderr.encoding)
        lines.append(f"  over time  {curve} 0 to {peak}")
    else:
        lines.append("  it ended before it could be looked at")
    if "means" in report and report["means"].startswith("cgroup"):
        lines.append(
            f"  events     limit reached {report['limit_hits']} times, out of memory {report['ooms']} times, "
            f"processes killed {report['oom_kills']}"
        )
    if report["is_over"]:
        lines.append(f"  FAILED     more than the {format_bytes(report['fail_over_bytes'])} of --fail-over were in use")
    return "\n".join(lines)


def _end(report: dict[str, Any]) -> str:
    if report.get("oom_kills", 0):
        return "killed by the kernel, out of memory"
    if report["timed_out"]:
        return "stopped because its time was over"
    code = report["command_exit_code"]
    return f"ended with {code}" if code >= 0 else f"ended by signal {-code}"
