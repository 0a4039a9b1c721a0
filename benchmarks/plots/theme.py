"""The colours of the page in light and dark, and its style sheet.

Blue and orange come first: they differ for everybody, in lightness too. Nothing is told by colour alone: lines have
their names beside them, levels their own dashes. Contrast with the ground is at least 4.5 for words and 3 for marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What each name colours: words and axes, series in their order, and the levels of memory.
LIGHT: Final[Mapping[str, str]] = {
    "ground": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#1f2328",
    "faint": "#57606a",
    "grid": "#e3e7ec",
    "s0": "#0b6e99",
    "s1": "#c2500a",
    "s2": "#00795a",
    "s3": "#8d4a9b",
    "warning": "#8f6200",
    "critical": "#b3261e",
    "good": "#1a7f37",
}
DARK: Final[Mapping[str, str]] = {
    "ground": "#14181d",
    "panel": "#1c2128",
    "ink": "#e6edf3",
    "faint": "#9aa5b1",
    "grid": "#2d343d",
    "s0": "#5ab4e6",
    "s1": "#f2a35e",
    "s2": "#45cfa0",
    "s3": "#d49be0",
    "warning": "#e0b443",
    "critical": "#ff8f85",
    "good": "#4fc46b",
}
SERIES: Final = ("s0", "s1", "s2", "s3")

_SHEET: Final = """
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 32px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 21px; margin: 48px 0 2px; }
h3 { font-size: 16px; margin: 24px 0 2px; } p { margin: 4px 0 8px; }
.faint { color: var(--faint); } .small { font-size: 13px; }
nav a { color: var(--s0); margin-right: 16px; }
.badge { font-size: 13px; font-weight: 600; border: 1.5px solid; border-radius: 4px; padding: 1px 8px; margin-left: 8px;
  vertical-align: 3px; } .holds { color: var(--good); } .fails { color: var(--critical); }
ul.violations { color: var(--critical); margin: 4px 0; }
figure { margin: 8px 0 0; } svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 6px 0 4px; }
th { font-weight: 600; text-align: right; vertical-align: bottom; border-bottom: 1.5px solid var(--faint); }
td { text-align: right; border-bottom: 1px solid var(--grid); } th, td { padding: 3px 12px 3px 0; }
th:first-child, td:first-child { text-align: left; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--faint); font-size: 13px; }
svg text { font-size: 12px; fill: var(--ink); } svg text.faint { fill: var(--faint); }
svg text.title { font-size: 13.5px; font-weight: 600; } svg text.strong { font-weight: 600; }
svg .grid { stroke: var(--grid); stroke-width: 1; } svg .axis { stroke: var(--faint); stroke-width: 1; }
svg .mark { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 3; }
svg polyline { fill: none; stroke-linejoin: round; stroke-width: 1.8; } svg polygon { stroke: none; opacity: .28; }
svg .limit { stroke: var(--ink); stroke-width: 1.6; } svg text.limit { stroke: none; }
svg .critical { stroke: var(--critical); stroke-width: 1.4; stroke-dasharray: 7 3; }
svg .warning { stroke: var(--warning); stroke-width: 1.4; stroke-dasharray: 3 3; }
svg .baseline { stroke: var(--faint); stroke-width: 1.4; stroke-dasharray: 1 3; }
svg text.critical { fill: var(--critical); stroke: none; } svg text.warning { fill: var(--warning); stroke: none; }
svg text.baseline { fill: var(--faint); stroke: none; }
svg .at-warning { fill: var(--warning); } svg .at-critical { fill: var(--critical); }
svg .at-normal { fill: var(--grid); }
svg .dashed { stroke-dasharray: 6 4; }
"""


def style_sheet() -> str:
    """Returns the page's style: light, dark where the reader wants that, either by `data-theme` on the root."""
    series = "".join(
        f"svg .{name} {{ stroke: var(--{name}); }} svg text.{name} {{ fill: var(--{name}); stroke: none; }}\n"
        f"svg .fill-{name} {{ fill: var(--{name}); stroke: none; }}\n"
        for name in SERIES
    )
    light, dark = (
        "".join(f"--{name}: {value}; " for name, value in theme.items()) + f"color-scheme: {scheme};"
        for theme, scheme in ((LIGHT, "light"), (DARK, "dark"))
    )
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {dark} }} }}\n"
        f":root[data-theme=dark] {{ {dark} }}\n{_SHEET}{series}"
    )


def contrast(one: str, other: str) -> float:
    """Returns how much two colours differ in lightness, from 1 to 21, as WCAG 2 counts it."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
