"""An hour of readings, made, for the real controller of adaptive thresholds: does it settle, or swing?

Models on the heap stand beside mapped ones, as thresholds let them: idle models leave above warning, the page cache is
what is left, what of the mapped models' hot pages does not fit is read again by each run, and a model on the heap that
is not there is loaded.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from modelhost.memory.adaptive import Adaptive
from modelhost.memory.adaptive_words import Decision, Guards, Reading
from modelhost.memory.thresholds import Thresholds

_MB: Final = 1 << 20
_BASELINE_MB: Final = 60
#: Of the page cache: the host's own code, and what others read.
_OWN_PAGES_MB: Final = 20
_RUNS_A_SECOND: Final = 100
#: What a run on a mapped model reads of it.
_READ_MB: Final = 5
_LOAD_S: Final = 0.05
_PHASE_S: Final = 300

#: The default thresholds of 256 MB.
FIXED: Final = Thresholds(256 * _MB, _BASELINE_MB * _MB, 172 * _MB, 192 * _MB, 30 * _MB)
GUARDS: Final = Guards(FIXED, bodies_bytes=16 * _MB, runs_bytes=64 * _MB)


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, for an hour."""

    hot_mb: float
    """Weights of mapped models that are in use."""
    heap_mb: float
    """What the models on the heap would hold together."""
    heap_share: float
    """Of the requests, those for models on the heap."""
    noise: float = 0.3
    shift_mb: float = 0.0
    """By so much the hot weights grow and shrink over the hour."""
    other: Load | None = None
    """What is asked every other five minutes."""

    def at(self, second: float) -> Load:
        """Returns what is asked then."""
        return self.other if self.other is not None and second // _PHASE_S % 2 else self


#: By name: the same shapes that real hosts are measured with, and what lies between.
LOADS: Final[Mapping[str, Load]] = {
    "heavy": Load(hot_mb=0, heap_mb=300, heap_share=1.0),
    "thrash": Load(hot_mb=110, heap_mb=120, heap_share=0.02),
    "both": Load(hot_mb=110, heap_mb=120, heap_share=0.5),
    "too much": Load(hot_mb=400, heap_mb=200, heap_share=0.3),
    "little": Load(hot_mb=60, heap_mb=40, heap_share=0.3),
    "mapped": Load(hot_mb=400, heap_mb=0, heap_share=0.0),
    "diurnal": Load(hot_mb=90, heap_mb=120, heap_share=0.05, noise=0.2, shift_mb=80),
    "phases": Load(hot_mb=140, heap_mb=108, heap_share=0.003, other=Load(hot_mb=0, heap_mb=108, heap_share=1.0)),
}


@dataclass(frozen=True, slots=True)
class Hour:
    """What became of an hour."""

    decisions: tuple[Decision, ...]

    @property
    def turns(self) -> int:
        """How often warning changed its direction."""
        return turned([decision.thresholds.warning_bytes for decision in self.decisions])

    def after(self, second: float) -> int:
        """Returns how many changes there were after so many seconds."""
        return sum(decision.at_s > second for decision in self.decisions)


def live(
    whole: Load, *, seed: int, seconds: int = 3600, check: Callable[[Decision], None] = lambda decision: None
) -> Hour:
    """Lives through it, a reading a second; `check` sees each decision."""
    rng, adaptive, decisions = random.Random(seed), Adaptive(GUARDS), []
    runs = refaulted_mb = departures = load_s = 0.0
    for second in range(1, seconds + 1):
        load = whole.at(second)
        hot_mb = load.hot_mb + load.shift_mb * math.sin(second / 3600 * 2 * math.pi)
        held_mb = min(load.heap_mb, max(0.0, adaptive.thresholds.warning_bytes / _MB - _BASELINE_MB))
        cache_mb = 256 - _BASELINE_MB - held_mb
        missing = max(0.0, 1 - held_mb / load.heap_mb) if load.heap_mb else 0.0
        cold = max(0.0, 1 - (cache_mb - _OWN_PAGES_MB) / hot_mb) if hot_mb > 0 else 0.0
        wobble = max(0.0, 1 + load.noise * rng.gauss(0, 1))
        heap_runs = _RUNS_A_SECOND * load.heap_share * wobble
        mapped_runs = _RUNS_A_SECOND * (1 - load.heap_share) * wobble
        runs += heap_runs + mapped_runs
        refaulted_mb += mapped_runs * cold * _READ_MB
        departures += heap_runs * missing
        load_s += heap_runs * missing * _LOAD_S
        reading = Reading(
            float(second),
            round((_BASELINE_MB + held_mb) * _MB),
            resident_bytes=round(held_mb * _MB),
            largest_model_bytes=25 * _MB,
            claimed_bytes=round(6 * _MB * wobble),
            run_bytes=2 * _MB,
            extra_bytes=20 * _MB,
            runs=int(runs),
            load_s=load_s,
            departures=int(departures),
            refaulted_bytes=round(refaulted_mb * _MB),
            cache_bytes=round(cache_mb * _MB),
        )
        decision = adaptive.note(reading)
        if decision is not None:
            check(decision)
            decisions.append(decision)
    return Hour(tuple(decisions))


def turned(values: list[int]) -> int:
    """Returns how often a series changes its direction."""
    steps = [after - before for before, after in pairwise(values) if after != before]
    return sum((before > 0) != (after > 0) for before, after in pairwise(steps))
