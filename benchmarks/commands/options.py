"""What several commands have in common: options, the report that a command writes, the models that it measures with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from benchmarks.places import default_cache
from modelhost.units import format_bytes, parse_size

if TYPE_CHECKING:
    from benchmarks.models import ModelSet
    from benchmarks.report import Report

F = TypeVar("F", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """Bytes, or a size such as 256MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Fails, with what was expected, where it is no size."""
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


#: Where the file for the page is kept between the command line and `report`: no command has to pass it on.
_HTML = "benchmarks.html"


def _keep(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    ctx.meta[_HTML] = value


def out(command: F) -> F:
    """Adds `--out`, and `--html`, which `report` finds by itself."""
    lines = click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Append the JSON lines to this file. [default: standard output]",
    )
    page = click.option(
        "--html",
        type=click.Path(path_type=Path, dir_okay=False),
        expose_value=False,
        callback=_keep,
        help="Draw the results into this file; `report` does so from JSON lines, later too.",
    )
    return lines(page(command))


limit = click.option(
    "--limit", "limit_bytes", type=Size(), default="256MB", show_default=True, help="Memory limit of the host."
)
cache = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where generated models are kept. [default: {default_cache()}]",
)
transformer = click.option(
    "--transformer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A transformer encoder; benchmarks/export_transformer.py writes one, where there is torch.",
)


def count(default: int, text: str) -> Callable[[F], F]:
    """Returns the option `--models`."""
    return click.option("--models", "count", type=click.IntRange(2), default=default, show_default=True, help=text)


def pair(text: str) -> tuple[str, str]:
    """Splits NAME=VALUE; the name as a setting of the host, without MODELHOST_."""
    name, found, value = text.partition("=")
    if not found:
        raise click.BadParameter(f"expected NAME=VALUE, got '{text}'")
    return name.upper().removeprefix("MODELHOST_"), value


@contextmanager
def report(benchmark: str, out: Path | None, **parameters: Any) -> Iterator[Report]:
    """Opens the results; ends the process with status 1 where something that must hold did not."""
    from benchmarks.client import RequestFailed
    from benchmarks.report import Report

    stream = sys.stdout if out is None else out.open("a", encoding="utf-8")
    opened = Report(benchmark, parameters, stream)
    try:
        yield opened
    except (RequestFailed, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    else:
        opened.close()
    finally:
        if out is not None:
            stream.close()
    html: Path | None = click.get_current_context().meta.get(_HTML)
    if html is not None:
        from benchmarks import records
        from benchmarks.plots import page

        html.write_text(page.render([records.of_report(opened)]), encoding="utf-8")
    for text in opened.violations:
        click.echo(f"VIOLATED: {text}", err=True)
    if opened.violations:
        raise SystemExit(1)


def limits(limit_bytes: int) -> dict[str, Any]:
    """Says what kind of limit it will be, once, and returns it as parameters."""
    from modelhost.testing import cgroup

    reason = cgroup.available()
    kind = "a memory cgroup" if reason is None else "memory.limit"
    click.echo(f"limit: {format_bytes(limit_bytes)} by {kind}" + (f": {reason}" if reason else ""), err=True)
    return {"limit_bytes": limit_bytes, "limit_kind": "cgroup" if reason is None else "setting"}


def models(
    report: Report,
    count: int,
    cache: Path | None,
    *,
    size_mb: float | None = None,
    layers: int | None = None,
    label: str = "",
) -> ModelSet:
    """Returns generated models, made where they are missing."""
    from benchmarks.models import SIZE_MB, conv_nets

    size_mb = SIZE_MB if size_mb is None else size_mb
    report.progress(f"{count} models of {size_mb:g} MB (made where they are missing)")
    return conv_nets(count, size_mb=size_mb, layers=layers, cache=cache, label=label, progress=report.progress)
