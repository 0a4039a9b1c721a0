"""The command line of the benchmarks: one command for each case."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from benchmarks.client import RequestFailed
from benchmarks.models import SIZE_MB, ModelSet, conv_nets, default_cache
from benchmarks.process import ROOT
from benchmarks.report import Report
from modelhost.testing import cgroup
from modelhost.units import format_bytes, parse_size

F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_out = click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the JSON lines to this file. [default: standard output]",
)
_limit = click.option(
    "--limit", "limit_bytes", type=_Size(), default="256MB", show_default=True, help="Memory limit of the host."
)
_cache = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Where generated models are kept. [default: {default_cache()}]",
)

_transformer = click.option(
    "--transformer",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A transformer encoder; benchmarks/export_transformer.py writes one, where there is torch.",
)


def _count(default: int, text: str) -> Callable[[F], F]:
    return click.option("--models", "count", type=click.IntRange(2), default=default, show_default=True, help=text)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Measure modelhost: memory, time, and whether answers stay right under pressure.

    Every command starts the real server process, in a memory cgroup of its own where the user may
    make one (root, or a delegated group), else with memory.limit; it drives it over HTTP and checks
    every answer. Results are JSON lines with commit, machine, versions and parameters; a table comes
    at the end, on standard error. The exit status is 1 where something that must hold did not.

    \b
    Start here:
      python -m benchmarks idle                  start time and memory of a host that does nothing
      python -m benchmarks density --small       prepared models where a plain loop is killed: half a minute
      python -m benchmarks prepared              prepared sessions beside stock ones
      python -m benchmarks isolation             models in worker processes beside the same in the host
      python -m benchmarks pressure              40 models of 20 MB in a container of 256 MB
      python -m benchmarks sequential --out sequential.jsonl

    Generated models (20 MB each) are made once and kept; --cache says where.
    """


