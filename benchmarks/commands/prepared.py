"""Commands that measure prepared models, and models in processes of their own."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.commands import options


@click.command()
@click.option("--loads", type=click.IntRange(1), default=5, show_default=True, help="Loads of each kind, in turns.")
@click.option("--turns", type=click.IntRange(1), default=8, show_default=True, help="Stretches of runs, in turns.")
@click.option("--sequence", type=click.IntRange(1), default=64, show_default=True, help="Length of sequences.")
@click.option("--model", "names", multiple=True, help="Only this one; may be given several times.")
@options.transformer
@options.cache
@options.out
def prepared(
    loads: int,
    turns: int,
    sequence: int,
    names: tuple[str, ...],
    transformer: Path | None,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Prepared sessions beside stock ones: load time, committed memory, run time, as ratios.

    A convolutional net of 20 MB, dense layers of 100 MB, ResNet-50 and DenseNet-121 as the onnx package
    ships them, and a transformer encoder where one is given; each session in a process of its own.
    """
    from benchmarks import prepared as case
    from benchmarks import zoo

    chosen = names or ("conv20", "gemm", *case.LIGHT)
    with options.report("prepared", out, loads=loads, turns=turns, sequence=sequence, models=list(chosen)) as report:
        given = [transformer] if transformer else []
        directory = zoo.repository("prepared", chosen, cache=cache, given=given)
        encoder = transformer.stem if transformer else None
        case.run(report, directory, loads=loads, turns=turns, sequence=sequence, encoder=encoder)


@click.command()
@click.option("--light/--no-light", default=True, show_default=True, help="The networks that onnx ships, up to 550 MB.")
@click.option("--model", "names", multiple=True, help="Only this one; may be given several times.")
@options.transformer
@options.cache
@options.out
def estimates(
    light: bool, names: tuple[str, ...], transformer: Path | None, cache: Path | None, out: Path | None
) -> None:
    """What preparing predicts against what a host measures: committed memory, and bytes of a run.

    Some twenty models: convolutions, dense layers, attention, a table, a recurrent net, one whose
    activations are thousands of times its input, those of this project, and the networks that onnx
    ships. Each is prepared once, then measured in processes of their own at sizes that preparing did
    not try.
    """
    from benchmarks import estimates as case
    from benchmarks import zoo

    chosen = names or (
        *zoo.made_models(),
        *zoo.shipped_models(),
        *(zoo.light_models() if light else ()),
    )
    with options.report("estimates", out, models=list(chosen)) as report:
        given = [transformer] if transformer else []
        case.run(report, zoo.repository("estimates", chosen, cache=cache, given=given))


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True, help="Quarters of a second each.")
@click.option("--only", "names", multiple=True, help="Only this workload; may be given several times.")
@options.limit
@options.cache
@options.out
def isolation(rounds: int, names: tuple[str, ...], limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Models in worker processes beside the same in the host: request time, load time, memory. Under a minute."""
    from benchmarks import isolation as case
    from benchmarks import workloads

    chosen = names or ("tiny", "medium", "gemm", "large_image")
    with options.report("isolation", out, rounds=rounds, models=list(chosen), **options.limits(limit_bytes)) as report:
        made = [workloads.make(name, cache=cache) for name in chosen]
        case.run(report, made, limit_bytes=limit_bytes, rounds=rounds)
