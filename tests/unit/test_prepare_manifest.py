"""A manifest comes back as it was written, and whatever else stands in the file is a ValueError."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.prepare import Manifest
from modelhost.prepare.footprint import RunFootprint, RunPoint, Term
from modelhost.prepare.manifest import SCHEMA, RunFigures, VariantFigures

RUNS = (RunFigures(1, 4096, 0.5), RunFigures(8, 32768, 3.25))
MANIFEST = Manifest(
    key="0123456789abcdef" * 2,
    variant="mapped",
    reason="it holds less",
    resident_bytes=100_000,
    peak_bytes=200_000,
    weights_bytes=5_000_000,
    tolerance=1e-6,
    figures=(
        VariantFigures("heap", 20.0, 5_100_000, 11_000_000, RUNS),
        VariantFigures("mapped", 1.0, 100_000, 200_000, RUNS),
    ),
    run=RunFootprint(
        (Term(65536.0), Term(4000.5, ("n",))), {"n": (("x", 0),)}, "n", True, (RunPoint({"n": 8}, 32768),)
    ),
    files={"model.onnx": (1000, 1_700_000_000_000_000_001, "a" * 64), "model.bin": (5_000_000, 2, "b" * 64)},
)


def changed(**fields: Any) -> str:
    table = json.loads(MANIFEST.to_json())
    return json.dumps(table | fields)


def changed_figures(**fields: Any) -> str:
    table = json.loads(MANIFEST.to_json())
    table["figures"][1] |= fields
    return json.dumps(table)


def test_it_comes_back_as_it_was_written() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    heap = replace(MANIFEST, variant="heap", files={}, tolerance=0.0, run=None)
    assert Manifest.from_json(heap.to_json()) == heap


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, None, "1"])
def test_another_schema_is_refused_and_named(schema: object) -> None:
    with pytest.raises(ValueError, match=f"schema {schema!r}"):
        Manifest.from_json(changed(schema=schema))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"text"',
        "1",
        "{}",
        MANIFEST.to_json()[:-10],
        "[" * 100_000,
        changed(more=1),
        changed(variant="heated"),
        changed(variant=["mapped"]),
        changed(variant="mapped_prepacked"),  # of which there are no figures
        changed(key=1),
        changed(resident_bytes="much"),
        changed(resident_bytes=-1),
        changed(resident_bytes=None),
        changed(peak_bytes=float("inf")),
        changed(weights_bytes=True),
        changed(tolerance=float("nan")),
        changed(figures=[]),
        changed(figures=None),
        changed(figures=[1]),
        changed(files=[]),
        changed(files={"model.bin": [1, 2]}),
        changed(files={"model.bin": [float("inf"), 2, "a"]}),
        changed(run=1),
        changed(run={}),
        changed(run=[]),
        changed(run=json.loads(MANIFEST.to_json())["run"] | {"rows": "t"}),
        changed(run=json.loads(MANIFEST.to_json())["run"] | {"terms": [{"bytes": float("inf"), "dims": []}]}),
        changed_figures(variant="heated"),
        changed_figures(variant={}),
        changed_figures(load_ms="fast"),
        changed_figures(runs=[{"rows": 1, "bytes": "x", "ms": 1.0}]),
        changed_figures(runs=[{"rows": 1}]),
    ],
)
def test_what_is_no_manifest_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Manifest.from_json(text)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(MANIFEST.to_json()))), ANY_JSON)
def test_any_value_anywhere_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(ValueError):
        Manifest.from_json(changed(**{name: value}))


@given(st.integers(0, len(MANIFEST.to_json()) - 1), st.characters(codec="utf-8"))
def test_a_damaged_character_raises_nothing_else(at: int, character: str) -> None:
    text = MANIFEST.to_json()
    with contextlib.suppress(ValueError):
        Manifest.from_json(text[:at] + character + text[at + 1 :])