@cli.command()
@_count(24, "Distinct models of 20 MB; more than fit.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Times that each is asked.")
@_limit
@_cache
@_out
def sequential(count: int, rounds: int, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """More models than fit, one after another: load time, usage, evictions, right answers."""
    from benchmarks import sequential as case

    with _report("sequential", out, models=count, rounds=rounds, **_limits(limit_bytes)) as report:
        case.run(report, _models(report, count, cache), limit_bytes=limit_bytes, rounds=rounds)


@cli.command()
@_limit
@_cache
@_out
def recovery(limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Push to warning and to critical, let go: time back to baseline, bytes not returned."""
    from benchmarks import recovery as case

    with _report("recovery", out, **_limits(limit_bytes)) as report:
        case.run(report, _models(report, limit_bytes // (20 << 20), cache), limit_bytes=limit_bytes)


@cli.command()
@_count(40, "Distinct models of 20 MB; more than fit.")
@click.option("--requests", type=click.IntRange(1), default=400, show_default=True, help="Requests in random order.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that send them at once.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random order.")
@click.option("--url", help="A running host that serves what `python -m benchmarks models` made. [default: a new one]")
@_limit
@_cache
@_out
def pressure(
    count: int,
    requests: int,
    clients: int,
    seed: int,
    url: str | None,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Far more models than fit, in order and at random: every answer right, nothing failed or killed.

    \b
    Against a container:
      docker run --memory 256m -v $(python -m benchmarks models):/models:ro -p 127.0.0.1:8080:8080 \\
        -e MODELHOST_SECURITY_INSECURE=true modelhost
      python -m benchmarks pressure --url http://127.0.0.1:8080
    """
    from benchmarks import pressure as case

    parameters: dict[str, Any] = {"models": count, "requests": requests, "clients": clients, "seed": seed}
    parameters |= {"url": url} if url else _limits(limit_bytes)
    with _report("pressure", out, **parameters) as report:
        models = _models(report, count, cache)
        case.run(report, models, limit_bytes=limit_bytes, requests=requests, clients=clients, seed=seed, url=url)


@cli.command()
@_count(100, "Distinct models.")
@click.option("--size-mb", type=click.FloatRange(0.1), default=20, show_default=True, help="Weights of each model.")
@click.option("--layers", type=click.IntRange(2), help="Layers of each model. [default: 9, or about that]")
@click.option("--requests", type=click.IntRange(1), default=2000, show_default=True, help="Requests by popularity.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that send them at once.")
@click.option(
    "--exponent",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Zipf's law: the model of rank r is asked r to the power of minus this as often; 0: all alike.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of ranks and order.")
@click.option("--small", is_flag=True, help="6 models and 60 requests at most: half a minute.")
@_limit
@_cache
@_out
def density(
    count: int,
    size_mb: float,
    layers: int | None,
    requests: int,
    clients: int,
    exponent: float,
    seed: int,
    small: bool,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """A hundred prepared models in 256 MB, all loaded at once; a plain loop in the same for comparison.

    Models are made and prepared first, outside of the limit, and kept: 100 of 20 MB take 4 GB of disk
    and five minutes the first time.

    
    And a thousand of 2 MB (a loaded session holds some 12 KB for each of its nodes, whatever the weights):
      python -m benchmarks density --models 1000 --size-mb 2 --layers 3 --exponent 0
    """
    from benchmarks import density as case

    if small:
        count, requests = min(count, 6), min(requests, 60)
    load = case.Load(requests=requests, clients=clients, exponent=exponent, seed=seed)
    parameters = {"models": count, "size_mb": size_mb, "layers": layers, **asdict(load), **_limits(limit_bytes)}
    with _report("density", out, **parameters) as report:
        models = _models(report, count, cache, size_mb=size_mb, layers=layers, label="prepared-all")
        case.run(report, models, limit_bytes=limit_bytes, load=load)


@cli.command()
@click.option("--loads", type=click.IntRange(1), default=5, show_default=True, help="Loads of each kind, in turns.")
@click.option("--turns", type=click.IntRange(1), default=8, show_default=True, help="Stretches of runs, in turns.")
@click.option("--sequence", type=click.IntRange(1), default=64, show_default=True, help="Length of sequences.")
@click.option("--model", "names", multiple=True, help="Only this one; may be given several times.")
@_transformer
@_cache
@_out
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
    with _report("prepared", out, loads=loads, turns=turns, sequence=sequence, models=list(chosen)) as report:
        given = [transformer] if transformer else []
        directory = zoo.repository("prepared", chosen, cache=cache, given=given)
        encoder = transformer.stem if transformer else None
        case.run(report, directory, loads=loads, turns=turns, sequence=sequence, encoder=encoder)


@cli.command()
@click.option("--cycles", type=click.IntRange(20), default=300, show_default=True, help="Load, ask, unload.")
@_count(8, "Distinct models, taken in turn.")
@click.option(
    "--prepared",
    type=click.Choice(["none", "half", "all"]),
    default="none",
    show_default=True,
    help="Which of them are prepared first: half is every other one.",
)
@_limit
@_cache
@_out
def churn(cycles: int, count: int, prepared: str, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Hundreds of loads and unloads: does usage drift away from where it began?

    \b
    The long form, some minutes:
      python -m benchmarks churn --cycles 2000 --models 50 --prepared half
    """
    from benchmarks import churn as case

    wanted = {"none": [False] * count, "half": [index % 2 == 0 for index in range(count)], "all": [True] * count}
    parameters = {"cycles": cycles, "models": count, "prepared": prepared, **_limits(limit_bytes)}
    with _report("churn", out, **parameters) as report:
        models = _models(report, count, cache, label="" if prepared == "none" else f"prepared-{prepared}")
        case.run(report, models, limit_bytes=limit_bytes, cycles=cycles, is_prepared=wanted[prepared])


@cli.command()
@click.option("--swaps", type=click.IntRange(1), default=20, show_default=True, help="Times the files are replaced.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that ask all the while.")
@_limit
@_out
def swap(swaps: int, clients: int, limit_bytes: int, out: Path | None) -> None:
    """Replace a model's files while clients ask for it: no failed request, no answer of two generations."""
    from benchmarks import swap as case

    with _report("swap", out, swaps=swaps, clients=clients, **_limits(limit_bytes)) as report:
        case.run(report, limit_bytes=limit_bytes, swaps=swaps, clients=clients)


@cli.command()
@click.option("--rounds", type=click.IntRange(1), default=12, show_default=True, help="Quarters of a second each.")
@click.option("--only", "names", multiple=True, help="Only this workload; may be given several times.")
@_limit
@_cache
@_out
def isolation(rounds: int, names: tuple[str, ...], limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Models in worker processes beside the same in the host: request time, load time, memory. Under a minute."""
    from benchmarks import isolation as case
    from benchmarks import workloads

    chosen = names or ("tiny", "medium", "gemm", "large_image")
    with _report("isolation", out, rounds=rounds, models=list(chosen), **_limits(limit_bytes)) as report:
        made = [workloads.make(name, cache=cache) for name in chosen]
        case.run(report, made, limit_bytes=limit_bytes, rounds=rounds)


@cli.command()
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Starts.")
@_limit
@_out
def idle(runs: int, limit_bytes: int, out: Path | None) -> None:
    """Process start to ready, and the memory of the idle host: min, median, max."""
    from benchmarks import idle as case

    with _report("idle", out, runs=runs, **_limits(limit_bytes)) as report:
        case.run(report, ROOT / "models", limit_bytes=limit_bytes, runs=runs)


@cli.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Fresh processes.")
@_out
def imports(runs: int, out: Path | None) -> None:
    """Committed memory and time that each runtime dependency's import adds, in order."""
    from benchmarks import imports as case

    with _report("imports", out, runs=runs) as report:
        case.run(report, runs=runs)


@cli.command()
@click.option("--light/--no-light", default=True, show_default=True, help="The networks that onnx ships, up to 550 MB.")
@click.option("--model", "names", multiple=True, help="Only this one; may be given several times.")
@_transformer
@_cache
@_out
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

    chosen = names or (*zoo.made_models(), *zoo.shipped_models(), *(zoo.light_models() if light else ()))
    with _report("estimates", out, models=list(chosen)) as report:
        given = [transformer] if transformer else []
        case.run(report, zoo.repository("estimates", chosen, cache=cache, given=given))


@cli.command()
@click.option("--requests", type=click.IntRange(10), default=1000, show_default=True, help="Requests in one turn.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Turns for each server and form.")
@_out
def overhead(requests: int, turns: int, out: Path | None) -> None:
    """What a request costs: `digits` by JSON and binary, as a ratio to a bare ASGI callable."""
    from benchmarks import overhead as case

    with _report("overhead", out, requests=requests, turns=turns) as report:
        case.run(report, ROOT / "models", requests=requests, turns=turns)


@cli.command()
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
@_cache
@_out
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
        settings=dict(_pair(text) for text in settings),
    )
    chosen = only.split(",") if only else workloads.names()
    try:
        others = catalogue.choose(peers, cache)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    with _report("throughput", out, workloads=chosen, peers=others, **asdict(plan)) as report:
        made = [workloads.make(name, cache=cache) for name in chosen]
        case.run(report, made, plan, catalogue.servers(others, cache=cache), picture=picture)


@cli.command()
@click.option("--only", default="tiny,medium,large", show_default=True, help="These workloads, with commas.")
@click.option("--form", type=click.Choice(["json", "binary"]), default="binary", show_default=True)
@click.option("--connections", type=click.IntRange(1), default=8, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=4, show_default=True, help="Length of a run.")
@_count(6, "Models of 20 MB that are loaded and unloaded; every second one is prepared.")
@_cache
@_out
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
    with _report("loading", out, workloads=names, models=count, **asdict(plan)) as report:
        models = _models(report, count, cache)
        case.run(report, [workloads.make(name, cache=cache) for name in names], models, plan)


@cli.command()
@click.option("--others", default="tiny,medium", show_default=True, help="Models that a few clients use, with commas.")
@click.option("--floods", default="tiny,medium,slow", show_default=True, help="Models that are flooded, in turns.")
@click.option("--form", type=click.Choice(["json", "binary"]), default="binary", show_default=True)
@click.option("--connections", type=click.IntRange(1), default=2, show_default=True, help="To each of the others.")
@click.option("--pause", "pause_ms", type=click.IntRange(0), default=10, show_default=True, help="Theirs, in ms.")
@click.option("--flood", "flood_connections", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=4, show_default=True, help="Length of a run.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the host; several times.")
@_cache
@_out
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
        settings=dict(_pair(text) for text in settings),
    )
    named = {"others": others.split(","), "floods": floods.split(",")}
    with _report("fairness", out, **named, **asdict(plan)) as report:
        made = {kind: [workloads.make(name, cache=cache) for name in names] for kind, names in named.items()}
        case.run(report, made["others"], made["floods"], plan)


@cli.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=30, show_default=True, help="Length of the rough phase.")
@_count(60, "Models of all kinds, six of them always in use.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of who asks what, and what goes wrong when.")
@click.option("--fault", "faults", multiple=True, help="Only this one; may be given several times.")
@_limit
@_cache
@_out
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
    with _report("soak", out, minutes=minutes, models=count, seed=seed, **_limits(limit_bytes)) as report:
        case.run(report, plan, cache=cache)


@cli.command()
@click.option("--times", type=click.IntRange(1), default=200, show_default=True, help="Kills.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the moments, and of the work.")
@_cache
@_out
def kill(times: int, seed: int, cache: Path | None, out: Path | None) -> None:
    """`kill -9` at random moments: is the next start clean, and does it answer right?

    While a host starts, prepares, loads, unloads, swaps and writes, and `modelhost prepare` works beside it. Each
    start is looked at: complaints in its log, leftovers, artifacts that are not whole, totals that went back, and
    answers against those of ONNX Runtime itself. Some five seconds for each.
    """
    from benchmarks.kill import run as case

    with _report("kill", out, times=times, seed=seed) as report:
        case.run(report, times=times, seed=seed, cache=cache)


@cli.command("slow-clients")
@click.option("--senders", type=click.IntRange(1), default=500, show_default=True, help="Connections that send slowly.")
@click.option("--body", "body_bytes", type=_Size(), default="10MB", show_default=True, help="What they say they send.")
@click.option(
    "--pace", type=click.FloatRange(0.1), default=10, show_default=True, help="Bytes a second, each sent by itself."
)
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that are not slow.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Runs of each kind, in turns.")
@click.option("--seconds", type=click.IntRange(1), default=10, show_default=True, help="Length of a run.")
@click.option("--set", "settings", metavar="NAME=VALUE", multiple=True, help="MODELHOST_NAME of the host is VALUE.")
@_limit
@_cache
@_out
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

    
    More than there are places for, and places for as many:
      python -m benchmarks slow-clients --senders 1000
      python -m benchmarks slow-clients --senders 1000 --set SERVER_MAX_CONNECTIONS=1100
    """
    from benchmarks import slow_clients as case
    from benchmarks import workloads

    plan = case.Plan(senders, body_bytes, pace, clients, seconds, rounds, dict(_pair(text) for text in settings))
    with _report("slow-clients", out, **asdict(plan), **_limits(limit_bytes)) as report:
        case.run(report, workloads.make("tiny", cache=cache), plan, limit_bytes=limit_bytes)


@cli.command()
@click.option("--requests", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Requests in all.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of what is changed, and how.")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Write what was sent before a finding there."
)
@_limit
@_out
def fuzz(requests: int, seed: int, save: Path | None, limit_bytes: int, out: Path | None) -> None:
    """A million requests, changed a little, over all endpoints: no failure, no growth, and right framing.

    Seeds are those of tests/corpus. Many requests go in one write over several connections; some are no
    requests at all, or their clients leave. Five minutes.
    """
    from benchmarks.fuzz import run as case

    with _report("fuzz", out, requests=requests, seed=seed, **_limits(limit_bytes)) as report:
        case.run(report, requests=requests, seed=seed, limit_bytes=limit_bytes, save=save)


@cli.command("peers")
@click.argument("names", nargs=-1)
@click.option("--install", is_flag=True, help="Make the environments of NAMES, or of all.")
@click.option(
    "--python", help="The Python to make them with: not all servers are there for the newest. [default: this]"
)
@_cache
def list_peers(names: tuple[str, ...], install: bool, python: str | None, cache: Path | None) -> None:
    """Lists the other servers to compare with, or installs them, each in an environment of its own."""
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


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found:
        raise click.BadParameter(f"expected NAME=VALUE, got '{text}'")
    return name.upper().removeprefix("MODELHOST_"), value


@cli.command()
@_count(40, "Distinct models of 20 MB.")
@_cache
def models(count: int, cache: Path | None) -> None:
    """Only make the models; prints the directory that has them, to serve or to mount."""
    click.echo(conv_nets(count, cache=cache).directory)


@contextmanager
def _report(benchmark: str, out: Path | None, **parameters: Any) -> Iterator[Report]:
    """Opens the results; ends the process with status 1 where something that must hold did not."""
    stream = sys.stdout if out is None else out.open("a", encoding="utf-8")
    report = Report(benchmark, parameters, stream)
    try:
        yield report
    except (RequestFailed, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        if out is not None:
            stream.close()
    for text in report.violations:
        click.echo(f"VIOLATED: {text}", err=True)
    if report.violations:
        raise SystemExit(1)


def _limits(limit_bytes: int) -> dict[str, Any]:
    """Says what kind of limit it will be, once, and returns it as parameters."""
    reason = cgroup.available()
    kind = "a memory cgroup" if reason is None else "memory.limit"
    click.echo(f"limit: {format_bytes(limit_bytes)} by {kind}" + (f": {reason}" if reason else ""), err=True)
    return {"limit_bytes": limit_bytes, "limit_kind": "cgroup" if reason is None else "setting"}


def _models(
    report: Report,
    count: int,
    cache: Path | None,
    *,
    size_mb: float = SIZE_MB,
    layers: int | None = None,
    label: str = "",
) -> ModelSet:
    report.progress(f"{count} models of {size_mb:g} MB (made where they are missing)")
    return conv_nets(count, size_mb=size_mb, layers=layers, cache=cache, label=label, progress=report.progress)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # servers that were started end too
    cli(prog_name="python -m benchmarks")
