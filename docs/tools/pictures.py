"""Draws the pictures of the pages: `python -m docs.tools.pictures`, or of one, `... density`.

What is measured lies beside them in `figures.json`, with when, where and how; diagrams are drawn from what is said in
them. Each is one SVG that loads nothing, small, with its own ground, light or dark as the reader's system is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks.plots import svg
from benchmarks.plots.theme import DARK, LIGHT

FOLDER: Final = Path(__file__).resolve().parents[1] / "pictures"
FIGURES: Final = Path(__file__).with_name("figures.json")
_WIDTH: Final = 760.0

_SHEET: Final = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--ink); }
text.faint { fill: var(--faint); font-size: 12px; } text.title { font-weight: 600; font-size: 14px; }
text.on { fill: var(--ground); font-weight: 600; } text.strong { font-weight: 600; }
text.s0 { fill: var(--s0); font-weight: 600; } text.s1 { fill: var(--s1); font-weight: 600; }
text.critical { fill: var(--critical); } text.warning { fill: var(--warning); }
.ground { fill: var(--ground); stroke: var(--grid); } .panel { fill: var(--panel); stroke: var(--faint); }
.ours { fill: var(--s0); } .plain { fill: var(--s1); } .other { fill: var(--s2); } .pale { fill: var(--grid); }
.free { fill: none; stroke: var(--faint); stroke-dasharray: 3 3; }
.mark { stroke: var(--faint); stroke-dasharray: 2 3; } .axis { stroke: var(--faint); } .arrow { stroke: var(--faint);
  stroke-width: 1.4; fill: none; marker-end: url(#tip); } .tip { fill: var(--faint); }
.at-warning { stroke: var(--warning); stroke-width: 1.6; stroke-dasharray: 4 3; }
.at-critical { stroke: var(--critical); stroke-width: 1.6; stroke-dasharray: 7 3; }
.usage { fill: none; stroke: var(--s0); stroke-width: 1.8; stroke-linejoin: round; }
.area { fill: var(--s0); stroke: none; opacity: .18; }
.at-limit { stroke: var(--ink); stroke-width: 1.8; }
"""


