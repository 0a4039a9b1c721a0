"""`modelhost memory`: what a running host holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from modelhost.cli.client import api_key, request
from modelhost.cli.memory_bar import bar, legend, mark_legend, marks_of, parts_of_memory
from modelhost.cli.memory_text import event_line, forecast_text, page_cache_line, policy_text, usage_parts
from modelhost.cli.options import url_options
from modelhost.cli.segments import Line, line, plain, wrapped
from modelhost.cli.table import format_table
from modelhost.units import format_bytes

_BAR_WIDTH: Final = 62
_TEXT_WIDTH: Final = 120


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
    for shown in _summary(answer):
        click.echo(plain(shown))
    if answer["models"]:
        click.echo("\n" + _models(answer["models"]))
    if events and answer["events"]:
        click.echo("\nlast events:")
        for event in answer["events"][-events:]:
            click.echo("  " + plain(event_line(event)))


def _summary(info: dict[str, Any]) -> list[Line]:
    parts, marks = parts_of_memory(info), marks_of(info)
    words = (policy_text(info.get("policy")), forecast_text(info.get("forecast")))
    return [
        *wrapped(usage_parts(info), _TEXT_WIDTH, gap=", "),
        bar(parts, marks, width=_BAR_WIDTH),
        *wrapped([*mark_legend(marks), *legend(parts)[1:]], _TEXT_WIDTH),
        page_cache_line(info["page_cache"]),
        *(line(text) for text in words if text is not None),
    ]


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
