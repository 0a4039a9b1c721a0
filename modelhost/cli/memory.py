"""`modelhost memory`: what a running host holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from modelhost.cli.client import api_key, request
from modelhost.cli.options import url_options
from modelhost.cli.table import format_table
from modelhost.units import format_bytes, format_span

_BAR_WIDTH = 60


@click.command("memory", short_help="Show what a running host holds.")
@url_options
@click.option("--json", "as_json", is_flag=True, help="The host's own JSON.")
@click.option("--cleanup", is_flag=True, help="Unload every idle model that is not pinned first.")
@click.option("--events", default=5, show_default=True, type=click.IntRange(0), help="How many events to show.")
def command(url: str, api_key_file: Path | None, as_json: bool, cleanup: bool, events: int) -> None:
    """Show limit, usage, thresholds, page cache, models and the last events of a running host."""
    key = api_key(api_key_file)
    answer = request(url, "/memory/cleanup", {}, key=key)["memory"] if cleanup else request(url, "/memory", key=key)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(_summary(answer))
    if answer["models"]:
        click.echo("\n" + _models(answer["models"]))
    if events and answer["events"]:
        click.echo("\nlast events:")
        for event in answer["events"][-events:]:
            click.echo("  " + _event(event))


def _summary(info: dict[str, Any]) -> str:
    limit: int = info["limit_bytes"]

    def column(size_bytes: int) -> int:
        return min(_BAR_WIDTH - 1, size_bytes * _BAR_WIDTH // limit)

    bar = list("#" * column(info["usage_bytes"]) + "." * (_BAR_WIDTH - column(info["usage_bytes"])))
    bar[column(info["warning_bytes"])] = "w"
    bar[column(info["critical_bytes"])] = "C"
    return "\n".join(
        [
            f"level {info['level']}: {format_bytes(info['usage_bytes'])} of {format_bytes(limit)} "
            f"({info['limit_source']}) in use, {format_bytes(info['available_bytes'])} for loads",
            f"[{''.join(bar)}]",
            f"baseline {format_bytes(info['baseline_bytes'])}, w warning {format_bytes(info['warning_bytes'])}, "
            f"C critical {format_bytes(info['critical_bytes'])}, reserved {format_bytes(info['reserved_bytes'])}",
            _page_cache(info["page_cache"]),
            *_forecast(info.get("forecast")),
        ]
    )


def _forecast(found: dict[str, Any] | None) -> list[str]:
    """One line where something grows."""
    if not found or not found["growth"]:
        return []
    growth, to_critical = found["growth"], found["to_critical_s"]
    text = (
        f"grows: {format_bytes(round(growth['bytes_per_s'] * 3600))} an hour that no model holds "
        f"({format_bytes(growth['seen_bytes'])} in {format_span(growth['seen_s'])})"
    )
    if found["place"]:
        text += f", {found['place']}"
    if to_critical:
        text += (
            f"; critical in {format_span(to_critical['expected'])} "
            f"({format_span(to_critical['soonest'])} to {format_span(to_critical['latest'])})"
        )
    return [text]


def _page_cache(found: dict[str, Any]) -> str:
    """One line; what the host could not read is left out."""
    parts = []
    if found["weights_bytes"]:
        cached = "an unknown part" if found["cached_bytes"] is None else format_bytes(found["cached_bytes"])
        parts.append(f"{cached} of {format_bytes(found['weights_bytes'])} of mapped weights")
    if found["refaulted_bytes_per_s"] is not None:
        parts.append(f"{format_bytes(found['refaulted_bytes_per_s'])}/s read again")
    if found["major_faults_per_s"] is not None:
        parts.append(f"{found['major_faults_per_s']:.0f} major faults/s")
    if found["psi_full_avg10"] is not None:
        whose = " (the whole machine)" if found["psi_is_machines"] else ""
        parts.append(f"stalled {found['psi_full_avg10']:.0f} % of the time{whose}")
    return f"page cache{', THRASHING' if found['is_thrashing'] else ''}: {', '.join(parts) or 'nothing is known'}"


def _models(models: list[dict[str, Any]]) -> str:
    now = time.time()
    rows = [
        [
            model["name"],
            model["version"],
            model["state"] + (" (pinned)" if model["pinned"] else ""),
            format_bytes(model["committed_bytes"]),
            _weights(model),
            str(model["leases"]),
            f"{now - model['last_used']:.0f} s ago" if model["last_used"] else "never",
        ]
        for model in sorted(models, key=lambda model: -model["committed_bytes"])
    ]
    return format_table(["model", "version", "state", "committed", "weights in cache", "leases", "last used"], rows)


def _weights(model: dict[str, Any]) -> str:
    """Empty for a model on the heap, whose weights are committed."""
    if model["weights_bytes"] is None:
        return ""
    cached = "?" if model["cached_bytes"] is None else format_bytes(model["cached_bytes"])
    return f"{cached} of {format_bytes(model['weights_bytes'])}"


def _event(event: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    text = f"{at} {event['kind']}: level {event['level']}, {format_bytes(event['usage_bytes'])} ({event['cause']})"
    if "freed_bytes" in event:
        text += f", freed {format_bytes(event['freed_bytes'])} of {format_bytes(event['expected_bytes'])}"
    if event["kind"] == "thrashing" and event["refaulted_bytes_per_s"] is not None:
        text += f", {format_bytes(event['refaulted_bytes_per_s'])}/s read again"
    return text
