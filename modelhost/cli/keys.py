"""`modelhost keys`: API keys for a host that others can reach."""

from __future__ import annotations

import os
from pathlib import Path

import click

from modelhost.errors import ConfigError
from modelhost.security.keys import Role, new_key, parse_file, unambiguous


@click.group("keys", short_help="Make API keys.")
def command() -> None:
    """Make API keys, which `security.keys_file` names the file of."""


@command.command("new", short_help="Make a key.")
@click.argument("name")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="What the key is for: infer runs models, manage loads and unloads, observe sees memory and metrics. "
    "May be given several times.",
)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Add the key's line to this file, which is made where there is none, and print only the key.",
)
def new(name: str, roles: tuple[str, ...], file: Path | None) -> None:
    """Make a key for NAME, a person or a program.

    The key is printed once and kept nowhere: the line for security.keys_file has its SHA-256. Each key is a line,
    `NAME  ROLE[,ROLE...]  sha256:HEX`; a line that is taken out is a key that is refused from the next reload on.

    \b
    Examples:
      modelhost keys new app --role infer
      MODELHOST_API_KEY=$(modelhost keys new ops --role manage --role infer --file keys)
    """
    text, key = new_key(name, roles)
    if file is None:
        click.echo(f"The key, which is shown only now; send it as `Authorization: Bearer KEY`:\n\n  {text}\n")
        click.echo(f"Its line for security.keys_file:\n\n  {key.line()}")
        return
    _append(file, key.line())
    click.echo(text)


def _append(file: Path, line: str) -> None:
    """Adds a line to a file that only its owner may read. Raises ConfigError where the name is there already."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "r+") as stream:
            found = stream.read()
            unambiguous((*parse_file(found, where=str(file)), *parse_file(line, where="the new key")), where=str(file))
            stream.write(f"{line}\n" if not found or found.endswith("\n") else f"\n{line}\n")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from None
