"""`modelhost prepare`: models made ready to be mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelhost.cli.options import settings_options
from modelhost.cli.table import format_table
from modelhost.config import Settings, load_settings

if TYPE_CHECKING:
    from modelhost.prepare.launcher import Bounds


@click.command("prepare", short_help="Prepare models: loads in milliseconds, weights as file pages.")
@settings_options
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where artifacts lie. [default: .modelhost in the models' directory, where `serve` looks]",
)
@click.option("--check", is_flag=True, help="Only say what is prepared and what is missing.")
@click.option("--again", is_flag=True, help="Prepare what is prepared already, too.")
@click.argument("names", nargs=-1)
def command(
    models_directory: Path | None,
    config_file: Path | None,
    cache: Path | None,
    check: bool,
    again: bool,
    names: tuple[str, ...],
) -> None:
    """Prepare all models of a directory, or only NAMES.

    Each model is optimised once, in a child process with a memory ceiling, and its weights are laid out
    in a file that sessions map: a load then takes milliseconds and hardly any committed memory, and the
    kernel drops cold weights instead of killing the process. Outputs are compared with the original's;
    where mapping does not work or does not pay, the model is served as it is and the table says why.
    The exit status is 1 where a model could not be opened at all, and with --check where one is missing.
    """
    settings = load_settings(file=config_file, flags={"models.directory": models_directory, "prepare.cache": cache})
    failed = _prepare(settings, names, check=check, again=again)
    if failed:
        raise SystemExit(1)


def _prepare(settings: Settings, names: tuple[str, ...], *, check: bool, again: bool) -> bool:
    from modelhost.prepare import ArtifactStore
    from modelhost.prepare.launcher import PrepareFailed, prepare
    from modelhost.repository import OnnxFormatError, Repository, read_summary
    from modelhost.runtime.ort import identity
    from modelhost.units import format_bytes

    repository = Repository(settings.models.directory)
    repository.scan()
    store = ArtifactStore(settings.artifact_cache, settings.models.directory, identity())
    if not check:
        store.clean_up()
    files = [
        repository.find(name, version) for name in names or repository.names() for version in repository.versions(name)
    ]
    problems = repository.problems if not names else {}
    rows, failed = [], bool(problems)
    with click.progressbar(files, label="preparing" if not check else "checking", item_show_func=_label) as bar:
        for file in bar:
            try:
                external = read_summary(file.path).external_files
                artifact = store.find(file.path, external)
                if not check and (artifact is None or again):
                    artifact = prepare(store, file.path, external, _bounds(settings))
            except (PrepareFailed, OnnxFormatError, OSError) as error:
                failed = True
                rows.append([file.name, file.version, "failed", "", "", "", str(error)])
                continue
            if artifact is None:
                failed = True
                rows.append([file.name, file.version, "missing", "", "", "", ""])
                continue
            found = artifact.manifest
            heap = next(figures for figures in found.figures if figures.variant == "heap")
            chosen = next(figures for figures in found.figures if figures.variant == found.variant)
            rows.append(
                [
                    file.name,
                    file.version,
                    found.variant,
                    f"{format_bytes(heap.resident_bytes)} -> {format_bytes(chosen.resident_bytes)}",
                    f"{heap.load_ms:.1f} -> {chosen.load_ms:.1f} ms",
                    format_bytes(found.weights_bytes),
                    found.reason if found.variant == "heap" else "",
                ]
            )
    click.echo(format_table(["model", "version", "weights", "committed", "load", "on file", "reason"], rows))
    for name, reason in problems.items():
        click.echo(f"broken: {name}: {reason}", err=True)
    return failed


def _label(file: object) -> str:
    return str(getattr(file, "name", ""))


def _bounds(settings: Settings) -> Bounds:
    from modelhost.memory import Probe
    from modelhost.prepare.launcher import Bounds

    probe = Probe(settings.memory.limit)
    free_bytes = probe.limit_bytes - probe.usage().usage_bytes - settings.memory.min_free
    configured = settings.prepare.memory_ceiling
    return Bounds(
        memory_bytes=max(64 << 20, free_bytes) if configured == "auto" else configured,
        seconds=settings.prepare.timeout_s,
    )
