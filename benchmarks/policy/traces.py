"""Traces: which model each request wants, in order. Made from a seed, or read from a file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy.fleet import Fleet

Trace = NDArray[np.int32]
"""Numbers of models, one for each request."""


def zipf(models: int, requests: int, *, seed: int, alpha: float = 0.9) -> Trace:
    """Every request by itself: the k-th most popular model has a share of k^-alpha, whatever came before."""
    rng = np.random.default_rng(seed)
    return _draw(rng, _shares(models, alpha), _shuffled(rng, models), requests)


def diurnal(models: int, requests: int, *, seed: int, alpha: float = 0.9, days: int = 3, zones: int = 24) -> Trace:
    """Zipf, but each model belongs to one of `zones` whose users sleep: its share follows the hour of their day.

    At its lowest a zone asks for a fiftieth of what it asks for at its highest; a day is a period of the trace.
    """
    rng = np.random.default_rng(seed)
    shares, order = _shares(models, alpha), _shuffled(rng, models)
    zone = rng.integers(0, zones, models)
    steps = days * 24
    edges = np.linspace(0, requests, steps + 1).astype(int)
    pieces = []
    for step, count in enumerate(np.diff(edges)):
        hour = (step - zone * 24 / zones) % 24
        awake = 0.51 + 0.49 * np.cos(2 * np.pi * (hour - 14) / 24)
        pieces.append(_draw(rng, shares * awake, order, int(count)))
    return np.concatenate(pieces)


def scan(models: int, requests: int, *, seed: int, alpha: float = 0.9, share: float = 0.1, scans: int = 10) -> Trace:
    """Zipf, with `scans` jobs in it that want many models one after another, once: `share` of all requests."""
    rng = np.random.default_rng(seed)
    trace = _draw(rng, _shares(models, alpha), _shuffled(rng, models), requests)
    length = int(requests * share / scans)
    for index in range(scans):
        # A job's requests come between those of the others, at the rate of every second one.
        begin = int((index + 0.5) * requests / scans)
        places = np.arange(begin, min(begin + 2 * length, requests), 2)
        trace[places] = (rng.integers(models) + np.arange(len(places))) % models
    return trace


def bursts(
    models: int, requests: int, *, seed: int, alpha: float = 0.6, mean: float = 20, width: float = 2e-4
) -> Trace:
    """Sessions: a model that is wanted is wanted some `mean` times within a while, and then long not.

    Sizes of sessions are geometric; a session's requests are spread exponentially over `width` of the trace.
    """
    rng = np.random.default_rng(seed)
    sessions = max(1, int(requests / mean))
    sizes = rng.geometric(1 / mean, sessions)
    wanted = np.repeat(_draw(rng, _shares(models, alpha), _shuffled(rng, models), sessions), sizes)
    begin = np.repeat(rng.random(sessions), sizes)
    at = begin + rng.exponential(width, len(wanted))
    trace = wanted[np.argsort(at, kind="stable")]
    while len(trace) < requests:  # sizes are random: what is missing is the trace again
        trace = np.concatenate([trace, trace[: requests - len(trace)]])
    return trace[:requests]


#: By the name that the command line has for them.
MADE: Final[Mapping[str, Callable[..., Trace]]] = {"zipf": zipf, "diurnal": diurnal, "scan": scan, "bursts": bursts}


def read(file: Path) -> tuple[Fleet, Trace]:
    """Reads a recorded trace: CSV with the columns `model`, `size_bytes` and `load_s`, a line for each request.

    The last two count where a model is first named, and may be empty later. Raises ValueError with the line that is
    not so.
    """
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    loads: list[float] = []
    wanted: list[int] = []
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = {"model", "size_bytes", "load_s"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{file.name}: expected the columns model, size_bytes, load_s; missing: {sorted(missing)}")
        for row in reader:
            name = row["model"]
            number = numbers.get(name)
            if number is None:
                number = numbers[name] = len(numbers)
                try:
                    size_bytes, load_s = int(row["size_bytes"]), float(row["load_s"])
                except (TypeError, ValueError):
                    size_bytes, load_s = 0, -1.0
                if size_bytes <= 0 or load_s < 0:
                    raise ValueError(
                        f"{file.name}, line {reader.line_num}: model '{name}' is new there, expected size_bytes > 0 "
                        f"and load_s >= 0, found '{row['size_bytes']}' and '{row['load_s']}'"
                    )
                sizes.append(size_bytes)
                loads.append(load_s)
            wanted.append(number)
    if not wanted:
        raise ValueError(f"{file.name}: expected requests, found none")
    return Fleet(np.array(sizes, np.int64), np.array(loads)), np.array(wanted, np.int32)


def _shares(models: int, alpha: float) -> NDArray[np.float64]:
    return np.arange(1, models + 1, dtype=np.float64) ** -alpha


def _shuffled(rng: np.random.Generator, models: int) -> NDArray[np.int32]:
    """The order of popularity: it has nothing to do with sizes."""
    return rng.permutation(models).astype(np.int32)


def _draw(rng: np.random.Generator, shares: NDArray[np.float64], order: NDArray[np.int32], count: int) -> Trace:
    bounds = np.cumsum(shares)
    places = np.searchsorted(bounds, rng.random(count) * bounds[-1], side="right")
    drawn: Trace = order[np.minimum(places, len(order) - 1)]
    return drawn
