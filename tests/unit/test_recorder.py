"""The last hour, and the last seconds: what a sample has, how rates are made, how little all of it holds."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from modelhost.memory import Level
from modelhost.memory.ledger import Ledger
from modelhost.monitor.recorder import EVERY_S, SAMPLES, Recorder
from modelhost.pool.accounts import Accounts
from modelhost.pool.key import ModelKey
from modelhost.pool.statistics import Statistics, Timing

MB = 1 << 20
A, B = ModelKey("a", "1"), ModelKey("b", "1")


class Scene:
    """A recorder on a host that does what a test says, and a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ledger = Ledger()
        self.memory = SimpleNamespace(ledger=self.ledger, usage_bytes=60 * MB, level=Level.NORMAL)
        self.statistics, self.accounts = Statistics(), Accounts()
        pool: Any = SimpleNamespace(statistics=self.statistics, accounts=self.accounts)
        memory: Any = self.memory
        self.recorder = Recorder(memory, pool, clock=lambda: self.now, wall_clock=lambda: 1e9 + self.now)

    def answer(self, key: ModelKey, took_ms: float, times: int = 1) -> None:
        for _ in range(times):
            self.statistics.note_success(self.statistics.of(key), Timing(0), round(took_ms * 1e6))

    def fail(self, key: ModelKey | None) -> None:
        self.statistics.note_failure(key, 1000)

    def go(self, seconds: float) -> None:
        """Moves the clock; memory is looked at four times a second."""
        for _ in range(round(seconds * 4)):
            self.now += 0.25
            self.recorder.look()

    def rates_of(self, key: ModelKey) -> tuple[float, float | None]:
        found = self.recorder.rates_of(self.statistics.of(key))
        return found.requests_per_s, found.p99_ms


@pytest.fixture
def scene() -> Scene:
    return Scene()


# --- the last seconds ------------------------------------------------------------------------------------


def test_rates_are_of_the_last_10_to_20_seconds(scene: Scene) -> None:
    scene.go(10)
    scene.answer(A, 5, times=30)
    scene.go(5)  # 15 s since the start, which the first two generations are
    assert scene.recorder.rates().requests_per_s == 2
    assert scene.rates_of(A)[0] == 2
    scene.go(5)  # another generation begins: these are in the one before it
    assert scene.recorder.rates().requests_per_s == 3
    scene.go(9)
    assert scene.rates_of(A)[0] == pytest.approx(30 / 19, abs=0.001)
    scene.go(1)
    assert scene.recorder.rates().requests_per_s == 0
    assert scene.rates_of(A) == (0, None)


def test_of_a_host_that_has_just_begun_rates_are_of_a_second_at_least(scene: Scene) -> None:
    scene.answer(A, 5)
    assert scene.recorder.rates().requests_per_s == 1
    scene.go(4)
    assert scene.recorder.rates().requests_per_s == 0.25


def test_failures_count_as_requests_and_their_times_do_not(scene: Scene) -> None:
    scene.answer(A, 5, times=6)
    scene.fail(A)
    scene.fail(None)  # for a model that there is not
    scene.go(4)
    rates = scene.recorder.rates()
    assert (rates.requests_per_s, rates.failures_per_s) == (2, 0.5)
    assert scene.rates_of(A)[0] == 1.75
    assert rates.p50_ms == pytest.approx(5, rel=0.13)
    scene.fail(B)
    assert scene.rates_of(B) == (0.25, None)


def test_quantiles_are_of_each_model_and_of_all(scene: Scene) -> None:
    scene.answer(A, 1, times=98)
    scene.go(10)
    scene.answer(A, 100, times=2)  # in the next generation: both count
    scene.answer(B, 1000, times=300)
    a, everything = scene.recorder.rates_of(scene.statistics.of(A)), scene.recorder.rates()
    assert (a.p50_ms, a.p99_ms) == (pytest.approx(1, rel=0.13), pytest.approx(100, rel=0.13))
    assert (everything.p50_ms, everything.p99_ms) == (pytest.approx(1000, rel=0.13), pytest.approx(1000, rel=0.13))


def test_a_model_that_nobody_asks_for_any_more_holds_no_counts(scene: Scene) -> None:
    scene.answer(A, 5)
    assert scene.statistics.of(A).recent is not None
    scene.go(20)
    assert (scene.statistics.of(A).recent, scene.statistics.of(A).former) == (None, None)
    assert scene.statistics.of(A).success.count == 1


# --- the last hour ---------------------------------------------------------------------------------------


def test_a_sample_has_what_is_and_what_has_happened_in_its_seconds(scene: Scene) -> None:
    scene.go(4.75)
    assert scene.recorder.history()["at"] == []
    scene.answer(A, 5, times=3)
    scene.fail(A)
    scene.accounts.loaded(A, 0.5)
    scene.accounts.evicted([(B, 7.0)])
    scene.accounts.counters.refuse("overloaded")
    scene.ledger.reserve("a", 0).settle(20 * MB)
    scene.memory.usage_bytes, scene.memory.level = 175 * MB, Level.WARNING
    scene.recorder.note_cached(7 * MB)
    scene.go(0.25)
    scene.memory.level = Level.NORMAL
    scene.go(EVERY_S)
    found = scene.recorder.history()
    p99_ms = found.pop("p99_ms")
    assert p99_ms == [pytest.approx(5, rel=0.13), None]
    assert found == {
        "every_s": 5,
        "at": [1e9 + 105, 1e9 + 110],
        "usage_bytes": [175 * MB] * 2,
        "models_bytes": [20 * MB] * 2,
        "cached_bytes": [7 * MB, None],  # nobody has looked again
        "level": ["warning", "normal"],
        "requests": [4, 0],
        "failures": [1, 0],
        "loads": [1, 0],
        "evictions": [1, 0],
        "refusals": [1, 0],
    }


def test_an_hour_is_kept_in_little(scene: Scene) -> None:
    for _ in range(SAMPLES + 3):
        scene.now += EVERY_S
        scene.answer(A, 5)
        scene.recorder.look()
    found = scene.recorder.history()
    assert {len(column) for name, column in found.items() if name != "every_s"} == {SAMPLES}
    assert found["at"][-1] - found["at"][0] == 3600 - EVERY_S
    assert set(found["requests"]) == {1}
    own = vars(scene.recorder)
    columns = [own["_at"], own["_levels"], own["_p99_ms"], *own["_sizes"].values(), *own["_counts"].values()]
    assert sum(sys.getsizeof(column) for column in columns) < 60_000
    assert len(json.dumps(found)) < 200_000


def test_samples_that_nobody_could_take_are_not_there(scene: Scene) -> None:
    scene.go(5)
    scene.answer(A, 5)
    scene.now += 60
    scene.recorder.look()
    scene.go(4.75)
    assert scene.recorder.history()["at"] == [1e9 + 105, 1e9 + 165]
    scene.go(0.25)
    assert scene.recorder.history()["requests"] == [0, 1, 0]
