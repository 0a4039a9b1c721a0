"""Commands that try for long whether anything breaks: everything at once, kills, swaps, nonsense."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.commands import options


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=30, show_default=True, help="Length of the rough phase.")
@options.count(60, "Models of all kinds, six of them always in use.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of who asks what, and what goes wrong when.")
@click.option("--fault", "faults", multiple=True, help="Only this one; may be given several times.")
@options.limit
@options.cache
@options.out
def soak(
    minutes: float,
    count: int,
    seed: int,
    faults: tuple[str, ...],
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Everything at once, for as long as one likes: does anything get killed, lost, wrong, slow, or larger?

    Six models are always in use and measured; dozens of others come and go; clients leave, files are
    replaced, preparing is killed, senders are slow, the limit is lowered. Every answer is checked.
    """
    from benchmarks.soak import run as case

    plan = case.Plan(seconds=60 * minutes, models=count, limit_bytes=limit_bytes, seed=seed, faults=faults)
    with options.report("soak", out, minutes=minutes, models=count, seed=seed, **options.limits(limit_bytes)) as report:
        case.run(report, plan, cache=cache)


@click.command("endurance")
@click.option("--hours", type=click.FloatRange(0.001), default=3, show_default=True, help="Length of the rough phase.")
@options.count(60, "Models of all kinds, six of them always in use.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of who asks what, and what goes wrong when.")
@click.option("--short", is_flag=True, help="Some seconds, and 8 models: says nothing about drift and times.")
@options.limit
@options.cache
@options.out
def endurance(
    hours: float, count: int, seed: int, short: bool, limit_bytes: int, cache: Path | None, out: Path | None
) -> None:
    """The soak for hours: idle memory has to draw a flat line."""
    from benchmarks.soak import run as case

    if short:
        hours, count = min(hours, 4 / 3600), min(count, 8)
    plan = case.Plan(seconds=3600 * hours, models=count, limit_bytes=limit_bytes, seed=seed)
    with options.report(
        "endurance", out, hours=hours, models=count, seed=seed, **options.limits(limit_bytes)
    ) as report:
        case.run(report, plan, cache=cache)


@click.command()
@click.option("--swaps", type=click.IntRange(1), default=20, show_default=True, help="Times the files are replaced.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that ask all the while.")
@options.limit
@options.out
def swap(swaps: int, clients: int, limit_bytes: int, out: Path | None) -> None:
    """Replace a model's files while clients ask for it: no failed request, no answer of two generations."""
    from benchmarks import swap as case

    with options.report("swap", out, swaps=swaps, clients=clients, **options.limits(limit_bytes)) as report:
        case.run(report, limit_bytes=limit_bytes, swaps=swaps, clients=clients)


@click.command()
@click.option("--times", type=click.IntRange(1), default=200, show_default=True, help="Kills.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments, and of the work.")
@options.cache
@options.out
def kill(times: int, seed: int, cache: Path | None, out: Path | None) -> None:
    """`kill -9` at random moments: is the next start clean, and does it answer right?

    While a host starts, prepares, loads, unloads, swaps and writes, and `modelhost prepare` works beside it. Each
    start is looked at: complaints in its log, leftovers, artifacts that are not whole, totals that went back, and
    answers against those of ONNX Runtime itself. Some five seconds for each.
    """
    from benchmarks.kill import run as case

    with options.report("kill", out, times=times, seed=seed) as report:
        case.run(report, times=times, seed=seed, cache=cache)


@click.command()
@click.option("--requests", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Requests in all.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of what is changed, and how.")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Write what was sent before a finding there."
)
@options.limit
@options.out
def fuzz(requests: int, seed: int, save: Path | None, limit_bytes: int, out: Path | None) -> None:
    """A million requests, changed a little, over all endpoints: no failure, no growth, and right framing.

    Seeds are those of tests/corpus. Many requests go in one write over several connections; some are no
    requests at all, or their clients leave. Five minutes.
    """
    from benchmarks.fuzz import run as case

    with options.report("fuzz", out, requests=requests, seed=seed, **options.limits(limit_bytes)) as report:
        case.run(report, requests=requests, seed=seed, limit_bytes=limit_bytes, save=save)


@click.command()
@options.count(200, "Models, of which a few get most of the requests.")
@click.option("--size", "size_mb", type=float, default=3, show_default=True, help="Size of each, in MB.")
@click.option("--seconds", type=click.FloatRange(1), default=45, show_default=True, help="Of load, before and after.")
@click.option("--warm", "warm_s", type=click.FloatRange(0), default=30, show_default=True, help="Of load before that.")
@click.option("--clients", type=click.IntRange(1), default=4, show_default=True, help="Processes that ask.")
@click.option("--share", "share_bytes", type=options.Size(), default="256MB", show_default=True, help="Of a replica.")
@click.option("--exponent", type=float, default=1.0, show_default=True, help="Of Zipf's law.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of who asks what.")
@click.option("--contender", "names", multiple=True, help="Only this one; may be given several times.")
@options.cache
@options.out
def cluster(
    count: int,
    size_mb: float,
    seconds: float,
    warm_s: float,
    clients: int,
    share_bytes: int,
    exponent: float,
    seed: int,
    names: tuple[str, ...],
    cache: Path | None,
    out: Path | None,
) -> None:
    """Three nodes of Ray, one of which is killed under load: beside plain Ray Serve with multiplexed sessions.

    Needs an environment with Ray: `make .venv-ray/.made`, then `.venv-ray/bin/python -m benchmarks cluster`. Clients
    are tritonclient's. Each node is in a memory group of its own where one can be made. Ten minutes.
    """
    from benchmarks.cluster import run as case
    from benchmarks.cluster.nodes import why_no_groups

    reason = why_no_groups()
    plan = case.Plan(
        seconds=seconds, warm_s=warm_s, clients=clients, exponent=exponent, seed=seed, share_bytes=share_bytes
    )
    with options.report(
        "cluster",
        out,
        models=count,
        size_mb=size_mb,
        seconds=seconds,
        clients=clients,
        share_bytes=share_bytes,
        exponent=exponent,
        seed=seed,
        limit_kind="cgroup" if reason is None else f"none: {reason}",
    ) as report:
        case.run(report, options.models(report, count, cache, size_mb=size_mb), plan, names=names)
