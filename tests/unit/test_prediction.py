"""Who is expected next, by when models were used: tables of uses on a clock that is passed in."""

from __future__ import annotations

import random

import pytest

from modelhost.pool.key import ModelKey
from modelhost.pool.prediction import Predictor, Trust


def key(name: str) -> ModelKey:
    return ModelKey(name, "1")


def used(uses: dict[str, list[float]]) -> Predictor:
    predictor = Predictor()
    for at_s, name in sorted((at_s, name) for name, moments in uses.items() for at_s in moments):
        predictor.note(key(name), at_s)
    return predictor


def expected(predictor: Predictor, at_s: float, *, but: str = "") -> str | None:
    found = predictor.next(at_s, lambda key: key.name not in but.split())
    return None if found is None else found.key.name


EVERY_MINUTE = [60.0 * minute for minute in range(6)]  # the last one at 300 s


@pytest.mark.parametrize(
    ("at_s", "name"),
    [(310, None), (340, None), (353, None), (355, "a"), (360, "a"), (365, "a"), (367, None), (420, None)],
)
def test_an_even_distance_is_expected_when_it_is_due_and_not_again_when_it_was_missed(
    at_s: float, name: str | None
) -> None:
    assert expected(used({"a": EVERY_MINUTE}), at_s) == name


@pytest.mark.parametrize(
    ("moments", "is_even"),
    [
        ([0, 60, 120], False),  # too few
        ([0, 60, 120, 180], True),
        ([0, 63, 118, 181], True),  # nearly
        ([0, 60, 150, 180], False),
        ([0, 200, 260, 320, 380], True),  # the last three count
        ([0, 60, 61, 120, 121, 180], True),  # uses next to each other are one
    ],
)
def test_what_is_even(moments: list[float], is_even: bool) -> None:
    assert (expected(used({"a": moments}), moments[-1] + 60) == "a") == is_even


def test_a_model_that_is_used_often_is_expected_soon_after_it_left_and_less_as_time_goes_by() -> None:
    rng = random.Random(1)
    moments = sorted(rng.uniform(0, 300) for _ in range(40))
    predictor = used({"often": moments, "once": [10.0]})
    assert expected(predictor, 310) == "often"
    assert expected(predictor, 310, but="often") is None
    assert expected(predictor, 310 + 1800) is None


def test_who_is_due_comes_before_who_is_used_often() -> None:
    rng = random.Random(2)
    often = sorted(rng.uniform(0, 340) for _ in range(20))
    assert expected(used({"often": often, "due": EVERY_MINUTE}), 358) == "due"


def test_what_was_used_once_or_never_is_not_expected() -> None:
    assert expected(Predictor(), 10) is None
    assert expected(used({name: [float(at)] for at, name in enumerate("abcdefgh")}), 20) is None


def test_as_many_models_are_remembered_as_there_is_room_for() -> None:
    predictor = used({f"m{at}": [float(at)] for at in range(2000)})
    assert len(predictor) == 512


def test_trust_is_lost_for_longer_each_time_and_won_back_by_a_hit() -> None:
    trust = Trust()
    assert trust.is_given(0)
    waits = []
    at_s = 0.0
    for _ in range(10):
        trust.wasted(at_s)
        waited = next(wait for wait in range(5000) if trust.is_given(at_s + wait))
        waits.append(waited)
        at_s += waited
    assert waits[:4] == [30, 60, 120, 240]
    assert waits[-1] == 3600
    trust.hit()
    assert trust.is_given(at_s)
    trust.pause(at_s)
    assert (trust.is_given(at_s + 9), trust.is_given(at_s + 10)) == (False, True)
