"""Forecasts of memory: right on what grows, silent on what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest
from numpy.typing import NDArray
from sizes import FULL

from modelhost.memory.forecast import Forecast, Forecaster, slope_of

MB: Final = 1 << 20
BASE: Final = 60 * MB
WARNING, CRITICAL, LIMIT = 172 * MB, 192 * MB, 256 * MB
SERIES: Final = 334 if FULL else 4

Readings = NDArray[np.float64]


def look(forecaster: Forecaster, usage_bytes: float, evictable_bytes: int = 0) -> Forecast:
    return forecaster.look(
        usage_bytes=int(usage_bytes),
        evictable_bytes=evictable_bytes,
        warning_bytes=WARNING,
        critical_bytes=CRITICAL,
        limit_bytes=LIMIT,
    )


@pytest.mark.parametrize("lasts_s", [40, 120, 600, 3600, 8 * 3600, 3 * 86_400])
def test_at_half_way_the_time_to_critical_is_right(lasts_s: int) -> None:
    rng = np.random.default_rng(lasts_s)
    at = np.arange(0, lasts_s / 2, max(0.25, lasts_s / 20_000))
    own = BASE + (CRITICAL - BASE) * at / lasts_s
    runs = (rng.random(len(at)) < 0.1) * rng.random(len(at)) * 20 * MB  # which come and go
    forecaster = Forecaster()
    for at_s, reading in zip(at, own + rng.normal(0, 0.5 * MB, len(at)) + runs, strict=True):
        forecaster.note(at_s, int(reading))
    found = look(forecaster, own[-1])
    assert found.growth is not None
    assert found.to_critical is not None
    assert found.to_warning is not None
    assert found.to_critical.expected_s == pytest.approx(lasts_s / 2, rel=0.2)
    assert found.to_warning.expected_s < found.to_critical.expected_s
    assert found.to_critical.soonest_s <= found.to_critical.expected_s <= found.to_critical.latest_s


def test_models_that_can_leave_put_critical_off_and_not_warning() -> None:
    forecaster = Forecaster()
    for at_s in range(60):
        forecaster.note(at_s, BASE + at_s * MB)
    alone, beside = look(forecaster, BASE + 60 * MB), look(forecaster, BASE + 60 * MB, evictable_bytes=36 * MB)
    assert alone.to_critical is not None
    assert beside.to_critical is not None
    assert beside.to_critical.expected_s == pytest.approx(alone.to_critical.expected_s + 36, rel=0.01)
    assert beside.to_warning == alone.to_warning


def flat(rng: np.random.Generator, count: int) -> Readings:
    return rng.normal(0, MB, count)


def following(rng: np.random.Generator, count: int) -> Readings:
    """Each reading follows the one before it: the hardest kind of noise."""
    steps, value = rng.normal(0, 0.5 * MB, count), 0.0
    values = np.empty(count)
    for index, step in enumerate(steps):
        values[index] = value = 0.95 * value + step
    return values


def busy(rng: np.random.Generator, count: int) -> Readings:
    return (rng.random(count) < 0.05) * rng.random(count) * 30 * MB + rng.normal(0, 0.1 * MB, count)


def stepped(rng: np.random.Generator, count: int) -> Readings:
    """Something is allocated once, and stays."""
    return (np.arange(count) > rng.integers(count)) * rng.uniform(0.5, 20) * MB + rng.normal(0, 0.05 * MB, count)


def settling(rng: np.random.Generator, count: int) -> Readings:
    """A host warms up."""
    return 5 * MB * (1 - np.exp(-np.arange(count) / rng.uniform(50, 800))) + rng.normal(0, 0.05 * MB, count)


def swaying(rng: np.random.Generator, count: int) -> Readings:
    period, phase = rng.integers(400, 8000), rng.random() * 7
    return np.sin(np.arange(count) / period * 2 * np.pi + phase) * rng.uniform(1, 6) * MB


@pytest.mark.parametrize("noise", [flat, following, busy, stepped, settling, swaying])
def test_nothing_is_foretold_of_what_does_not_grow(noise: Callable[[np.random.Generator, int], Readings]) -> None:
    """Quarter of an hour, a look every five seconds; the full form is some two thousand such series."""
    wolves = 0
    for seed in range(SERIES):
        readings = BASE + noise(np.random.default_rng(seed), 3600)
        forecaster, cried = Forecaster(), False
        for index, reading in enumerate(readings):
            forecaster.note(index * 0.25, int(reading))
            if index % 20 == 0 and not cried:
                cried = look(forecaster, reading).to_critical is not None
        wolves += cried
    assert wolves <= SERIES // 200


def test_growth_that_is_small_for_what_is_left_is_shown_and_foretells_nothing() -> None:
    forecaster = Forecaster()
    for at_s in range(90):
        forecaster.note(at_s, BASE + at_s * 60 * 1024)
    found = look(forecaster, BASE + 5 * MB)
    assert found.growth is not None
    assert found.growth.bytes_per_s == pytest.approx(60 * 1024, rel=0.01)
    assert found.to_critical is None


def test_what_was_before_a_long_pause_says_nothing() -> None:
    forecaster = Forecaster()
    for at_s in range(90):
        forecaster.note(at_s, BASE + at_s * MB)
    for at_s in range(100_000, 100_010):
        forecaster.note(at_s, BASE)
    assert look(forecaster, BASE).growth is None


def test_the_slope_is_sens_and_its_bounds_hold_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(50):
        found = slope_of(3.0 * np.arange(40) + rng.normal(0, 10, 40))
        assert found.low <= found.value <= found.high
        inside += found.low <= 3.0 <= found.high
    assert inside == 50


def test_it_imports_nothing_when_it_is_first_worked_out() -> None:
    """As numpy's median does: 0.9 MB, a quarter of a minute after the host's start."""
    code = (
        "import sys; from modelhost.memory.forecast import Forecaster; before = set(sys.modules)\n"
        "forecaster = Forecaster()\n"
        "for second in range(600): forecaster.note(second, 60_000_000 + 100_000 * second)\n"
        "assert forecaster.growth(256_000_000) is not None\n"
        "print(sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
