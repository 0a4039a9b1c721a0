"""Commands that measure requests: how many, how long they take, and what else meets them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from benchmarks import places
from benchmarks.commands import options


@click.command()
@click.option("--requests", type=click.IntRange(10), default=1000, show_default=True, help="Requests in one turn.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Turns for each server and form.")
@options.out
def overhead(requests: int, turns: int, out: Path | None) -> None:
    """What a request costs: `digits` by JSON and binary, as a ratio to a bare ASGI callable."""
    from benchmarks import overhead as case

    with options.report("overhead", out, requests=requests, turns=turns) as report:
        case.run(report, places.ROOT / "models", requests=requests, turns=turns)


@click.command()
@click.option("--only", help="These workloads, with commas. [default: all]")
@click.option("--form", type=click.Choice(["json", "binary"]), help="Only this form. [default: both]")
@click.option("--connections", type=click.IntRange(1), multiple=True, help="Only so many. [default: 1, 8, 32]")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each server, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=3, show_default=True, help="Length of a run.")
@click.option("--peers", metavar="NAMES", help="Other servers, with commas; all; none. [default: the installed ones]")
@click.option("--picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw the results into this SVG file.")
@click.option(
    "--quick", is_flag=True, help="A second for each server, in one form over one number of connections: a minute."
)
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="MODELHOST_NAME of the host is VALUE.")
@options.cache
@options.out
def throughput(
    only: str | None,
    form: str | None,
    connections: tuple[int, ...],
    rounds: int,
    seconds: int,
    peers: str | None,
    picture: Path | None,
    quick: bool,
    settings: tuple[str, ...],
    cache: Path | None,
    out: Path | None,
) -> None:
    """Requests a second and times, driven by wrk, beside plain, hand-written and bare; and other servers.

    plain is the session in a loop on every core, hand-written thirty lines of FastAPI, bare one ASGI
    callable; benchmarks/README.md says what each does and how to read the table. The status is 1 on wrong
    answers and errors, never on times.

    \b
    Other servers are measured where they are installed:
      python -m benchmarks peers --install mosec mlserver
    """
    from benchmarks import throughput as case
    from benchmarks import workloads
    from benchmarks.peers import catalogue

    if quick:
        rounds, seconds, peers = 1, 1, peers or "none"
    plan = case.Plan(
        rounds=rounds,
        seconds=seconds,
        forms=(form,) if form else ("json", "binary"),
        connections=connections or None,
        is_quick=quick,
        settings=dict(options.pair(text) for text in settings),
    )
    chosen = only.split(",") if only else workloads.names()
    try:
        others = catalogue.choose(peers, cache)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    with options.report("throughput", out, workloads=chosen, peers=others, **asdict(plan)) as report:
        made = [workloads.make(name, cache=cache) for name in chosen]
        case.run(report, made, plan, catalogue.servers(others, cache=cache), picture=picture)


@click.command()
@click.option("--only", default="tiny,medium,large", show_default=True, help="These workloads, with commas.")
@click.option("--form", type=click.Choice(["json", "binary"]), default="binary", show_default=True)
@click.option("--connections", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=4, show_default=True, help="Length of a run.")
@options.count(6, "Models of 20 MB that are loaded and unloaded; every second one is prepared.")
@options.cache
@options.out
def loading(
    only: str,
    form: str,
    connections: int,
    rounds: int,
    seconds: int,
    count: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Times of a resident model's requests while other models load, beside those while nothing does.

    Driven by wrk. The status is 1 on wrong answers and errors, never on times.
    """
    from benchmarks import loading as case
    from benchmarks import workloads

    plan = case.Plan(rounds=rounds, seconds=seconds, connections=connections, form=form)
    names = only.split(",")
    with options.report("loading", out, workloads=names, models=count, **asdict(plan)) as report:
        models = options.models(report, count, cache)
        case.run(report, [workloads.make(name, cache=cache) for name in names], models, plan)


