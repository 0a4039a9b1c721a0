"""One HTML file for any number of runs: what held, plots, tables, and where it was measured. Loads nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from benchmarks.plots import chart, latency, timeline
from benchmarks.plots.theme import style_sheet
from benchmarks.records import Record
from benchmarks.report import cells_of, shown
from modelhost.units import format_bytes


def render(records: Sequence[Record]) -> str:
    """Returns the page."""
    names = ", ".join(dict.fromkeys(record.benchmark for record in records))
    sections = "".join(f"<section id=r{index}>{''.join(_section(one))}</section>" for index, one in enumerate(records))
    links = "".join(f'<a href="#r{index}">{escape(one.benchmark)}</a>' for index, one in enumerate(records))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>modelhost: {escape(names)}</title><style>{style_sheet()}</style></head><body><main>"
        f"<h1>modelhost benchmarks</h1>{_where(records)}{f'<nav>{links}</nav>' if len(records) > 1 else ''}{sections}"
        "</main></body></html>\n"
    )


def _where(records: Sequence[Record]) -> str:
    found = []
    for record in records:
        machine, versions = record.environment["machine"], record.environment["versions"]
        text = (
            f"{machine['cpu']}, {machine['cores']} cores, {format_bytes(machine['memory_bytes'])}; Linux "
            f"{machine['kernel']}, {machine['libc']}; Python {versions['python']}, onnxruntime "
            f"{versions['onnxruntime']}"
        )
        if text not in found:
            found.append(text)
    return "".join(f'<p class="faint small">{escape(text)}</p>' for text in found)


def _section(record: Record) -> Iterator[str]:
    outcome = record.outcome
    style = "holds" if outcome and outcome["holds"] else "fails"
    yield f'<h2>{escape(record.benchmark)}<span class="badge {style}">{record.verdict}</span></h2>'
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.at))
    took = f", {shown('took_s', outcome['took_s'])}" if outcome else ""
    commit = escape(record.environment["commit"])
    yield f'<p class="faint small">{when}{took}; commit {commit}; {escape(_parameters(record.parameters))}</p>'
    if outcome and outcome["violations"]:
        yield f'<ul class="violations">{"".join(f"<li>{escape(text)}</li>" for text in outcome["violations"])}</ul>'
    for plot in record.of_kind("plot"):
        yield from _figure(plot["title"], plot.get("note", ""), chart.draw(plot))
    for recorded in record.of_kind("recorded"):
        yield from _figure(recorded["run"], _NOTE, timeline.draw(recorded))
        asked = {name: one for name, one in recorded["requests"].items() if one["ok"] > 1}
        if asked:
            yield from _figure(f"{recorded['run']}: times of requests", _others(recorded), latency.draw(asked))
    for table in (outcome or {}).get("tables", ()):
        for cells in cells_of(record.of_kind(table["of"]), table["columns"], table["of"]):
            yield _table(cells)


_NOTE = "Usage is what the kernel cannot take back (the group's charge less its file pages), read from outside."


def _others(recorded: Mapping[str, Any]) -> str:
    found = [
        f"{name}: {len(moments)} {what}"
        for name, one in recorded["requests"].items()
        for what, moments in one["others"].items()
    ]
    return "Not answered: " + ", ".join(found) + "." if found else "All were answered."


def _figure(title: str, note: str, drawing: str) -> Iterator[str]:
    yield f"<h3>{escape(title)}</h3>"
    if note:
        yield f'<p class="faint small">{escape(note)}</p>'
    yield f"<figure>{drawing}</figure>"


def _table(cells: list[list[str]]) -> str:
    head, *rows = cells
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _parameters(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.removesuffix('_bytes')} {shown(name, value)}" for name, value in parameters.items())
