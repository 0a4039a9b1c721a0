"""What a host says of its memory, in words: for the commands that show it. JSON in, lines out."""

from __future__ import annotations

import time
from typing import Any, Final

from modelhost.cli.segments import Line, Role, Segment, line, printable
from modelhost.units import format_bytes, format_span

_LEVELS: Final = {"normal": Role.GOOD, "warning": Role.WARNING, "critical": Role.CRITICAL}

#: Kinds of events that tell of something that should not be.
_BAD_KINDS: Final = frozenset({"shortfall", "thrashing", "growth", "swap_failed", "worker_crash", "memory_unreadable"})


def level_role(level: str) -> Role:
    """Returns how a level is shown."""
    return _LEVELS.get(level, Role.STRONG)


def usage_parts(memory: dict[str, Any]) -> list[Line]:
    """What is used of what, what is left for loads, and what loads have reserved."""
    level = memory["level"]
    used = line(
        "level ",
        Segment(level, level_role(level)),
        f": {format_bytes(memory['usage_bytes'])} of {format_bytes(memory['limit_bytes'])} "
        f"({printable(memory['limit_source'])}) in use",
    )
    reserved = memory["reserved_bytes"]
    return [
        used,
        line(f"{format_bytes(memory['available_bytes'])} for loads"),
        *([line(f"{format_bytes(reserved)} reserved")] if reserved else []),
    ]


def forecast_text(found: dict[str, Any] | None) -> str | None:
    """What grows, and when it would be critical; None where nothing does."""
    if not found or not found["growth"]:
        return None
    growth, to_critical = found["growth"], found["to_critical_s"]
    text = (
        f"grows: {format_bytes(round(growth['bytes_per_s'] * 3600))} an hour that no model holds "
        f"({format_bytes(growth['seen_bytes'])} in {format_span(growth['seen_s'])})"
    )
    if found["place"]:
        text += f", {printable(found['place'])}"
    if to_critical:
        text += (
            f"; critical in {format_span(to_critical['expected'])} "
            f"({format_span(to_critical['soonest'])} to {format_span(to_critical['latest'])})"
        )
    return text


def policy_text(found: dict[str, Any] | None) -> str | None:
    """How thresholds follow what is learnt, and why they were changed last; None where they are fixed."""
    if not found:
        return None
    last = found["last"]
    why = f"; the last at {_time_of_day(last['at'])}: {printable(last['reason'])}" if last else ""
    return f"thresholds are adaptive, {found['changes']} changes{why}"


def page_cache_line(found: dict[str, Any]) -> Line:
    """The weights in the page cache, and whether they stay there; what the host could not read is left out."""
    weights = []
    if found["weights_bytes"]:
        cached = "an unknown part" if found["cached_bytes"] is None else format_bytes(found["cached_bytes"])
        weights = [f"{cached} of {format_bytes(found['weights_bytes'])} of mapped weights"]
    return line("page cache", *_thrashing(found), f": {', '.join([*weights, *_pressure(found)]) or 'nothing is known'}")


def pressure_line(found: dict[str, Any]) -> Line:
    """Whether the page cache still holds what is used; what the host could not read is left out."""
    return line("pressure", *_thrashing(found), f": {', '.join(_pressure(found)) or 'nothing is known'}")


def _thrashing(found: dict[str, Any]) -> list[str | Segment]:
    return [", ", Segment("THRASHING", Role.CRITICAL)] if found["is_thrashing"] else []


def _pressure(found: dict[str, Any]) -> list[str]:
    parts = []
    if found["refaulted_bytes_per_s"] is not None:
        parts.append(f"{format_bytes(found['refaulted_bytes_per_s'])}/s read again")
    if found["major_faults_per_s"] is not None:
        parts.append(f"{found['major_faults_per_s']:.0f} major faults/s")
    if found["psi_full_avg10"] is not None:
        whose = " (the machine)" if found["psi_is_machines"] else ""
        parts.append(f"stalled {found['psi_full_avg10']:.0f} %{whose}")
    return parts


def event_line(event: dict[str, Any]) -> Line:
    """One event of the history, with the time of the day."""
    kind, level = event["kind"], event["level"]
    role = level_role(level) if kind == "level" else Role.WARNING if kind in _BAD_KINDS else Role.PLAIN
    was = f", was {event['from']}" if "from" in event else ""
    text = f": level {level}{was}, {format_bytes(event['usage_bytes'])} ({event['cause']})"
    if "freed_bytes" in event:
        text += f", freed {format_bytes(event['freed_bytes'])} of {format_bytes(event['expected_bytes'])}"
    if event.get("victims"):
        text += f": {', '.join(event['victims'])}"
    if event.get("reason"):
        text += f": {event['reason']}"
    if kind == "thrashing" and event["refaulted_bytes_per_s"] is not None:
        text += f", {format_bytes(event['refaulted_bytes_per_s'])}/s read again"
    return line(Segment(f"{_time_of_day(event['at'])} ", Role.DIM), Segment(printable(kind), role), printable(text))


def _time_of_day(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