@click.command()
@click.option("--others", default="tiny,medium", show_default=True, help="Models that a few clients use, with commas.")
@click.option("--floods", default="tiny,medium,slow", show_default=True, help="Models that are flooded, in turns.")
@click.option("--form", type=click.Choice(["json", "binary"]), default="binary", show_default=True)
@click.option("--connections", type=click.IntRange(1), default=2, show_default=True, help="To each of the others.")
@click.option("--pause", "pause_ms", type=click.IntRange(0), default=10, show_default=True, help="Theirs, in ms.")
@click.option("--flood", "flood_connections", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=4, show_default=True, help="Length of a run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the host; several times.")
@options.cache
@options.out
def fairness(
    others: str,
    floods: str,
    form: str,
    connections: int,
    pause_ms: int,
    flood_connections: int,
    rounds: int,
    seconds: int,
    settings: tuple[str, ...],
    cache: Path | None,
    out: Path | None,
) -> None:
    """Times and numbers of some models' requests while another one is flooded, beside those while nothing is.

    Driven by wrk. The status is 1 on wrong answers and errors of the others, never on times.
    """
    from benchmarks import fairness as case
    from benchmarks import workloads

    plan = case.Plan(
        rounds=rounds,
        seconds=seconds,
        connections=connections,
        flood_connections=flood_connections,
        form=form,
        pause_ms=pause_ms,
        settings=dict(options.pair(text) for text in settings),
    )
    named = {"others": others.split(","), "floods": floods.split(",")}
    with options.report("fairness", out, **named, **asdict(plan)) as report:
        made = {kind: [workloads.make(name, cache=cache) for name in names] for kind, names in named.items()}
        case.run(report, made["others"], made["floods"], plan)


@click.command("slow-clients")
@click.option("--senders", type=click.IntRange(1), default=500, show_default=True, help="Connections that send slowly.")
@click.option(
    "--body", "body_bytes", type=options.Size(), default="10MB", show_default=True, help="What they say they send."
)
@click.option(
    "--pace", type=click.FloatRange(0.1), default=10, show_default=True, help="Bytes a second, each sent by itself."
)
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that are not slow.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=10, show_default=True, help="Length of a run.")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="MODELHOST_NAME of the host is VALUE.")
@options.limit
@options.cache
@options.out
def slow_clients(
    senders: int,
    body_bytes: int,
    pace: float,
    clients: int,
    rounds: int,
    seconds: int,
    settings: tuple[str, ...],
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Hundreds of connections send large bodies byte by byte; a few others use a resident model, driven by wrk.

    The others see no error and less than 3 times their calm p99, and usage stays below critical.

    \b
    More than there are places for, and places for as many:
      python -m benchmarks slow-clients --senders 1000
      python -m benchmarks slow-clients --senders 1000 --set SERVER_MAX_CONNECTIONS=1100
    """
    from benchmarks import slow_clients as case
    from benchmarks import workloads

    plan = case.Plan(senders, body_bytes, pace, clients, seconds, rounds, dict(options.pair(text) for text in settings))
    with options.report("slow-clients", out, **asdict(plan), **options.limits(limit_bytes)) as report:
        case.run(report, workloads.make("tiny", cache=cache), plan, limit_bytes=limit_bytes)


@click.command("peers")
@click.argument("names", nargs=-1)
@click.option("--install", is_flag=True, help="Make the environments of NAMES, or of all.")
@click.option(
    "--python", help="The Python to make them with: not all servers are there for the newest. [default: this]"
)
@options.cache
def list_peers(names: tuple[str, ...], install: bool, python: str | None, cache: Path | None) -> None:
    """Lists the other servers to compare with, or installs them, each in an environment of its own."""
    from benchmarks.client import RequestFailed
    from benchmarks.peers import catalogue

    try:
        chosen = catalogue.choose(",".join(names) or "all", cache)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    failed = False
    for name in chosen:
        if install:
            try:
                catalogue.install(name, python=python, cache=cache, progress=lambda text: click.echo(text, err=True))
            except RequestFailed as error:
                failed = True
                click.echo(str(error), err=True)
        state = "installed" if catalogue.is_installed(name, cache) else "not installed"
        click.echo(f"{name:10} {state:14} {', '.join(catalogue.PEERS[name].requirements)}")
    if failed:
        raise SystemExit(1)
