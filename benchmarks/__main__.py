"""The command line of the benchmarks: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import signal
import sys
from types import ModuleType
from typing import Final

import click

from benchmarks.commands import endurance, memory, prepared, requests, results, simulations

#: In the order of the help, each with its heading.
_GROUPS: Final[dict[str, ModuleType]] = {
    "Memory": memory,
    "Prepared and isolated models": prepared,
    "Requests": requests,
    "Does anything break": endurance,
    "Without a host": simulations,
    "Models and results": results,
}


class _Grouped(click.Group):
    """Lists its commands under headings."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, module in _GROUPS.items():
            rows = [
                (command.name.ljust(width), command.get_short_help_str(100 - width))
                for command in _commands(module)
                if command.name
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def _commands(module: ModuleType) -> list[click.Command]:
    return [value for value in vars(module).values() if isinstance(value, click.Command)]


@click.group(cls=_Grouped, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Measure modelhost: memory, time, and whether answers stay right under pressure.

    Every command starts the real server process, in a memory cgroup of its own where the user may
    make one (root, or a delegated group), else with memory.limit; it drives it over HTTP and checks
    every answer. Results are JSON lines with commit, machine, versions and parameters (--out), and a
    page with plots (--html); a table comes at the end, on standard error. The exit status is 1 where
    something that must hold did not.

    \b
    Start here:
      python -m benchmarks idle                  start time and memory of a host that does nothing
      python -m benchmarks density --small       prepared models where a plain loop is killed: half a minute
      python -m benchmarks prepared              prepared sessions beside stock ones
      python -m benchmarks isolation             models in worker processes beside the same in the host
      python -m benchmarks pressure              40 models of 20 MB in a container of 256 MB
      python -m benchmarks leaks --html leaks.html
      python -m benchmarks fragmentation --out record.jsonl
      python -m benchmarks report record.jsonl --html report.html

    Generated models (20 MB each) are made once and kept; --cache says where.
    """


for _module in _GROUPS.values():
    for _command in _commands(_module):
        cli.add_command(_command)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # servers that were started end too
    cli(prog_name="python -m benchmarks")
