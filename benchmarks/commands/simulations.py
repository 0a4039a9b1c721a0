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


_PLACEMENTS = ("turns", "multiplexing", "rendezvous", "homes", "memory")


@click.command()
@click.option(
    "--trace",
    "traces",
    type=click.Choice(_TRACES),
    multiple=True,
    default=("zipf", "diurnal"),
    show_default=True,
    help="Which are made; may be repeated.",
)
@options.count(20_000, "Distinct models, of log-normal sizes around 8 MB.")
@click.option(
    "--requests", type=click.IntRange(10_000), default=10_000_000, show_default=True, help="Length of a trace."
)
@click.option("--hosts", type=click.IntRange(2, 1000), default=20, show_default=True, help="Hosts, all alike.")
@click.option(
    "--memory",
    "memory_bytes",
    type=options.Size(),
    help="Room for models on each host. [default: all hosts have a tenth of what all models hold]",
)
@click.option(
    "--placement", "placements", type=click.Choice(_PLACEMENTS), multiple=True, help="Which; all where none is given."
)
@click.option("--policy", type=click.Choice(("lru", "gdsf")), default="lru", show_default=True, help="Who is evicted.")
@click.option(
    "--bound",
    type=click.FloatRange(0, 100),
    default=1.25,
    show_default=True,
    help="How many times the mean load a host may have before its requests go elsewhere; 0: any.",
)
@click.option(
    "--window",
    type=click.IntRange(10),
    default=1000,
    show_default=True,
    help="What load is: requests that a host has had of the last so many, times the hosts.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the trace, and of the models' sizes.")
@options.out
def hosts(
    traces: tuple[str, ...],
    count: int,
    requests: int,
    hosts: int,
    memory_bytes: int | None,
    placements: tuple[str, ...],
    policy: str,
    bound: float,
    window: int,
    seed: int,
    out: Path | None,
) -> None:
    """Many models on several hosts: who gets a request, what is loaded, and what it takes when a host leaves or joins.

    `turns` knows no models, as a plain balancer; `multiplexing` routes as Ray Serve does; `rendezvous` hashes, with
    bounded load; `homes` asks who has it, and hashes where nobody does, as modelhost[ray]; `memory` asks who has it,
    where there is room, or who lets go of least. Each beside one host with the memory of all. One core; some minutes
    for each trace of ten million requests.

    \b
    Examples:
      python -m benchmarks hosts --trace zipf --requests 1000000
      python -m benchmarks hosts --models 1000000 --hosts 100 --policy gdsf
    """
    from benchmarks.policy import hosts as case

    if 0 < bound < 1.01:
        raise click.BadParameter("expected 0, or at least 1.01: someone has to be below it", param_hint="--bound")
    parameters = {"models": count, "requests": requests, "hosts": hosts, "policy": policy, "bound": bound}
    with options.report("hosts", out, **parameters, window=window, seed=seed) as report:
        for trace in traces:
            case.run(
                report,
                case.Plan(
                    trace=trace,
                    models=count,
                    requests=requests,
                    hosts=hosts,
                    budget_bytes=memory_bytes,
                    placements=placements or _PLACEMENTS,
                    policy=policy,
                    bound=bound,
                    window=window,
                    seed=seed,
                ),
            )
        case.tables(report)


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
