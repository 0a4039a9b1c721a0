"""Commands that measure memory: what models take, what comes back, what a limit holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks import places
from benchmarks.commands import options


@click.command()
@options.count(24, "Distinct models of 20 MB; more than fit.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Times that each is asked.")
@options.limit
@options.cache
@options.out
def sequential(count: int, rounds: int, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """More models than fit, one after another: load time, usage, evictions, right answers."""
    from benchmarks import sequential as case

    with options.report("sequential", out, models=count, rounds=rounds, **options.limits(limit_bytes)) as report:
        case.run(report, options.models(report, count, cache), limit_bytes=limit_bytes, rounds=rounds)


@click.command()
@click.option("--short", is_flag=True, help="Only to critical.")
@options.limit
@options.cache
@options.out
def recovery(short: bool, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Push to warning and to critical, let go: time back to baseline, bytes not returned."""
    from benchmarks import recovery as case

    with options.report("recovery", out, **options.limits(limit_bytes)) as report:
        models = options.models(report, limit_bytes // (40 << 20) + 1, cache)
        case.run(report, models, limit_bytes=limit_bytes, levels=case.LEVELS[-1:] if short else case.LEVELS)


@click.command()
@options.count(40, "Distinct models of 20 MB; more than fit.")
@click.option("--requests", type=click.IntRange(1), default=400, show_default=True, help="Requests in random order.")
@click.option("--clients", type=click.IntRange(1), default=8, show_default=True, help="Clients that send them at once.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random order.")
@click.option(
    "--hold", "hold_s", type=click.FloatRange(0), default=8, show_default=True, help="Seconds held at each level."
)
@click.option("--short", is_flag=True, help="5 models, 20 requests, 1.5 s at each level.")
@click.option("--url", help="A running host that serves what `python -m benchmarks models` made. [default: a new one]")
@options.limit
@options.cache
@options.out
def pressure(
    count: int,
    requests: int,
    clients: int,
    seed: int,
    hold_s: float,
    short: bool,
    url: str | None,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Far more models than fit, in order and at random; then held at warning and at critical from outside.

    Every answer is right and nothing is killed; while the level is held, what has no room is refused.

    \b
    Against a container:
      docker run --memory 256m -v $(python -m benchmarks models):/models:ro -p 127.0.0.1:8080:8080 \\
        -e MODELHOST_SECURITY_INSECURE=true modelhost
      python -m benchmarks pressure --url http://127.0.0.1:8080
    """
    from benchmarks import holding
    from benchmarks import pressure as case

    if short:
        count, requests, hold_s = min(count, 5), min(requests, 20), min(hold_s, 1.5)
    parameters: dict[str, Any] = {
        "models": count,
        "requests": requests,
        "clients": clients,
        "seed": seed,
        "hold_s": hold_s,
    }
    parameters |= {"url": url} if url else {"hold_s": hold_s, **options.limits(limit_bytes)}
    with options.report("pressure", out, **parameters) as report:
        models = options.models(report, count, cache)
        case.run(report, models, limit_bytes=limit_bytes, requests=requests, clients=clients, seed=seed, url=url)
        if url is None and hold_s:
            holding.run(report, models, limit_bytes=limit_bytes, hold_s=hold_s)


@click.command()
@options.count(100, "Distinct models.")
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
@click.option("--limits", metavar="SIZES", help="Models held for each of these limits instead: 128MB,256MB,512MB,1GB.")
@options.limit
@options.cache
@options.out
def density(
    count: int,
    size_mb: float,
    layers: int | None,
    requests: int,
    clients: int,
    exponent: float,
    seed: int,
    small: bool,
    limits: str | None,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """A hundred prepared models in 256 MB, all loaded at once; a plain loop in the same for comparison.

    Models are made and prepared first, outside of the limit, and kept: 100 of 20 MB take 4 GB of disk
    and five minutes the first time.

    \b
    And a thousand of 2 MB (a loaded session holds some 12 KB for each of its nodes, whatever the weights):
      python -m benchmarks density --models 1000 --size-mb 2 --layers 3 --exponent 0

    \b
    Models held and served for each limit, host and plain loop:
      python -m benchmarks density --models 40 --limits 128MB,256MB,512MB,1GB
    """
    from benchmarks import density as case
    from benchmarks import density_limits

    if small:
        count, requests = min(count, 6), min(requests, 60)
    if limits is not None:
        sizes = [options.Size().convert(text, None, None) for text in limits.split(",")]
        with options.report("density", out, models=count, size_mb=size_mb, layers=layers, limits=limits) as report:
            models = options.models(report, count, cache, size_mb=size_mb, layers=layers, label="prepared-all")
            density_limits.run(report, models, sizes)
        return
    load = case.Load(requests=requests, clients=clients, exponent=exponent, seed=seed)
    parameters = {"models": count, "size_mb": size_mb, "layers": layers, **asdict(load), **options.limits(limit_bytes)}
    with options.report("density", out, **parameters) as report:
        models = options.models(report, count, cache, size_mb=size_mb, layers=layers, label="prepared-all")
        case.run(report, models, limit_bytes=limit_bytes, load=load)


@click.command()
@click.option("--cycles", type=click.IntRange(20), default=300, show_default=True, help="Load, ask, unload.")
@options.count(8, "Distinct models, taken in turn.")
@click.option(
    "--prepared",
    type=click.Choice(["none", "half", "all"]),
    default="none",
    show_default=True,
    help="Which of them are prepared first: half is every other one.",
)
@options.limit
@options.cache
@options.out
def churn(cycles: int, count: int, prepared: str, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Hundreds of loads and unloads: does usage drift away from where it began?

    \b
    The long form, some minutes:
      python -m benchmarks churn --cycles 2000 --models 50 --prepared half
    """
    from benchmarks import churn as case

    wanted = {"none": [False] * count, "half": [index % 2 == 0 for index in range(count)], "all": [True] * count}
    parameters = {"cycles": cycles, "models": count, "prepared": prepared, **options.limits(limit_bytes)}
    with options.report("churn", out, **parameters) as report:
        models = options.models(report, count, cache, label="" if prepared == "none" else f"prepared-{prepared}")
        case.run(report, models, limit_bytes=limit_bytes, cycles=cycles, is_prepared=wanted[prepared])


_RATE = "Requests a second with --minutes; half as many where models are loaded all the time."
_LOADS = ("zipf", "heavy", "bursts", "thrash", "diurnal")


@click.command()
@click.option("--load", "loads", type=click.Choice(_LOADS), multiple=True, help="Which; all where none is given.")
@click.option("--requests", type=click.IntRange(20), default=3000, show_default=True, help="Of each load, about.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Times, in turns.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the requests.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Instead: one host for so long, under loads that follow each other in phases of five minutes and come back.",
)
@click.option(
    "--policy", type=click.Choice(["adaptive", "fixed"]), default="adaptive", show_default=True, help="With --minutes."
)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=4, show_default=True, help=_RATE)
@click.option("--short", is_flag=True, help="One load, few models, 40 requests.")
@options.limit
@options.cache
@options.out
def adaptive(
    loads: tuple[str, ...],
    requests: int,
    rounds: int,
    seed: int,
    minutes: float | None,
    policy: str,
    rate: float,
    short: bool,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Adaptive thresholds beside fixed ones on the same requests: served, p99, kills; and whether they settle.

    \b
    Loads: zipf (small mapped models), heavy (more models on the heap than fit), bursts (large batches
    beside them), thrash (hot weights beside models that are idle), diurnal (one, then the other). Real
    hosts, and an hour of readings that are made, for the same controller.

    \b
    Does a real one swing? An hour on a fifth of a core:
      python -m benchmarks adaptive --minutes 60 --html hour.html
    """
    from benchmarks import adaptive as case
    from benchmarks import adaptive_phases

    counts, sizes_mb = (40, 7, 9), case.SIZES_MB
    if short:
        loads, requests = loads or ("zipf",), min(requests, 40)
        counts, sizes_mb = (1, 2, 1), (1.0, 2.0, 3.0)
    if minutes is not None:
        asked: dict[str, Any] = {"minutes": minutes, "policy": policy, "rate": rate, "seed": seed}
        with options.report("adaptive", out, **asked, **options.limits(limit_bytes)) as report:
            models = case.fleet(cache, counts=counts, sizes_mb=sizes_mb, progress=report.progress)
            adaptive_phases.run(report, models, limit_bytes=limit_bytes, **asked)
        return
    parameters = {"requests": requests, "rounds": rounds, "seed": seed, **options.limits(limit_bytes)}
    with options.report("adaptive", out, **parameters) as report:
        models = case.fleet(cache, counts=counts, sizes_mb=sizes_mb, progress=report.progress)
        case.run(
            report,
            models,
            loads=loads or _LOADS,
            limit_bytes=limit_bytes,
            requests=requests,
            rounds=rounds,
            seed=seed,
            hour=not short,
        )


@click.command()
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Starts.")
@click.option(
    "--watch",
    "watch_s",
    type=click.FloatRange(1),
    help="Instead: idle for so many seconds, with adaptive thresholds and prediction, and without.",
)
@options.limit
@options.out
def idle(runs: int, watch_s: float | None, limit_bytes: int, out: Path | None) -> None:
    """Process start to ready, and the memory of the idle host: min, median, max."""
    from benchmarks import idle as case

    with options.report("idle", out, runs=runs, **options.limits(limit_bytes)) as report:
        if watch_s is not None:
            case.watch(report, places.ROOT / "models", limit_bytes=limit_bytes, runs=runs, seconds=watch_s)
            return
        case.run(report, places.ROOT / "models", limit_bytes=limit_bytes, runs=runs)


@click.command()
@click.option("--folders", type=click.IntRange(1), default=20_000, show_default=True, help="Model folders.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Of each request.")
@options.out
def folders(folders: int, rounds: int, out: Path | None) -> None:
    """A repository of very many models: start to ready, idle memory, the index and its pages, metrics, views."""
    from benchmarks import folders as case

    with options.report("folders", out, folders=folders, rounds=rounds) as report:
        case.run(report, folders=folders, rounds=rounds)


@click.command()
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Fresh processes.")
@options.out
def imports(runs: int, out: Path | None) -> None:
    """Committed memory and time that each runtime dependency's import adds, in order."""
    from benchmarks import imports as case

    with options.report("imports", out, runs=runs) as report:
        case.run(report, runs=runs)


@click.command()
@click.option("--cycles", type=click.IntRange(1), default=5000, show_default=True, help="Ask, and sometimes unload.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of models, rows and forms.")
@click.option("--short", is_flag=True, help="60 cycles of models up to 1.5 MB: seconds.")
@options.limit
@options.cache
@options.out
def fragmentation(cycles: int, seed: int, short: bool, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Models and tensors of changing sizes: bytes held against bytes needed. 5,000 cycles take five minutes.

    At the end at most 10 % more may be held than a new host commits that has loaded the same models.
    """
    from benchmarks import fragmentation as case

    sizes_mb = case.SIZES_MB[:3] if short else case.SIZES_MB
    plan = case.Plan(min(cycles, 60) if short else cycles, sizes_mb, limit_bytes, seed)
    with options.report("fragmentation", out, cycles=plan.cycles, seed=seed, **options.limits(limit_bytes)) as report:
        case.run(report, case.make(sizes_mb, cache=cache, progress=report.progress), plan)


@click.command()
@click.option("--iterations", type=click.IntRange(40), default=120, show_default=True, help="Of each, in a round.")
@click.option("--only", metavar="TEXT", help="Only operations with this in their names.")
@options.out
def leaks(iterations: int, only: str | None, out: Path | None) -> None:
    """Every public operation again and again: what stays of it? A minute; 40 iterations are the short form."""
    from benchmarks import leaks as case

    with options.report("leaks", out, iterations=iterations, only=only) as report:
        case.run(report, iterations=iterations, only=only)


@click.command("cold-start")
@click.option("--runs", type=click.IntRange(1), default=7, show_default=True, help="Starts of each kind, in turns.")
@options.limit
@options.cache
@options.out
def cold_start(runs: int, limit_bytes: int, cache: Path | None, out: Path | None) -> None:
    """Process start to the first right answer of a model of 20 MB, prepared and not. Half a minute."""
    from benchmarks import cold_start as case

    with options.report("cold-start", out, runs=runs, **options.limits(limit_bytes)) as report:
        prepared = options.models(report, 2, cache, label="prepared-all")
        plain = options.models(report, 2, cache, label="cold")
        case.run(report, prepared, plain, limit_bytes=limit_bytes, runs=runs)


@click.command()
@options.count(24, "Distinct models of 5 MB; more than fit.")
@click.option("--clients", type=click.IntRange(1), default=64, show_default=True, help="Clients that ask at once.")
@click.option("--seconds", type=click.FloatRange(0.1), default=30, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random order.")
@click.option("--short", is_flag=True, help="8 models, 16 clients, 3 seconds.")
@click.option(
    "--limit", "limit_bytes", type=options.Size(), default="128MB", show_default=True, help="Memory limit of the host."
)
@options.cache
@options.out
def stress(
    count: int,
    clients: int,
    seconds: float,
    seed: int,
    short: bool,
    limit_bytes: int,
    cache: Path | None,
    out: Path | None,
) -> None:
    """Many clients on a tiny limit: nobody is killed, no answer is wrong or lost; how many are refused?"""
    from benchmarks import stress as case

    if short:
        count, clients, seconds = min(count, 8), min(clients, 16), min(seconds, 3)
    parameters = {"models": count, "clients": clients, "seconds": seconds, "seed": seed, **options.limits(limit_bytes)}
    with options.report("stress", out, **parameters) as report:
        models = options.models(report, count, cache, size_mb=5, label="stress")
        case.run(report, models, limit_bytes=limit_bytes, clients=clients, seconds=seconds, seed=seed)
