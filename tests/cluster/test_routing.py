"""Where a model lives: with who has it, else at home by its hash; elsewhere where that is busy or short of memory."""

from __future__ import annotations

from collections import Counter

from modelhost.cluster.routing import Standing, by_hash, ranks

NOTHING = Standing()
MODELS = [f"model-{number}" for number in range(300)]


def has(*models: str, is_tight: bool = False) -> Standing:
    return Standing(frozenset(models), is_tight=is_tight)


def first(model: str, standings: dict[str, Standing], queued: dict[str, int] | None = None, **more: object) -> str:
    return ranks(model, standings, queued or {}, **more)[0][0]  # type: ignore[arg-type]


def test_a_request_goes_to_who_has_its_model_and_of_several_to_either() -> None:
    standings = {"a": NOTHING, "b": has("m"), "c": has("m", "n", is_tight=True)}
    assert sorted(ranks("m", standings, {})[0]) == ["b", "c"]
    assert ranks("n", standings, {})[0] == ["c"]


def test_a_model_that_nobody_has_is_at_home_in_one_place_whoever_looks() -> None:
    standings = dict.fromkeys("abc", NOTHING)
    homes = Counter(first(model, standings) for model in MODELS)
    assert set(homes) == {"a", "b", "c"}
    assert min(homes.values()) > len(MODELS) // 5
    assert all(first(model, dict(reversed(standings.items()))) == first(model, standings) for model in MODELS)


def test_only_the_models_of_a_replica_that_goes_move_and_to_all_others() -> None:
    before = {model: by_hash(model, "abcd")[0] for model in MODELS}
    after = {model: by_hash(model, "abc")[0] for model in MODELS}
    moved = {model for model in MODELS if before[model] != after[model]}
    assert moved == {model for model in MODELS if before[model] == "d"}
    assert {after[model] for model in moved} == {"a", "b", "c"}


def test_a_model_that_many_want_is_loaded_a_second_time_and_not_before() -> None:
    standings = {"a": has("m"), "b": NOTHING, "c": has("x", is_tight=True)}
    assert ranks("m", standings, {"a": 15})[0] == ["a"]
    assert ranks("m", standings, {"a": 16})[:2] == [["b"], ["a"]]
    assert ranks("m", standings, {"a": 16, "b": 16})[:2] == [["c"], ["a"]]
    assert ranks("m", standings, {"a": 16, "b": 16, "c": 99})[0] == ["a"]


def test_a_home_that_is_short_of_memory_is_not_where_a_new_model_goes() -> None:
    for model in MODELS:
        home, second, *_ = by_hash(model, "abc")
        standings = {name: has(is_tight=name == home) for name in "abc"}
        assert first(model, standings) == second
        assert first(model, {name: has(is_tight=True) for name in "abc"}) == home


def test_who_has_refused_and_who_takes_no_work_comes_last_and_is_there_still() -> None:
    standings = {"a": has("m"), "b": NOTHING, "c": Standing(is_open=False)}
    found = ranks("m", standings, {}, avoided={"a"})
    assert found[0] == ["b"]
    assert sorted(name for group in found for name in group) == ["a", "b", "c"]
    assert found[-1] == ["a"]
    assert ranks("m", standings, {}, avoided={"a", "b"})[0] == ["c"]


def test_what_is_about_no_model_goes_to_anybody_who_takes_work() -> None:
    assert ranks("", {"a": NOTHING, "b": Standing(is_open=False), "c": NOTHING}, {}) == [["a", "c"], ["b"]]


def test_what_a_replica_has_not_told_yet_is_no_reason_to_leave_it_out() -> None:
    assert Standing.of({}) == NOTHING
    assert Standing.of({"models": ["m"], "is_tight": True, "is_open": False}) == Standing(frozenset("m"), True, False)
