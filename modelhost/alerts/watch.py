"""What in the host's own figures is new since the last look, as alerts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from modelhost.alerts.alert import Alert, Severity, State
from modelhost.care import MEMORY_CRITICAL
from modelhost.conditions import Condition
from modelhost.host import Host
from modelhost.memory import Level, MemoryEvent
from modelhost.outlook import MEMORY_GROWS
from modelhost.security.texts import without_paths
from modelhost.units import format_bytes

#: Outcomes of requests that are refusals: the client did nothing wrong, or nothing but asking for too much.
REFUSALS: Final = (
    "insufficient_memory",
    "never_fits",
    "run_too_large",
    "request_too_large",
    "overloaded",
    "timeout",
    "worker_restarting",
    "unauthenticated",
    "forbidden",
)

#: Kinds that are about the memory of all processes of a host.
_OF_ALL: Final = frozenset({"memory_level", "thrashing", "growth"})

_SEVERITIES: Final[Mapping[Level, Severity]] = {
    Level.NORMAL: "info",
    Level.WARNING: "warning",
    Level.CRITICAL: "critical",
}


class Watch:
    """Looks at memory's events, conditions, and counts. Event-loop thread; a look takes some microseconds.

    `outcomes` returns how many requests there were, by their outcome.
    """

    def __init__(
        self, host: Host, outcomes: Callable[[], Mapping[str, int]], *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._host, self._outcomes, self._wall_clock = host, outcomes, wall_clock
        self._seen_event = host.memory.history.last_id
        self._conditions: dict[str, Condition] = {}
        self._refused = self._refusals()
        self._failed_loads = host.pool.accounts.counters.load_failures

    def look(self) -> Iterator[Alert]:
        """Yields what has happened since the last look; of what all processes of a host see, the first one tells."""
        for alert in (*self._look_at_events(), *self._look_at_conditions()):
            if self._host.siblings.number == 0 or not _is_of_all(alert):
                yield alert
        yield from self._look_at_refusals()
        yield from self._look_at_loads()

    # --- memory ----------------------------------------------------------------------------------------

    def _look_at_events(self) -> Iterator[Alert]:
        history = self._host.memory.history
        if history.last_id == self._seen_event:
            return
        events, self._seen_event = history.after(self._seen_event), history.last_id
        for event in events:
            alert = self._of_event(event)
            if alert is not None:
                yield alert

    def _of_event(self, event: MemoryEvent) -> Alert | None:
        """Returns what an event of memory is to operators; None where it is none of their business."""
        details = event.as_dict()
        match event.kind:
            case "level":
                return self._level(event)
            case "shortfall":
                missing, names = details["shortfall_bytes"], tuple(details["victims"])
                text = f"{format_bytes(missing)} did not come back after {len(names)} models left ({event.cause})"
                return Alert("shortfall", "", "warning", "happened", text, event.at, _figures(event), names[:20])
            case "thrashing":
                text = "the page cache no longer holds the weights in use: they are read again and again"
                return Alert("thrashing", "", "warning", "begun", text, event.at, _figures(event))
            case "thrashing_over":
                text = "the page cache holds the weights in use again"
                return Alert("thrashing", "", "info", "ended", text, event.at, _figures(event))
            case "worker_crash":
                text = f"the worker process of {event.cause} has ended: {without_paths(str(details['reason']))}"
                return Alert("worker_crashed", "", "warning", "happened", text, event.at, {}, (event.cause,))
        return None

    def _level(self, event: MemoryEvent) -> Alert:
        former, level = Level[str(event.details["from"]).upper()], event.level
        state: State = "begun" if level > former else "ended"
        limit_bytes = self._host.memory.thresholds.limit_bytes
        text = (
            f"memory is {level.label}, it was {former.label}: "
            f"{format_bytes(event.usage_bytes)} of {format_bytes(limit_bytes)} ({event.cause})"
        )
        severity = _SEVERITIES[level if state == "begun" else Level.NORMAL]
        return Alert("memory_level", level.label, severity, state, text, event.at, _figures(event))

    # --- conditions --------------------------------------------------------------------------------------

    def _look_at_conditions(self) -> Iterator[Alert]:
        former = self._conditions
        held = {condition.name: condition for condition in self._host.conditions.snapshot()}
        if held.keys() == former.keys():
            return
        self._conditions = held
        for name, condition in held.items():
            if name not in former:
                yield self._condition(condition, "begun", condition.since, without_paths(condition.text))
        for name, condition in former.items():
            if name not in held:
                now = self._wall_clock()
                lasted_s = max(0.0, now - condition.since)
                yield self._condition(condition, "ended", now, f"it is over, after {lasted_s:.0f} s")

    def _condition(self, condition: Condition, state: State, at: float, text: str) -> Alert:
        severity: Severity = "info"
        if state == "begun":
            severity = "critical" if condition.name == MEMORY_CRITICAL else "warning"
        if condition.name == MEMORY_GROWS:
            return Alert("growth", "", severity, state, text, at)
        return Alert("condition", condition.name, severity, state, f"{condition.name}: {text}", at)

    # --- requests and loads --------------------------------------------------------------------------------

    def _refusals(self) -> dict[str, int]:
        outcomes = self._outcomes()
        return {code: outcomes[code] for code in REFUSALS if code in outcomes}

    def _look_at_refusals(self) -> Iterator[Alert]:
        former, self._refused = self._refused, self._refusals()
        if former == self._refused:
            return
        now = self._wall_clock()
        for code, count in self._refused.items():
            more = count - former.get(code, 0)
            if more > 0:
                yield Alert("refusals", code, "warning", "happened", f"requests are refused: {code}", now, count=more)

    def _look_at_loads(self) -> Iterator[Alert]:
        accounts = self._host.pool.accounts
        more, self._failed_loads = (
            accounts.counters.load_failures - self._failed_loads,
            accounts.counters.load_failures,
        )
        if more <= 0:
            return
        last = list(accounts.last_failures)[-more:]
        names = tuple(str(key) for key, _ in last)
        text = without_paths(last[-1][1])
        yield Alert("load_failed", "", "warning", "happened", text, self._wall_clock(), {}, names, count=more)


def _is_of_all(alert: Alert) -> bool:
    """Says whether all processes of a host see the same, as it is about memory of all of them."""
    return alert.kind in _OF_ALL or alert.subject.startswith("memory_")


def _figures(event: MemoryEvent) -> dict[str, object]:
    """Returns an event's figures, without what the alert says itself."""
    said = ("id", "at", "kind", "victims")
    return {name: value for name, value in event.as_dict().items() if name not in said}
