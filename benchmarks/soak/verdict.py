"""What a soak has shown: pure, from what was seen."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.percentiles import percentile
from benchmarks.soak.record import LOST, OK, WRONG, Asked, Span
from modelhost.slope import pair_slopes

#: Must show 1.
MAX_DRIFT: Final = 0.01
MAX_SLOWER: Final = 2.0
#: Fewer readings say nothing about a slope, fewer answers nothing about a percentile.
MIN_READINGS: Final = 5
MIN_ANSWERS: Final = 200
#: What runs for the first time has things to allocate: readings from so much of the beginning are not judged.
SETTLING_SHARE: Final = 0.2
#: What a fault leaves behind goes on for a moment: models that leave, a scan, a run that is stopped.
_AFTERMATH_S: Final = 0.2
_NOTHING: Final = "(no fault)"


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory at a moment at which nothing was loaded and nobody asked."""

    at: float
    committed_bytes: int
    """Anonymous memory of the host's process."""
    usage_bytes: int
    """Of its group, children and kernel included."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How memory has changed by itself between the first reading that counts and the last."""

    bytes: float
    share: float
    readings: int
    settling_bytes: float = 0.0
    """What it had grown by before: reported, not judged."""

    @property
    def is_known(self) -> bool:
        """Whether there were enough readings to say."""
        return self.readings >= MIN_READINGS


def drift(readings: Sequence[Reading], *, settling_s: float = 0.0) -> Drift:
    """Returns the drift after the first fifth of the time, and after `settling_s` at least.

    It is the larger of two figures, neither of which one reading that is off can change. By Theil and Sen, the
    median of the slopes between all pairs of readings over the whole time, which sees what grows slowly; a step that
    comes late is in few of the pairs. The median of the last third less that of the first sees that.
    """
    settling_s = max(settling_s, SETTLING_SHARE * (readings[-1].at - readings[0].at)) if readings else 0.0
    counted = [reading for reading in readings if reading.at - readings[0].at >= settling_s]
    if len(counted) < 2:
        return Drift(0.0, 0.0, len(counted))
    at, sizes = [reading.at for reading in counted], [reading.committed_bytes for reading in counted]
    slope = statistics.median(pair_slopes(at, sizes))
    third = -(-len(sizes) // 3)
    first, last = statistics.median(sizes[:third]), statistics.median(sizes[-third:])
    grown = max(slope * (at[-1] - at[0]), last - first)
    settling_bytes = first - readings[0].committed_bytes
    return Drift(grown, grown / statistics.median(sizes), len(counted), settling_bytes)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long one resident model took, calm and while things went wrong."""

    model: str
    answers: int
    calm_p50_ms: float
    calm_p99_ms: float
    p50_ms: float
    p99_ms: float

    @property
    def slower(self) -> float:
        """By how much the 99th percentile has grown."""
        return self.p99_ms / self.calm_p99_ms if self.calm_p99_ms else 0.0


def paces(calm: Sequence[Asked], rough: Sequence[Asked]) -> list[Pace]:
    """Returns the pace of each resident model, and of all together as `all`; only answers count."""
    found = []
    for model in [*sorted({asked.model for asked in calm}), "all"]:
        before, after = (
            [asked.latency_s * 1e3 for asked in seen if asked.outcome == OK and model in (asked.model, "all")]
            for seen in (calm, rough)
        )
        figures = [percentile(values, share) for values in (before, after) for share in (0.5, 0.99)]
        found.append(Pace(model, len(after), *(round(figure, 3) for figure in figures)))
    return found


@dataclass(frozen=True, slots=True)
class FaultPace:
    """How long residents took while faults of one kind went on, and a moment after."""

    fault: str
    answers: int
    p50_ms: float
    p99_ms: float
    late_share: float
    """Of answers that took longer than is allowed for the 99th percentile of their model: the fault's part in it."""


def fault_paces(calm: Sequence[Asked], rough: Sequence[Asked], spans: Sequence[Span]) -> list[FaultPace]:
    """Returns the pace during each kind of fault, and while there was none, as the last; only answers count."""
    allowed_s = {pace.model: pace.calm_p99_ms * MAX_SLOWER / 1e3 for pace in paces(calm, ())}
    found: dict[str, list[Asked]] = defaultdict(list)
    for asked in rough:
        if asked.outcome != OK:
            continue
        ended = asked.at + asked.latency_s
        kinds = {span.fault for span in spans if span.began <= ended and asked.at <= span.ended + _AFTERMATH_S}
        for kind in kinds or {_NOTHING}:
            found[kind].append(asked)
    told = []
    for kind, seen in sorted(found.items(), key=lambda item: (item[0] == _NOTHING, item[0])):
        p50_ms, p99_ms = (
            round(percentile([asked.latency_s * 1e3 for asked in seen], share), 3) for share in (0.5, 0.99)
        )
        late = sum(asked.latency_s > allowed_s.get(asked.model, 0.0) for asked in seen)
        told.append(FaultPace(kind, len(seen), p50_ms, p99_ms, late / len(seen)))
    return told


def violations(
    *,
    outcomes: Mapping[str, int],
    oom_kills: int,
    is_alive: bool,
    unmet: Sequence[str],
    drift: Drift,
    paces: Sequence[Pace],
    is_short: bool,
) -> Iterator[str]:
    """Yields what should not have been. A short soak has too few readings and answers for drift and times."""
    if not is_alive:
        yield "the host has ended"
    if oom_kills:
        yield f"the kernel killed {oom_kills} processes"
    if wrong := outcomes.get(WRONG, 0):
        yield f"{wrong} answers were wrong"
    if lost := sum(count for outcome, count in outcomes.items() if outcome.startswith(LOST)):
        yield f"{lost} requests were lost"
    yield from (f"a fault was not met: {text}" for text in unmet)
    if is_short:
        return
    if not drift.is_known:
        yield f"{drift.readings} readings of idle memory say nothing about drift, {MIN_READINGS} would"
    elif drift.share >= MAX_DRIFT:
        grown = f"{drift.share:.2%} ({drift.bytes / 1024:.0f} KB)"
        yield f"idle memory drifted by {grown}, under {MAX_DRIFT:.0%} is allowed"
    for pace in paces:
        if pace.answers < MIN_ANSWERS:
            yield f"{pace.model}: {pace.answers} answers say nothing about a p99, {MIN_ANSWERS} would"
        elif pace.slower > MAX_SLOWER:
            yield (
                f"{pace.model}: p99 was {pace.p99_ms:.1f} ms, {pace.slower:.1f} times the calm "
                f"{pace.calm_p99_ms:.1f} ms, {MAX_SLOWER:g} times is allowed"
            )
