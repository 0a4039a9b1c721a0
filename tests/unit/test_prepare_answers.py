"""Answers compared: kept ones with others, and rows asked together with rows asked alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelhost.prepare.footprint import FreeDims
from modelhost.runtime.building_answers import difference, difference_to_kept, keep, rows_independent
from modelhost.runtime.building_questions import Asking, find_asking
from modelhost.runtime.building_steps import StepFailed
from modelhost.tensors import BF16, TensorSpec, from_bfloat16, to_bfloat16

LARGE = np.random.default_rng(0).standard_normal(600_000).astype(np.float32)


def last_changed(by: float) -> np.ndarray:
    changed = LARGE.copy()
    changed[-1] += by
    return changed


@pytest.mark.parametrize(
    ("expected", "got", "share"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.0]), 0.0),
        (np.array([1.0, np.nan, np.inf]), np.array([1.0, np.nan, np.inf]), 0.0),
        (np.array([1.0, 4.0]), np.array([1.0, 4.002]), 0.0005),
        (np.array([], np.float32), np.array([], np.float32), 0.0),
        (np.array(["a"], object), np.array(["a"], object), 0.0),
        (np.float32(2), np.float32(2), 0.0),
        ([{"a": 1.0, "b": 2.0}], [{"a": 1.0, "b": 2.001}], 0.0005),
        (np.array([1 + 2j]), np.array([1 + 2j]), 0.0),
        (to_bfloat16([1, np.nan, np.inf]), to_bfloat16([1, np.nan, np.inf]), 0.0),
        (to_bfloat16([1, 4]), to_bfloat16([1 + 2**-7, 4]), 2**-9),
        (None, None, 0.0),
    ],
)
def test_equal_answers_are_told_how_far_apart_they_are(expected: Any, got: Any, share: float) -> None:
    assert difference(expected, got) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 2.1])),
        (np.array([1.0]), np.array([np.nan])),
        (np.array([1.0]), np.array([1.0], np.float32)),
        (np.array([1.0]), np.array([[1.0]])),
        (np.array([1]), np.array([2])),
        (to_bfloat16([1, 4]), to_bfloat16([1 + 2**-6, 4])),
        (to_bfloat16([1]), to_bfloat16([np.nan])),
        (to_bfloat16([1]), np.array([1.0], np.float32)),
        (np.array([True]), np.array([False])),
        (np.array(["a"], object), np.array(["b"], object)),
        ([1, 2], [1]),
        ([{"a": 1.0}], [{"b": 1.0}]),
        ([{"a": 1.0}], [{"a": 1.5}]),
        (None, np.array([1])),
        (np.array([1]), None),
        (LARGE, last_changed(1.0)),
    ],
)
def test_other_answers_are_refused(expected: Any, got: Any) -> None:
    with pytest.raises(StepFailed):
        difference(expected, got)


def test_kept_answers_are_compared_as_they_were(tmp_path: Path) -> None:
    answers = [LARGE, np.array(["a", "b"], object), [{"a": 1.0}], np.array(3), to_bfloat16([1, 2])]
    keep(answers, tmp_path / "kept")
    assert difference_to_kept(tmp_path / "kept", answers) == 0.0
    assert 0 < difference_to_kept(tmp_path / "kept", [last_changed(1e-4), *answers[1:]]) < 1e-3
    with pytest.raises(StepFailed):
        difference_to_kept(tmp_path / "kept", [*answers[:3], np.array(4), answers[4]])
    with pytest.raises(StepFailed):
        difference_to_kept(tmp_path / "kept", [*answers[:4], to_bfloat16([1, 3])])


# --- sessions made of a function -------------------------------------------------------------------------


class Session:
    """Answers with what a function returns."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def run(self, _: None, feed: Mapping[str, np.ndarray]) -> list[Any]:
        return [self._answer(**feed)]


ROWS = TensorSpec("x", "FP32", (-1, 4), ("n", ""))


def fails_on(condition: bool) -> None:
    if condition:
        raise RuntimeError("the model does not take that")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x: x * 2, True),
        (lambda x: x - x.mean(axis=0), False),
        (lambda x: x.sum(), False),
        (lambda x: x.sum(axis=0), False),
        (lambda x: [{"a": float(row.sum())} for row in x], True),
        (lambda x: [{"a": float(x.sum())} for _ in x], False),
        (lambda x: fails_on(len(x) == 3) or x, None),
        (lambda x: fails_on(len(x) > 1) or x, None),
    ],
)
def test_rows_are_independent_where_each_is_answered_as_if_alone(answer: Any, expected: bool | None) -> None:
    session = Session(answer)
    assert rows_independent(session, find_asking(session, [ROWS], {})) is expected


def test_what_has_no_rows_cannot_be_tried() -> None:
    asking = Asking((), FreeDims.of([]), {}, is_random=True)
    assert rows_independent(Session(lambda: np.zeros(3)), asking) is None


# --- questions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_random", [True, False])
def test_made_up_bf16_are_numbers(is_random: bool) -> None:
    specs = (TensorSpec("x", "BF16", (-1, 100), ("n", "")),)
    asking = Asking(specs, FreeDims.of(specs), {"n": 3}, is_random=is_random)
    value = asking.question(2)["x"]
    assert (value.dtype, value.shape) == (BF16, (2, 100))
    numbers = from_bfloat16(value)
    assert np.abs(numbers).max() < 10
    assert len(np.unique(numbers)) > 50 if is_random else (numbers == 1).all()


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    fails_on(len(a) != len(b))
    return a


def test_first_dimensions_of_other_names_are_tied_only_where_they_have_to_be() -> None:
    specs = [TensorSpec("a", "FP32", (-1, 4), ("m", "")), TensorSpec("b", "FP32", (-1, 4), ("n", ""))]
    free = find_asking(Session(lambda a, b: a), specs, {})
    assert set(free.dims.places) == {"m", "n"}
    tied = find_asking(Session(same), specs, {})
    assert tied.dims.places == {"m": (("a", 0), ("b", 0))}
    assert tied.batches == (1, 8)


def test_given_sizes_are_kept_and_rows_are_multiples_of_theirs() -> None:
    specs = [TensorSpec("x", "FP32", (-1, -1), ("n", "t"))]
    asking = find_asking(
        Session(lambda x: fails_on(x.shape[0] % 4 != 0 or x.shape[1] != 100)), specs, {"n": 4, "x:1": 100}
    )
    assert asking.batches == (4, 32)
    assert asking.sizes == {"n": 4, "t": 100}
    with pytest.raises(StepFailed, match="the model does not take that"):
        find_asking(Session(lambda x: fails_on(x.shape[1] != 101)), specs, {})


@pytest.mark.parametrize(("most", "batches"), [(100, (1, 8)), (7, (1, 2)), (1, (1,))])
def test_the_larger_batch_is_smaller_where_that_is_too_much(most: int, batches: tuple[int, ...]) -> None:
    assert find_asking(Session(lambda x: fails_on(len(x) > most)), [ROWS], {}).batches == batches


def test_the_same_sizes_give_the_same_values() -> None:
    specs = [ROWS, TensorSpec("ids", "INT64", (-1, 8), ("n", "")), TensorSpec("names", "BYTES", (-1,), ("n",))]
    asking = find_asking(Session(lambda x, ids, names: x), specs, {})
    for name, values in asking.question(8).items():
        assert np.array_equal(values, asking.question(8)[name])
    assert asking.question(8)["x"].std() > 0.5
    assert set(asking.question(8)["ids"].reshape(-1)) == {0, 1}
