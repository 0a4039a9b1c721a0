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


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Draw all runs in the FILES into this one file."
)
def report(files: tuple[Path, ...], html: Path | None) -> None:
    """Tables, and one page with plots, from JSON lines that runs have left (`--out`).

    \b
      python -m benchmarks fragmentation --out record.jsonl
      python -m benchmarks leaks --out record.jsonl
      python -m benchmarks report record.jsonl --html report.html
    """
    from benchmarks import records
    from benchmarks.plots import page

    try:
        found = records.read(files)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    for record in found:
        click.echo(f"{record.benchmark}: {record.verdict}")
        for text in record.tables():
            click.echo(f"\n{text}\n")
    if html is not None:
        html.write_text(page.render(found), encoding="utf-8")
