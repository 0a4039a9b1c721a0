"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from modelhost.units import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])


def size_option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that is a size, as `256MB`; bytes arrive."""
    return click.option(*names, metavar="SIZE", callback=_parsed(parse_size), **attributes)


def duration_option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """An option that is a time, as `500ms`; seconds arrive."""
    return click.option(*names, metavar="TIME", callback=_parsed(parse_duration), **attributes)


def _parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else parse(value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return convert


def settings_options(command: F) -> F:
    """Adds `--models` and `--config`."""
    models = click.option(
        "--models",
        "models_directory",
        type=click.Path(path_type=Path, file_okay=False),
        help="Directory with the models. [default: models]",
    )
    config = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Settings file. [default: modelhost.toml, where there is one]",
    )
    return models(config(command))


def url_options(command: F) -> F:
    """Adds `--url` and `--api-key-file`."""
    url = click.option(
        "--url",
        default="http://127.0.0.1:8080",
        show_default=True,
        envvar="MODELHOST_URL",
        help="A running host.",
    )
    key = click.option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File with the API key, where the host asks for one. [default: the key in MODELHOST_API_KEY]",
    )
    return url(key(command))
