"""`modelhost models`: what a directory has, read from the files without loading them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from modelhost.cli.options import settings_options
from modelhost.cli.table import format_table
from modelhost.config import load_settings


@click.command("models", short_help="List the models of a directory, with inputs and outputs.")
@settings_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.argument("names", nargs=-1)
def command(models_directory: Path | None, config_file: Path | None, as_json: bool, names: tuple[str, ...]) -> None:
    """List the models of a directory, with inputs and outputs; only NAMES where some are given.

    Reads the faces of the files; nothing is loaded. What is broken is listed with its reason, and the
    exit status is 1 then.
    """
    from modelhost.repository import OnnxFormatError, Repository, read_summary
    from modelhost.units import format_bytes

    settings = load_settings(file=config_file, flags={"models.directory": models_directory})
    repository = Repository(settings.models.directory, settings.models.name)
    repository.scan()
    problems = dict(repository.problems) if not names else {}
    rows, lines = [], []
    for name in names or repository.names():
        for version in repository.versions(name):
            file = repository.find(name, version)
            try:
                summary = read_summary(file.path)
            except (OnnxFormatError, OSError) as error:
                problems[f"{name} {version}"] = str(error)
                continue
            inputs = [f"{spec.name}: {spec.describe()}" for spec in summary.inputs]
            outputs = [f"{spec.name}: {spec.describe()}" for spec in summary.outputs]
            rows.append([name, version, format_bytes(summary.weight_bytes), "\n".join(inputs), "\n".join(outputs)])
            lines.append(
                {
                    "name": name,
                    "version": version,
                    "weight_bytes": summary.weight_bytes,
                    "inputs": [_face(spec.name, spec.datatype, spec.wire_shape) for spec in summary.inputs],
                    "outputs": [_face(spec.name, spec.datatype, spec.wire_shape) for spec in summary.outputs],
                }
            )
    if as_json:
        for line in lines:
            click.echo(json.dumps(line))
    elif rows:
        click.echo(format_table(["model", "version", "weights", "inputs", "outputs"], rows))
    else:
        click.echo(f"no models in {settings.models.directory}: expected <name>/<version>/model.onnx or <name>.onnx")
    for name, reason in problems.items():
        click.echo(f"broken: {name}: {reason}", err=True)
    if problems:
        raise SystemExit(1)


def _face(name: str, datatype: str, shape: list[int]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape}
