"""Commands about what the others use and leave: models, and reports."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.commands import options


@click.command()
@options.count(40, "Distinct models of 20 MB.")
@options.cache
def models(count: int, cache: Path | None) -> None:
    """Only make the models; prints the directory that has them, to serve or to mount."""
    from benchmarks.models import conv_nets

    click.echo(conv_nets(count, cache=cache).directory)
