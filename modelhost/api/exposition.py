"""Prometheus' text format, version 0.0.4: families, and a page of their samples. Pure; any thread.

Written here and not by a library: with two hundred models a page has some five thousand samples, and those of one
model share the text of their labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from modelhost.histogram import Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """One name with all its samples: what it counts, and by which labels. A counter's name is as it stands there."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


class Cumulated(NamedTuple):
    """A histogram as it is written: how many values were not over each bound, infinity last, and their sum."""

    counts: tuple[tuple[float, int], ...]
    sum: float

    @classmethod
    def of(cls, histogram: Histogram) -> Cumulated:
        """Returns what a histogram has now."""
        return cls(tuple(histogram.cumulated()), histogram.sum)


class Page:
    """Families in the order in which they were added."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def one(self, family: Family, value: float) -> None:
        """Adds a family that has one sample, without labels."""
        self._parts.append(f"{_head(family)}{family.name} {number(value)}\n")

    def by_label(self, family: Family, values: Mapping[str, float]) -> None:
        """Adds a family that has one label, with the values by what that says."""
        (name,) = family.labels
        self.labelled(family, [(f"{name}={quoted(said)}", value) for said, value in values.items()])

    def labelled(self, family: Family, samples: Iterable[tuple[str, float]]) -> None:
        """Adds a family whose samples have labels, each `name="text"` and commas between them."""
        name = family.name
        self._parts.append(_head(family))
        self._parts += [
            f"{name}{{{labels}}} {value if type(value) is int else number(value)}\n" for labels, value in samples
        ]

    def histograms(self, family: Family, histograms: Mapping[str, Cumulated], *, scale: float = 1.0) -> None:
        """Adds a family of histograms by labels as above, none of them for one alone, in units of which
        `scale` are one of the histograms' own."""
        name = family.name
        self._parts.append(_head(family))
        for labels, found in histograms.items():
            before, alone = (f"{labels},", f"{{{labels}}}") if labels else ("", "")
            for bound, count in found.counts:
                self._parts.append(f'{name}_bucket{{{before}le="{number(bound * scale)}"}} {count}\n')
            self._parts.append(f"{name}_sum{alone} {number(found.sum * scale)}\n")
            self._parts.append(f"{name}_count{alone} {found.counts[-1][1]}\n")

    def render(self) -> bytes:
        """Returns the text."""
        return "".join(self._parts).encode()


def quoted(text: str) -> str:
    """Returns the value of a label as it is written."""
    return f'"{text.translate(_ESCAPED)}"'


def number(value: float) -> str:
    """Returns a value as it is written."""
    if type(value) is int:
        return str(value)
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _head(family: Family) -> str:
    return f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
