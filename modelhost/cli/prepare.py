"""`modelhost prepare`: models made ready to be mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelhost.cli.options import settings_options
from modelhost.cli.table import format_table
from modelhost.config import Settings, load_settings

if TYPE_CHECKING:
    from modelhost.prepare import Artifact, ArtifactStore
    from modelhost.prepare.launcher import Bounds
    from modelhost.repository import ModelFile


@click.command("prepare", short_help="Prepare models: loads in milliseconds, weights as file pages.")
@settings_options
@click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where artifacts lie. [default: .modelhost in the models' directory, where `serve` looks]",
)
@click.option("--check", is_flag=True, help="Only say what is prepared, stale, missing or damaged.")
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
    What is damaged is made again. The exit status is 1 where a model could not be opened at all, and with
    --check where one is not prepared.
    """
    settings = load_settings(file=config_file, flags={"models.directory": models_directory, "prepare.cache": cache})
    failed = _prepare(settings, names, check=check, again=again)
    if failed:
        raise SystemExit(1)


def _prepare(settings: Settings, names: tuple[str, ...], *, check: bool, again: bool) -> bool:
    """Looks at each model, prepares what is not, prints the table; returns whether one is left unprepared."""
    from modelhost.prepare import ArtifactStore
    from modelhost.repository import Repository
    from modelhost.runtime.ort import identity

    repository = Repository(settings.models.directory, settings.models.name)
    repository.scan()
    store = ArtifactStore(
        settings.artifact_cache, settings.models.directory, identity(settings.runtime.custom_op_libraries)
    )
    if not check:
        store.clean_up()
    files = [
        repository.find(name, version) for name in names or repository.names() for version in repository.versions(name)
    ]
    problems = repository.problems if not names else {}
    made: set[str] = set()
    with click.progressbar(files, label="preparing" if not check else "checking", item_show_func=_label) as bar:
        results = [_one(store, settings, file, made, check=check, again=again) for file in bar]
    if not check:
        store.clean_up(max_bytes=store.size_bound(settings.prepare.cache_max_bytes))
    rows = [[file.name, file.version, *cells] for file, (_, cells) in zip(files, results, strict=True)]
    click.echo(format_table(["model", "version", "state", "weights", "committed", "load", "on file", "notes"], rows))
    for name, reason in problems.items():
        click.echo(f"broken: {name}: {reason}", err=True)
    gone = sum(not (store.cache / key).exists() for key in made)
    if gone:
        click.echo(f"{gone} of {len(made)} artifacts had to go again: prepare.cache_max_bytes is too small", err=True)
    return bool(problems) or gone > 0 or not all(is_fine for is_fine, _ in results)


def _one(
    store: ArtifactStore, settings: Settings, file: ModelFile, made: set[str], *, check: bool, again: bool
) -> tuple[bool, list[str]]:
    """Returns whether a model is as it should be, and the cells of its row; `made` gets its artifact's key."""
    from modelhost.prepare.launcher import PrepareFailed, prepare
    from modelhost.repository import OnnxFormatError, read_summary

    options = settings.models.options_for(file.name, file.options)
    if options.optimization not in (None, "all"):
        # Artifacts are made at full optimisation.
        return True, _cells("as it is", note=f"it asks for optimization '{options.optimization}'")
    try:
        external = read_summary(file.path).external_files
        standing = store.look(file.path, external, options.dimensions)
        state, note, artifact = standing.state, standing.why, standing.artifact
        bounds = _bounds(settings)
        tight_bytes = 0 if artifact is None else artifact.manifest.ceiling_bytes
        if not check and (artifact is None or again or 0 < tight_bytes < bounds.memory_bytes // 2):
            note = f"it was {state}: {note}" if state == "damaged" else ""
            artifact = prepare(store, file.path, external, bounds, dimensions=options.dimensions)
            state = "prepared"
    except (PrepareFailed, OnnxFormatError, OSError) as error:
        return False, _cells("failed", note=str(error))
    if artifact is None:
        return False, _cells(state, note=note)
    made.add(artifact.manifest.key)
    return True, _artifact_cells(artifact, state, note)


def _artifact_cells(artifact: Artifact, state: str, note: str) -> list[str]:
    from modelhost.units import format_bytes

    found = artifact.manifest
    heap = next(figures for figures in found.figures if figures.variant == "heap")
    chosen = next(figures for figures in found.figures if figures.variant == found.variant)
    tight = f"{format_bytes(found.ceiling_bytes)} of memory were too little to try all" if found.ceiling_bytes else ""
    notes = [note, tight, found.reason if found.variant == "heap" else ""]
    return _cells(
        state,
        found.variant,
        f"{format_bytes(heap.resident_bytes)} -> {format_bytes(chosen.resident_bytes)}",
        f"{heap.load_ms:.1f} -> {chosen.load_ms:.1f} ms",
        format_bytes(found.weights_bytes),
        note="; ".join(text for text in notes if text),
    )


def _cells(
    state: str, weights: str = "", committed: str = "", load: str = "", file: str = "", *, note: str
) -> list[str]:
    return [state, weights, committed, load, file, note]


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