def picture(height: float, label: str, parts: Iterable[str], *, width: float = _WIDTH) -> str:
    """Returns the whole file."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in theme.items()) for theme in (LIGHT, DARK))
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(label, quote=True)}">\n'
        f"<style>svg {{ {light} }}\n@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}{_SHEET}</style>\n"
        f'<defs>{tip}<path d="M0,0 L8,4 L0,8 z" class="tip"/></marker></defs>\n'
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" class="ground"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def box(x: float, y: float, width: float, height: float, lines: Sequence[str], style: str = "panel") -> str:
    """Returns a box with its words in the middle; the first line is its name."""
    rows = []
    top = y + height / 2 - 8 * (len(lines) - 1) + 4.5
    for at, words in enumerate(lines):
        shown = "on" if style != "panel" else "strong" if at == 0 and len(lines) > 1 else ""
        rows.append(svg.text(x + width / 2, top + 16 * at, words, shown or ("faint" if at else ""), "middle"))
    frame = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" class="{style}"/>'
    return frame + "".join(rows)


def arrow(*points: tuple[float, float]) -> str:
    """Returns a line with a tip at its end."""
    return '<polyline points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '" class="arrow"/>'


def density(figures: dict[str, Any]) -> str:
    """Models held in one container: the host beside plain loops."""
    found = figures["density"]
    left, right, top = 214.0, 736.0, 62.0
    most = max(row["held"] for row in found["rows"])
    title = f"Models of {found['model_mb']} MB held at once in a container of {found['limit_mb']} MB"
    parts = [svg.text(24, 30, title, "title")]
    for row in found["rows"]:
        is_ours = row["server"].startswith("modelhost")
        length = (right - left) * row["held"] / most
        parts.append(svg.text(left - 10, top + 15, row["server"], "s0" if is_ours else "", "end"))
        parts.append(svg.rect(left, top, length, 22, "ours" if is_ours else "plain"))
        if is_ours:
            words = f"{row['held']} of {found['models']}, every one answered right, nothing killed"
            parts.append(svg.text(left + length - 10, top + 15, words, "on", "end"))
        else:
            words = f"{row['held']}, killed by the kernel at the next"
            parts.append(svg.text(left + length + 8, top + 15, words))
        top += 34
    parts += [svg.text(24, top + 14 + 16 * at, words, "faint") for at, words in enumerate(found["notes"])]
    label = "; ".join(f"{row['server']}: {row['held']}" for row in found["rows"])
    return picture(top + 48, f"Models held at once. {label}", parts)


def levels(figures: dict[str, Any]) -> str:
    """What the limit is divided into, and the levels."""
    found = figures["levels"]
    left, right, top = 28.0, 732.0, 84.0
    limit: float = found["limit_mb"]

    def at(size_mb: float) -> float:
        return left + (right - left) * size_mb / limit

    base, warning, critical = found["baseline_mb"], found["warning_mb"], found["critical_mb"]
    parts = [svg.text(24, 30, f"{limit} MB: who may take what", "title")]
    for low, high, style, words, below in (
        (0, base, "pale", "the host", "libraries, code, threads"),
        (base, warning, "ours", "models", "loaded and loading"),
        (warning, critical, "other", "", "peaks"),
        (critical, limit, "plain", "runs", "activations, bodies, answers"),
    ):
        parts.append(svg.rect(at(low), top, at(high) - at(low), 40, style))
        middle = (at(low) + at(high)) / 2
        parts.append(svg.text(middle, top + 25, words, "strong" if style == "pale" else "on", "middle"))
        parts.append(svg.text(middle, top + 60, below, "faint", "middle"))
    for size, style, words in (
        (base, "axis", f"baseline {base:.0f}"),
        (warning, "at-warning", f"warning {warning:.0f}"),
        (critical, "at-critical", f"critical {critical:.0f}"),
        (limit, "at-limit", f"limit {limit:.0f}"),
    ):
        parts.append(svg.line(at(size), top - 14, at(size), top + 46, style))
        anchor: svg.Anchor = "end" if size == limit or size == warning else "start" if size == critical else "middle"
        parts.append(svg.text(at(size), top - 20, words, "", anchor))
    words = "above warning idle models leave; at critical nothing loads; at the limit the kernel kills"
    parts.append(svg.text(24, top + 92, words, "faint"))
    label = f"baseline {base}, warning {warning}, critical {critical}, limit {limit} MB"
    return picture(top + 110, f"The memory levels at {limit} MB: {label}", parts)


def prepared(figures: dict[str, Any]) -> str:
    """Committed memory of loaded models: plain, with a fixed threshold, prepared."""
    found = figures["prepared"]
    most = max(max(row["committed_mb"]) for row in found["rows"])
    left, right, top = 190.0, 640.0, 72.0
    parts = [svg.text(24, 30, "Committed memory of one loaded model", "title")]
    key = (("plain", "as it comes"), ("other", "malloc threshold fixed"), ("ours", "prepared"))
    for at, (style, words) in enumerate(key):
        parts += [svg.rect(190 + 165 * at, 44, 12, 12, style), svg.text(208 + 165 * at, 54, words, "faint")]
    for row in found["rows"]:
        parts.append(svg.text(left - 10, top + 26, row["model"], "", "end"))
        for size, style in zip(row["committed_mb"], ("plain", "other", "ours"), strict=True):
            length = (right - left) * size / most
            parts += [
                svg.rect(left, top, length, 12, style),
                svg.text(left + max(length, 1) + 6, top + 11, f"{size:g} MB", "faint"),
            ]
            top += 14
        top += 14
    parts.append(svg.text(24, top + 10, found["note"], "faint"))
    label = "; ".join(f"{row['model']}: {', '.join(map(str, row['committed_mb']))} MB" for row in found["rows"])
    return picture(top + 28, f"Committed memory plain, with malloc threshold, prepared. {label}", parts)


def timeline(figures: dict[str, Any]) -> str:
    """Usage of a host with more models than fit, as it was read."""
    found = figures["timeline"]
    left, right, top, bottom = 60.0, 640.0, 48.0, 248.0
    limit: float = found["limit_mb"]

    def across(at_s: float) -> float:
        return left + (right - left) * at_s / float(found["seconds"])

    def up(size_mb: float) -> float:
        return bottom - (bottom - top) * size_mb / limit

    parts = [svg.text(24, 30, "Usage while more models are wanted than fit", "title")]
    for name, style in (
        ("baseline", "mark"),
        ("warning", "at-warning"),
        ("critical", "at-critical"),
        ("limit", "at-limit"),
    ):
        size = found[f"{name}_mb"]
        parts += [svg.line(left, up(size), right, up(size), style)]
        parts += [svg.text(right + 8, up(size) + 4, f"{name} {size:.0f} MB", "faint")]
    points = [(across(at_s), up(size)) for at_s, size in found["usage_mb"]]
    parts += [svg.band([(x, bottom) for x, _ in points], points, "area"), svg.path(points, "usage")]
    for at, (name, style) in enumerate((("opened_s", "other"), ("loads_s", "ours"))):
        for began_s, ended_s in found[name]:
            parts.append(svg.rect(across(began_s), bottom + 6 + 16 * at, across(ended_s) - across(began_s), 10, style))
    parts += [svg.rect(across(at_s) - 2, bottom + 38, 4, 10, "plain") for at_s in found["leaves_s"]]
    for at, words in enumerate(("a child opens it", "loads", "idle ones leave")):
        parts.append(svg.text(right + 8, bottom + 15 + 16 * at, words, "faint"))
    parts += [svg.line(left, bottom, right, bottom, "axis"), svg.text(left - 8, bottom + 4, "0", "faint", "end")]
    parts += [svg.text(right, bottom + 64, f"{found['seconds']:.0f} s", "faint", "end")]
    parts += [svg.text(24, bottom + 84 + 16 * at, words, "faint") for at, words in enumerate(found["notes"])]
    label = "it rises while a child opens a model and at loads, falls as idle models leave, and stays below critical"
    return picture(bottom + 116, f"Usage over {found['seconds']:.0f} s: {label}", parts)


def admission(figures: dict[str, Any]) -> str:
    """The way of a request whose model is not loaded."""
    parts = [
        box(24, 24, 150, 44, ["a request", "for a model"]),
        box(224, 24, 190, 44, ["loaded?"]),
        box(534, 24, 202, 44, ["lease, claim, run", "answer"], "ours"),
        arrow((174, 46), (222, 46)), arrow((414, 46), (532, 46)), svg.text(440, 40, "yes", "faint"),
        box(224, 104, 190, 44, ["opened before?"]),
        arrow((319, 68), (319, 102)), svg.text(326, 90, "no", "faint"),
        box(534, 104, 202, 44, ["a child opens it", "measures, prepares"]),
        arrow((414, 120), (532, 120)), svg.text(440, 114, "no", "faint"),
        arrow((532, 136), (416, 136)),
        box(224, 184, 190, 44, ["could it ever fit?"]),
        arrow((319, 148), (319, 182)), svg.text(326, 170, "yes", "faint"),
        box(534, 184, 202, 44, ["507 never_fits", "nobody was evicted"], "plain"),
        arrow((414, 206), (532, 206)), svg.text(440, 200, "no", "faint"),
        box(224, 264, 190, 44, ["usage + load", "below critical?"]),
        arrow((319, 228), (319, 262)), svg.text(326, 250, "yes", "faint"),
        box(534, 264, 202, 44, ["load it", "book what was measured"], "ours"),
        arrow((414, 286), (532, 286)), svg.text(440, 280, "yes", "faint"),
        box(224, 344, 190, 44, ["would it fit", "if idle ones left?"]),
        arrow((319, 308), (319, 342)), svg.text(326, 330, "no", "faint"),
        box(24, 304, 150, 44, ["they leave", "memory is read"], "other"),
        arrow((224, 366), (99, 366), (99, 350)), svg.text(196, 360, "yes", "faint"),
        arrow((99, 304), (99, 286), (222, 286)),
        box(534, 344, 202, 44, ["wait for those in use", "then 503 and figures"], "plain"),
        arrow((414, 366), (532, 366)), svg.text(440, 360, "no", "faint"),
        arrow((736, 286), (748, 286), (748, 46), (738, 46)),
    ]  # fmt: skip
    label = (
        "loaded: run. Never opened: a child opens it first. Could never fit: 507. Fits below critical: load. "
        "Fits if idle models leave: they do, memory is read again, and it is decided anew. Else wait, then 503."
    )
    return picture(408, f"How a request for a model is decided: {label}", parts)


def floors(figures: dict[str, Any]) -> str:
    """The packages, each importing from those below it only."""
    rows = (
        ("cli", "commands"),
        ("api, monitor", "HTTP, gRPC, views"),
        ("host", "builds everything, in order"),
        ("pool", "slots, leases, admission, eviction, turns"),
        ("runtime", "the only one that knows ONNX Runtime"),
        ("prepare", "children, manifests, artifacts"),
        ("repository | memory | security", "what is on disk | usage, levels, reservations | keys"),
        ("config, tensors, errors, units", "values that everybody knows"),
    )
    parts = [svg.text(24, 30, "Imports point down", "title")]
    for at, (name, words) in enumerate(rows):
        top = 46 + 34 * at
        parts.append(f'<rect x="24" y="{top}" width="712" height="28" rx="4" class="panel"/>')
        parts += [svg.text(40, top + 19, name, "strong"), svg.text(300, top + 19, words, "faint")]
    label = "; ".join(f"{name}: {words}" for name, words in rows)
    return picture(46 + 34 * len(rows) + 12, f"Packages from the top: {label}", parts)


PICTURES: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "density": density,
    "levels": levels,
    "prepared": prepared,
    "timeline": timeline,
    "admission": admission,
    "floors": floors,
}


def main(names: Sequence[str]) -> None:
    """Draws them all, or those that are named."""
    figures = json.loads(FIGURES.read_text())
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        (FOLDER / f"{name}.svg").write_text(PICTURES[name](figures))


if __name__ == "__main__":
    main(sys.argv[1:])
