"""The index a page at a time, and what is bounded where a repository has very many models."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from served import Served, error_of, fake_host

from modelhost.api import views
from modelhost.pool import ModelKey, Timing
from modelhost.repository.scan import Index
from modelhost.runtime.fake import FakeScript

MANY = 20_000
NAMES = tuple(f"model-{number:05d}" for number in range(MANY))
INDEX = Index(models=dict.fromkeys(NAMES, (("1", "1/model.onnx"),)), names=NAMES)

pytestmark = pytest.mark.anyio


def page(served: Served, **wanted: Any) -> list[dict[str, str]]:
    response = served.post("/v2/repository/index", wanted)
    assert response.status_code == 200, response.text
    found: list[dict[str, str]] = response.json()
    return found


def pages(served: Served, limit: int, **wanted: Any) -> list[list[dict[str, str]]]:
    """All pages, as a client asks for them that knows nothing of how many there are."""
    found: list[list[dict[str, str]]] = []
    after = ""
    while entries := page(served, limit=limit, after=after, **wanted):
        found.append(entries)
        after = entries[-1]["name"]
    return found


# --- pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_are_the_index_and_a_models_versions_are_on_one(ort: Served, limit: int) -> None:
    whole = page(ort)
    found = pages(ort, limit)
    assert [entry for entries in found for entry in entries] == whole
    names = [sorted({entry["name"] for entry in entries}) for entries in found]
    assert all(len(on_page) == limit for on_page in names[:-1])
    assert 1 <= len(names[-1]) <= limit
    assert [entry["version"] for entry in whole if entry["name"] == "add"] == ["1", "2", "10"]
    broken = {entry["name"]: entry for entry in whole if not entry["version"]}
    assert "empty" in broken, "what cannot be served is among the others, by its name"
    assert [entry["name"] for entry in whole] == sorted(entry["name"] for entry in whole)


@pytest.mark.parametrize(
    "wanted", [{}, {"limit": None}, {"after": None}, {"after": ""}, {"limit": 10**6}, {"limit": 50.0}]
)
def test_without_a_limit_it_is_all_of_it(ort: Served, wanted: dict[str, Any]) -> None:
    assert page(ort, **wanted) == ort.post("/v2/repository/index").json()


def test_a_page_of_loaded_models_counts_those(serve_fake) -> None:
    served = serve_fake({name: FakeScript() for name in "abcde"})
    for name in "bde":
        assert served.infer(name).status_code == 200
    assert [[entry["name"] for entry in found] for found in pages(served, 2, ready=True)] == [["b", "d"], ["e"]]
    assert page(served, ready=True, limit=1, after="b")[0]["name"] == "d"


def test_after_a_name_that_is_not_there_comes_the_next_one(serve_fake) -> None:
    served = serve_fake({name: FakeScript() for name in "ace"})
    assert [entry["name"] for entry in page(served, limit=1, after="b")] == ["c"]
    assert [entry["name"] for entry in page(served, after="c")] == ["e"]
    assert page(served, after="e") == page(served, limit=3, after="zzz") == []


def test_the_disk_is_looked_at_for_the_first_page(serve_fake, tmp_path) -> None:
    served = serve_fake({name: FakeScript() for name in "ab"})
    (tmp_path / "c" / "1").mkdir(parents=True)
    (tmp_path / "c" / "1" / "model.onnx").write_bytes(b"new")
    assert [entry["name"] for entry in page(served, limit=5, after="a")] == ["b"]
    assert [entry["name"] for entry in page(served, limit=5)] == ["a", "b", "c"]
    assert [entry["name"] for entry in page(served, limit=5, after="a")] == ["b", "c"]


# --- very many ---------------------------------------------------------------------------------------


@pytest.fixture
def many(serve_fake, monkeypatch) -> Served:
    """A host of 20,000 models, each asked for once since its start; one of them is loaded."""
    served = serve_fake({NAMES[7]: FakeScript()})
    pool = served.host.pool
    monkeypatch.setattr(pool.catalog._repository, "look", lambda: INDEX)
    page(served, limit=1)
    assert served.infer(NAMES[7]).status_code == 200

    def ask() -> None:
        for name in NAMES:
            pool.statistics.note_success(pool.statistics.of(ModelKey(name, "1")), Timing(0), 1000)

    served.on_loop(ask)
    return served


def test_of_very_many_models_everything_that_views_read_is_bounded(many: Served) -> None:
    """The page in the browser and `modelhost top` read /monitor and pages of /monitor/models, and nothing else."""
    state = many.get("/monitor").json()
    assert len(state["models"]) == 200
    assert state["models_known"] == MANY
    assert state["models"][0]["name"] == NAMES[7], "what is loaded comes first"
    assert len(many.get("/monitor").content) < 200_000
    found = many.get("/monitor/models?search=MODEL-1&limit=200&offset=9999").json()
    assert (found["total"], [model["name"] for model in found["models"]]) == (10_000, ["model-19999"])
    assert error_of(many.get("/monitor/models?limit=201"), 400)["code"] == "invalid_request"
    assert len(many.get("/memory").content) < 20_000


def test_of_very_many_models_metrics_have_as_many_as_are_wanted(many: Served) -> None:
    text = many.get("/metrics").text
    assert len(set(re.findall(r'model="([^"]+)"', text))) == many.host.settings.metrics.max_models == 200
    assert f"modelhost_models_not_shown {MANY - 200}" in text
    assert f"modelhost_models_known {MANY}" in text
    assert text.count("\n") < 5000


async def test_the_index_of_very_many_models_leaves_turns_to_others(tmp_path: Path) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with fake_host(tmp_path, {}) as host:
        host.pool.catalog._repository.look = lambda: INDEX
        await host.pool.catalog.scan()
        beside = asyncio.create_task(others())
        parts = [part async for part in views.repository_index(host, views.Wanted(after=NAMES[MANY - 2000]))]
        beside.cancel()
    assert sum(map(len, parts)) == 1999
    assert max(map(len, parts)) <= 200
    assert turns >= 9


def test_of_very_many_models_a_page_is_as_long_as_it_is_asked_to_be(many: Served) -> None:
    found = page(many, limit=500, after=NAMES[9999])
    assert [entry["name"] for entry in found] == [*NAMES[10_000:10_500]]
    assert [entry["name"] for entry in page(many, ready=True, limit=10)] == [NAMES[7]]
    assert len(page(many)) == MANY
