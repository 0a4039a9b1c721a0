"""The statistics extension, as clients read it that index without looking, and the logging extension."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from served import MB, Served, error_of

from modelhost.pool import ModelKey
from modelhost.pool.statistics import BatchTook, ModelStatistics, Took
from modelhost.runtime.fake import FakeScript

SECTIONS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def fill(totals: ModelStatistics) -> None:
    totals.last_inference_ms = 1_700_000_000_123
    totals.inference_count, totals.execution_count = 12, 5
    totals.success, totals.fail = Took(7, 7_000), Took(2, 50)
    totals.queue_ns, totals.input_ns, totals.infer_ns, totals.output_ns = 100, 200, 300, 400
    totals.batches = {4: BatchTook(1, 10, 11, 12), 2: BatchTook(4, 20, 21, 22)}


def filled(served: Served, name: str = "a", version: str = "1") -> None:
    served.on_loop(lambda: fill(served.host.pool.statistics.of(ModelKey(name, version))))


def test_the_totals_of_a_model_are_written_in_the_extensions_form(serve_fake) -> None:
    served = serve_fake({"a": FakeScript(resident_bytes=30 * MB)})
    served.post("/v2/repository/models/a/load")
    filled(served)
    expected = {
        "name": "a",
        "version": "1",
        "last_inference": 1_700_000_000_123,
        "inference_count": 12,
        "execution_count": 5,
        "inference_stats": {
            "success": {"count": 7, "ns": 7_000},
            "fail": {"count": 2, "ns": 50},
            "queue": {"count": 7, "ns": 100},
            "compute_input": {"count": 7, "ns": 200},
            "compute_infer": {"count": 7, "ns": 300},
            "compute_output": {"count": 7, "ns": 400},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": {"count": count, "ns": ns},
                "compute_infer": {"count": count, "ns": ns + 1},
                "compute_output": {"count": count, "ns": ns + 2},
            }
            for size, count, ns in ((2, 4, 20), (4, 1, 10))
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": 30 * MB}],
    }
    for path in ("/v2/models/a/stats", "/v2/models/a/versions/1/stats", "/v2/models/stats"):
        assert served.get(path).json() == {"model_stats": [expected]}, path


def test_a_model_that_nobody_asked_for_has_every_key_all_the_same(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    (totals,) = served.get("/v2/models/a/stats").json()["model_stats"]
    assert (totals["last_inference"], totals["inference_count"], totals["execution_count"]) == (0, 0, 0)
    assert totals["inference_stats"] == {section: {"count": 0, "ns": 0} for section in SECTIONS}
    assert totals["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 0}]
    assert served.get("/v2/models/stats").json() == {"model_stats": []}


def test_totals_stay_when_the_model_leaves_and_its_memory_does_not(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    served.post("/v2/repository/models/a/load")
    filled(served)
    served.post("/v2/repository/models/a/unload")
    (totals,) = served.get("/v2/models/stats").json()["model_stats"]
    assert (totals["execution_count"], totals["memory_usage"][0]["byte_size"]) == (5, 0)


def test_without_a_version_there_is_an_entry_for_each(ort: Served) -> None:
    entries = ort.get("/v2/models/add/stats").json()["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in entries] == [("add", "1"), ("add", "2"), ("add", "10")]
    (entry,) = ort.get("/v2/models/add/versions/2/stats").json()["model_stats"]
    assert entry["version"] == "2"


@pytest.mark.parametrize("path", ["/v2/models/nothing/stats", "/v2/models/add/versions/7/stats"])
def test_what_is_not_there_has_no_statistics(ort: Served, path: str) -> None:
    assert error_of(ort.get(path), 404)["code"] == "model_not_found"


# --- logging -----------------------------------------------------------------------------------------


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The logger, left as it was."""
    log = logging.getLogger("modelhost")
    level, filters = log.level, log.filters[:]
    log.setLevel(logging.INFO)
    yield log
    log.setLevel(level)
    log.filters[:] = filters


def heard(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    for say in (log.debug, log.info, log.warning, log.error, log.critical):
        say(say.__name__)
    return caplog.messages


def test_each_level_is_switched_by_itself(ort: Served, log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    before = ort.get("/v2/logging").json()
    assert before == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    assert heard(log, caplog) == ["info", "warning", "error", "critical"]
    answer = ort.post("/v2/logging", {"log_warning": False, "log_verbose_level": 1})
    assert answer.json() == ort.get("/v2/logging").json() == before | {"log_warning": False, "log_verbose_level": 1}
    assert heard(log, caplog) == ["debug", "info", "error", "critical"]
    ort.post("/v2/logging", {"log_info": False, "log_error": False, "log_verbose_level": 0})
    assert heard(log, caplog) == []
    assert ort.post("/v2/logging", before).json() == before
    assert heard(log, caplog) == ["info", "warning", "error", "critical"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"log_warning": False, "log_info": "no"}, "'log_info': expected true or false, got \"no\""),
        (
            {"log_warning": False, "log_verbose_level": -1},
            "'log_verbose_level': expected a whole number from 0, got -1",
        ),
        ({"log_warning": False, "log_verbose_level": True}, "got true"),
        ({"log_warning": False, "log_file": "/etc/passwd"}, "'log_file': cannot be changed by a request"),
        ({"log_warning": False, "log_format": "ISO8601"}, "'log_format': cannot be changed by a request"),
        ({"log_warning": False, "log_everything": True}, "unknown setting 'log_everything'"),
        ([], "expected a JSON object"),
        (b"{", "not JSON"),
    ],
)
def test_a_setting_that_cannot_be_changes_nothing(ort: Served, log: logging.Logger, body: object, words: str) -> None:
    assert words in error_of(ort.post("/v2/logging", body), 400)["error"]
    assert ort.get("/v2/logging").json()["log_warning"] is True
