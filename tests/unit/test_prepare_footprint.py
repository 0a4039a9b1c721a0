"""What runs take, foreseen from shapes; the dimensions of it, its JSON, and the sum fitted through measured runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.prepare.footprint import FreeDims, RunFootprint, RunPoint, Term
from modelhost.runtime.building_fit import fit
from modelhost.tensors import TensorSpec

# --- filled in -------------------------------------------------------------------------------------------

TEXT = RunFootprint(
    terms=(Term(1000.0), Term(10.0, ("batch", "steps")), Term(0.5, ("batch", "steps", "steps"))),
    dims={"batch": (("ids", 0), ("mask", 0)), "steps": (("ids", 1), ("mask", 1))},
    rows="batch",
    rows_independent=True,
    measured=(RunPoint({"batch": 1, "steps": 16}, 1288),),
)


def text(batch: int, steps: int) -> dict[str, tuple[int, ...]]:
    return {"ids": (batch, steps), "mask": (batch, steps)}


@pytest.mark.parametrize(("batch", "steps", "expected"), [(1, 16, 1288), (4, 100, 25000), (0, 16, 1000)])
def test_bytes_are_the_sum_of_the_terms(batch: int, steps: int, expected: int) -> None:
    assert TEXT.predict(text(batch, steps)) == expected


def test_the_largest_of_a_shared_dimension_counts() -> None:
    assert TEXT.predict({"ids": (1, 16), "mask": (1, 32)}) == TEXT.predict(text(1, 32))


@pytest.mark.parametrize("shapes", [{}, {"ids": (1, 16)}, {"ids": (1,), "mask": (1,)}])
def test_shapes_that_were_not_measured_are_not_foreseen(shapes: Mapping[str, Sequence[int]]) -> None:
    assert TEXT.predict(shapes) is None
    assert TEXT.largest_rows(shapes, 1 << 30) is None


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 10_000_000))
def test_the_largest_batch_fits_and_one_more_does_not(batch: int, steps: int, ceiling_bytes: int) -> None:
    rows = TEXT.largest_rows(text(batch, steps), ceiling_bytes)
    assert rows is not None
    if rows:
        assert (TEXT.predict(text(rows, steps)) or 0) <= ceiling_bytes
    assert (TEXT.predict(text(rows + 1, steps)) or 0) > ceiling_bytes


def test_a_model_without_rows_has_no_largest_batch() -> None:
    constant = RunFootprint(terms=(Term(500.0),), dims={})
    assert constant.predict({"x": (1, 64)}) == 500
    assert constant.largest_rows({"x": (1, 64)}, 100) is None


# --- written and read ------------------------------------------------------------------------------------


def table(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(TEXT)))
    return found | fields


def test_it_comes_back_as_it_was_written() -> None:
    assert RunFootprint.from_table(table()) == TEXT
    constant = RunFootprint(terms=(Term(500.0),), dims={})
    assert RunFootprint.from_table(json.loads(json.dumps(asdict(constant)))) == constant


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        table(terms=None),
        table(terms=[{"bytes": -1, "dims": []}]),
        table(terms=[{"bytes": float("nan"), "dims": []}]),
        table(terms=[{"bytes": True, "dims": []}]),
        table(terms=[{"bytes": 1, "dims": ["width"]}]),
        table(terms=[{"bytes": 1}]),
        table(dims={"batch": [["ids", 0]]}),  # steps are nowhere
        table(dims={"batch": [["ids", 0]], "steps": []}),
        table(dims={"batch": [["ids", 0]], "steps": [["ids", -1]]}),
        table(dims={"batch": [["ids", 0]], "steps": [[1, 1]]}),
        table(dims={"batch": [["ids", 0]], "steps": [["ids"]]}),
        table(dims=[]),
        table(rows="width"),
        table(rows=None),
        table(rows_independent=1),
        table(rows_independent="yes"),
        table(measured=[{"sizes": {"batch": 1, "steps": 16}, "bytes": float("inf")}]),
        table(measured=[{"sizes": {"batch": 1.5, "steps": 16}, "bytes": 1}]),
        table(measured=[{"sizes": {"width": 1}, "bytes": 1}]),
    ],
)
def test_what_is_no_footprint_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        RunFootprint.from_table(wrong)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(table())), ANY_JSON)
def test_any_value_anywhere_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        RunFootprint.from_table(table(**{name: value}))


# --- free dimensions -------------------------------------------------------------------------------------


def spec(name: str, *dims: int | str) -> TensorSpec:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in dims)
    return TensorSpec(name, "FP32", shape, tuple(dim if isinstance(dim, str) else "" for dim in dims))


@pytest.mark.parametrize(
    ("specs", "rows", "places"),
    [
        ([], "", {}),
        ([spec("x", 1, 64)], "", {}),
        ([spec("x", "n", 64)], "n", {"n": (("x", 0),)}),
        ([spec("x", 3, "w")], "", {"w": (("x", 1),)}),
        # Symbols are shared between inputs; what has no symbol is named by its place, but for rows.
        ([spec("a", "n", "t"), spec("b", "n", "t")], "n", {"n": (("a", 0), ("b", 0)), "t": (("a", 1), ("b", 1))}),
        (
            [spec("a", "n", -1), spec("b", -1, -1)],
            "n",
            {"n": (("a", 0), ("b", 0)), "a:1": (("a", 1),), "b:1": (("b", 1),)},
        ),
        ([spec("k"), spec("a", -1, 2), spec("b", -1)], "a:0", {"a:0": (("a", 0), ("b", 0))}),
        ([spec("a", "t", "n"), spec("b", "n", 2)], "t", {"t": (("a", 0),), "n": (("a", 1), ("b", 0))}),
    ],
)
def test_free_dimensions_have_a_name_and_places(specs: list[TensorSpec], rows: str, places: Any) -> None:
    found = FreeDims.of(specs)
    assert (found.rows, found.places, found.fixed_rank) == (rows, places, True)


def test_all_first_dimensions_can_be_tied_to_the_rows() -> None:
    tied = FreeDims.of([spec("a", "m", "t"), spec("b", "n", "t")]).with_rows_tied()
    assert tied.rows == "m"
    assert tied.places == {"m": (("a", 0), ("b", 0)), "t": (("a", 1), ("b", 1))}


def test_an_open_rank_is_told() -> None:
    found = FreeDims.of([TensorSpec("x", "FP32", None)])
    assert not found.fixed_rank
    assert found.places == {"x:0": (("x", 0),), "x:1": (("x", 1),)}


def test_sizes_are_given_by_symbol_or_by_place() -> None:
    dims = FreeDims.of([spec("a", "n", -1), spec("b", -1, 4)])
    assert dims.resolve({"n": 2, "a:1": 7}) == {"n": 2, "a:1": 7}
    assert dims.resolve({"b:0": 3}) == {"n": 3}
    with pytest.raises(ValueError, match=r"no dimension 'b:1' of any size; it has 'n', 'a:1'"):
        dims.resolve({"b:1": 3})
    with pytest.raises(ValueError, match="it has none"):
        FreeDims.of([]).resolve({"n": 1})


# --- the sum through measured runs -----------------------------------------------------------------------


def points(bytes_of: Any, sizes: Sequence[tuple[int, int]]) -> list[RunPoint]:
    return [RunPoint({"n": n, "t": t}, int(bytes_of(n, t))) for n, t in sizes]


MEASURED = [(1, 16), (8, 16), (2, 16), (32, 16), (1, 64), (1, 256), (1, 512), (4, 512), (8, 64)]
OTHERS = [(1, 384), (64, 128), (16, 300), (3, 1000)]


@pytest.mark.parametrize(
    "bytes_of",
    [
        lambda n, t: 3_000_000,
        lambda n, t: 200_000 * n,
        lambda n, t: 5_000_000 + 700 * n * t,
        lambda n, t: 10_000 * n * t + 24 * n * t * t,
        lambda n, t: max(10_000 * n * t, 3_000 * n * t + 50 * n * t * t),
        lambda n, t: (10_000 * n * t + 24 * n * t * t) * (1 + 0.1 * ((n * t) % 7) / 7) + 9000 * (t % 3),  # ragged
    ],
)
def test_what_was_not_measured_is_foreseen_from_what_was(bytes_of: Any) -> None:
    measured = points(bytes_of, MEASURED)
    run = RunFootprint(fit(measured, "n", rows_independent=True), {"n": (("x", 0),), "t": (("x", 1),)}, "n")
    for point in measured:
        assert (run.predict({"x": (point.sizes["n"], point.sizes["t"])}) or 0) >= point.bytes
    for n, t in OTHERS:
        foreseen = run.predict({"x": (n, t)})
        assert foreseen is not None
        assert 0.8 * bytes_of(n, t) < foreseen < 1.5 * bytes_of(n, t) + 65_536, run.terms


def test_rows_that_see_each_other_may_be_quadratic() -> None:
    measured = [RunPoint({"n": n}, 40 * n * n + 1000 * n) for n in (1, 2, 4, 8, 32, 256)]
    run = RunFootprint(fit(measured, "n", rows_independent=False), {"n": (("x", 0),)}, "n")
    assert 0.8 < (run.predict({"x": (1000,)}) or 0) / 41_000_000 < 1.3


def test_the_noise_of_a_small_run_is_not_taken_for_what_rows_take() -> None:
    measured = [RunPoint({"n": n}, 4096 * n + (50_000 if n == 1 else 0)) for n in (1, 2, 8, 32, 256)]
    run = RunFootprint(fit(measured, "n", rows_independent=True), {"n": (("x", 0),)}, "n")
    assert (run.predict({"x": (10_000,)}) or 0) < 1.3 * 4096 * 10_000


def test_what_was_never_varied_is_taken_to_grow_in_proportion() -> None:
    measured = [RunPoint({"n": 1, "t": t}, 10_000 * t) for t in (100, 200, 400)]
    run = RunFootprint(fit(measured, "n", rows_independent=None), {"n": (("x", 0),), "t": (("x", 1),)}, "n")
    assert 640_000_000 <= (run.predict({"x": (64, 1000)}) or 0) < 700_000_000


def test_one_run_alone_is_a_constant() -> None:
    (noise, *more) = fit([RunPoint({}, 10 << 20)], "", rows_independent=None)
    assert noise.dims == ()
    assert noise.bytes + sum(term.bytes for term in more) >= 10 << 20
    assert fit([], "", rows_independent=None) == ()


@given(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600), st.integers(0, 1 << 34)), min_size=1, max_size=12))
def test_whatever_was_measured_no_point_is_above(found: list[tuple[int, int, int]]) -> None:
    measured = [RunPoint({"n": n, "t": t}, size) for n, t, size in found]
    run = RunFootprint(fit(measured, "n", rows_independent=None), {"n": (("x", 0),), "t": (("x", 1),)}, "n")
    for point in measured:
        assert (run.predict({"x": (point.sizes["n"], point.sizes["t"])}) or 0) >= point.bytes * (1 - 1e-9) - 1
