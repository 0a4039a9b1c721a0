"""Commands that start no host: what policies would do with traces that are too long to be run."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.commands import options

# Named here again, as --help is to import no numpy; a test compares them.
_TRACES = ("zipf", "diurnal", "scan", "bursts")
_POLICIES = ("lru", "gdsf", "belady", "belady-size")


@click.command()
@click.option(
    "--trace", "traces", type=click.Choice(_TRACES), multiple=True, help="Which are made; all where none is given."
)
@click.option(
    "--file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Instead: a recorded trace. CSV, a line for each request: model, size_bytes, load_s; the last two may be "
    "empty after a model's first line.",
)
@options.count(50_000, "Distinct models, of log-normal sizes around 8 MB.")
@click.option("--requests", type=click.IntRange(10), default=10_000_000, show_default=True, help="Length of a trace.")
@click.option(
    "--memory", "memory_bytes", type=options.Size(), help="Room for models. [default: a fiftieth of what all hold]"
)
@click.option(
    "--policy", "policies", type=click.Choice(_POLICIES), multiple=True, help="Which; all where none is given."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the trace, and of the models' sizes.")
@options.out
def policy(
    traces: tuple[str, ...],
    file: Path | None,
    count: int,
    requests: int,
    memory_bytes: int | None,
    policies: tuple[str, ...],
    seed: int,
    out: Path | None,
) -> None:
    """Eviction policies on the same requests: hit ratio, cold starts, bytes read, refusals.

    `lru` and `gdsf` are those of `pool.eviction`. `belady` knows the future and evicts what will not be wanted for
    longest, `belady-size` what takes most bytes for longest: what is left to win. One core; ten million requests take
    half a minute for each policy of the host.

    \b
    Examples:
      python -m benchmarks policy --trace zipf
      python -m benchmarks policy --trace scan --models 2000 --requests 200000 --memory 256MB
    """
    from benchmarks.policy import run as case

    policies = policies or _POLICIES
    with options.report("policy", out, models=count, requests=requests, seed=seed) as report:
        for trace in (file,) if file is not None else traces or _TRACES:
            case.run(report, case.Plan(trace, count, requests, memory_bytes, policies, seed))
        case.table(report)


_TIMED = ("zipf", "diurnal", "bursts", "periodic")


@click.command()
@click.option(
    "--trace", "traces", type=click.Choice(_TIMED), multiple=True, help="Which are made; all where none is given."
)
@options.count(300, "Distinct models.")
@click.option("--requests", type=click.IntRange(10), default=20_000, show_default=True, help="Length of a trace.")
@click.option("--rate", type=click.FloatRange(0.01), default=1.0, show_default=True, help="Requests a second.")
@click.option("--room", type=click.IntRange(1), default=150, show_default=True, help="Models that fit at once.")
@click.option(
    "--idle-ttl", type=click.FloatRange(1), default=120, show_default=True, help="Seconds after which idle ones leave."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the traces.")
@options.out
def prediction(
    traces: tuple[str, ...],
    count: int,
    requests: int,
    rate: float,
    room: int,
    idle_ttl: float,
    seed: int,
    out: Path | None,
) -> None:
    """Cold starts with and without `pool.predictive`, on the same requests; no host, and no time passes.

    Models leave when nobody has used them for a while, or when room is needed; the host's own predictor is asked once
    a second. `periodic`: jobs every 2 to 30 minutes; the other traces are those of `policy`, at random moments.
    """
    from benchmarks.policy import ahead as case

    with options.report("prediction", out, models=count, requests=requests, rate=rate, room=room, seed=seed) as report:
        case.run(report, case.Plan(count, requests, rate, room, idle_ttl, seed), traces or _TIMED)
