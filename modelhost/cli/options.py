"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


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
