"""The command `modelhost` and its subcommands."""

from __future__ import annotations

import sys
from typing import Any

import click

from modelhost import __version__

#: Subcommand to the module that has it: `modelhost --help` need not import numpy.
_COMMANDS = {
    "serve": "modelhost.cli.serve",
    "models": "modelhost.cli.models",
    "prepare": "modelhost.cli.prepare",
    "infer": "modelhost.cli.infer",
    "memory": "modelhost.cli.memory",
    "top": "modelhost.cli.top.command",
    "memtest": "modelhost.cli.memtest",
    "memwatch": "modelhost.cli.memwatch",
    "keys": "modelhost.cli.keys",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        import importlib

        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="modelhost")
def cli() -> None:
    """Serve many ONNX models from little memory.

    Models load when a request wants them, idle ones leave when memory gets short, and a load that
    does not fit is refused before the kernel has to act.

    \b
    Start here:
      modelhost serve --models models          serve a directory of models
      modelhost models                         what is in it, with inputs and outputs
      modelhost prepare                        make them load in milliseconds, from file pages
      modelhost infer digits --set 'image=@digit.npy'
      modelhost memory                         what a running host holds
      modelhost top                            the same, live, with models and events
      modelhost memtest --limit 256MB -- COMMAND   any command under a memory limit
      modelhost memwatch PID                   any process, and how fast it grows
      modelhost keys new app --role infer      a key, for a host that others can reach
    """


def main(arguments: list[str] | None = None) -> Any:
    """Runs the command line; errors of ours end it with one line and status 1."""
    from modelhost.errors import ModelHostError

    try:
        return cli(args=arguments, prog_name="modelhost")
    except ModelHostError as error:
        click.echo(f"modelhost: {error}", err=True)
        sys.exit(1)
