"""`modelhost top`: a running host, live."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from modelhost.cli.client import api_key
from modelhost.cli.options import duration_option, url_options
from modelhost.cli.segments import ansi, plain
from modelhost.cli.top.models import SORTS
from modelhost.cli.top.source import HostSource, Source
from modelhost.cli.top.view import once


@click.command("top", short_help="Watch a running host, live.")
@url_options
@duration_option("--interval", default="1s", show_default=True, help="Between two looks at the host.")
@click.option("--once", "only_once", is_flag=True, help="Print one view, and end; needs nothing but modelhost.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the host's own JSON.")
@click.option(
    "--sort", type=click.Choice(list(SORTS)), default="committed", show_default=True, help="Order of the models."
)
@click.option("--reverse", is_flag=True, help="The other way round.")
def command(
    url: str, api_key_file: Path | None, interval: float, only_once: bool, as_json: bool, sort: str, reverse: bool
) -> None:
    """Watch a running host: memory, pressure, models and events as they come; load, unload, pin, clean up by keys.

    The live view needs `pip install 'modelhost[top]'`, and a terminal of 80 columns or more; ? shows its keys. A key
    for the API has to be for observe, and for manage where something is to be changed.

    \b
    Examples:
      modelhost top                                      the host on this machine
      modelhost top --url https://models.example:8443    another one
      modelhost top --once                               one look, as text
      modelhost top --once --json | jq .memory.level     one look, for scripts
    """
    if as_json and not only_once:
        raise click.UsageError("--json goes with --once")
    if not 0.1 <= interval <= 3600:
        raise click.UsageError("--interval: expected 100ms to 1h")
    source = HostSource(url, api_key(api_key_file))
    if only_once:
        _print(source, source.look(), sort, is_reversed=reverse, as_json=as_json)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the live view needs a terminal; --once prints one view, --once --json the figures")
    try:
        from modelhost.cli.top.app import TopApp
    except ImportError as error:
        raise click.ClickException(
            f"the live view needs textual ({error}): pip install 'modelhost[top]'; --once works without"
        ) from None
    TopApp(source, source.look(), interval_s=interval, sort=sort, is_reversed=reverse).run()


def _print(source: Source, snapshot: dict[str, Any], sort: str, *, is_reversed: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(snapshot, indent=2))
        return
    is_terminal = sys.stdout.isatty()
    show = ansi if is_terminal and not os.environ.get("NO_COLOR") else plain
    # What is piped has no width; COLUMNS may say one.
    width = max(60, shutil.get_terminal_size((120, 24)).columns)
    lines = once(source.url, snapshot, width=width, sort=sort, is_reversed=is_reversed)
    text = "\n".join(show(shown).rstrip() for shown in lines)
    encoding = sys.stdout.encoding or "utf-8"
    click.echo(text.encode(encoding, "replace").decode(encoding))  # names may have letters that the terminal has not
