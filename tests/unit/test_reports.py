"""What benchmarks leave: records, and the page that is drawn from them."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import records
from benchmarks.__main__ import cli
from benchmarks.plots import chart, page, scales, svg, theme
from benchmarks.recording import Recording, Series
from benchmarks.report import Report

_MB = 1 << 20
_PLOT = {
    "title": "held <b>& needed</b>",
    "x": {"label": "cycle", "unit": "count"},
    "y": {"label": "memory", "unit": "bytes"},
    "series": [{"name": "held", "points": [[0, 60 * _MB], [10, 70 * _MB]]}],
    "levels": [{"at": 256 * _MB, "name": "limit", "style": "limit"}],
}


class _Host:
    """What a recording reads of a host."""

    def __init__(self, log: Path) -> None:
        self.url, self.log = "http://127.0.0.1:9", log

    def usage_bytes(self) -> int:
        return 80 * _MB


def _recorded(tmp_path: Path, report: Report) -> None:
    """Adds a recording as one is left of a host that has ended."""
    entries = [
        ("05.000", "preparing a:1, which nobody has opened yet; up to 102.0 MB"),
        ("06.500", "prepared a:1 in 1.5 s"),
        ("06.750", "loaded a:1 in 250 ms, 20.7 MB"),
        ("07.000", "a:1, b:1 leave for c:1"),
        ("08.000", "refused: c:1 needs 30.0 MB"),
    ]
    lines = [json.dumps({"time": f"2026-11-28T10:00:{at}Z", "message": text}) for at, text in entries]
    log = tmp_path / "host.log"
    log.write_text("\n".join(["no JSON", *lines]))
    recording = Recording(report, _Host(log), "a run")  # type: ignore[arg-type]
    recording.began = 1795860000.0  # 2026-11-28 10:00:00 UTC
    recording._memory = {
        **{f"{name}_bytes": at * _MB for name, at in (("baseline", 57), ("warning", 172), ("critical", 192))},
        "limit_bytes": 256 * _MB,
    }
    recording._levels = {1795860003.0: "warning", 1795859990.0: "critical"}
    recording._thread.start()
    recording._usage.add(1.0, 60 * _MB)
    recording._usage.add(2.0, 180 * _MB)
    recording.mark("held at warning")
    for number in range(1000):
        recording.request("asked", 1.0 + number / 100, "503" if number % 100 == 0 else "ok")
    recording.__exit__(None, None, None)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    file = tmp_path / "record.jsonl"
    with file.open("w") as out:
        report = Report("example", {"limit_bytes": 256 * _MB}, out)
        _recorded(tmp_path, report)
        report.add("plot", **_PLOT)
        report.add("row", usage_bytes=3 * _MB, took_ms=1.25)
        report.table("row", {"usage_bytes": "usage", "took_ms": "took"})
        report.require(False, "it was <wrong>")
        report.close()
    return file


def test_a_recording_has_what_the_host_said_and_what_became_of_requests(record: Path) -> None:
    (row,) = records.read([record])[0].of_kind("recorded")
    assert row["preparations"] == [[5.0, 6.5, "a:1"]]
    assert row["loads"] == [[6.5, 6.75, "a:1"]]
    assert row["leaves"] == [[7.0, 2]]
    assert row["refusals"] == [8.0]
    assert row["levels"] == [[3.0, "warning"]]
    asked = row["requests"]["asked"]
    assert (asked["count"], asked["ok"], len(asked["others"]["503"])) == (1000, 990, 10)
    assert dict(asked["percentiles"])[1] == 10.99
    assert dict(asked["percentiles"])[0.5] == pytest.approx(6.0, abs=0.05)


def test_a_long_series_keeps_its_least_and_its_most() -> None:
    series = Series()
    for number in range(100_000):
        series.add(number * 0.02, -5 if number == 7 else 99 if number == 77_777 else number % 10)
    assert len(series.at_s) <= 2000
    assert min(series.low) == -5
    assert max(series.high) == 99
    assert series.at_s[-1] > 1900


def test_runs_in_one_file_are_told_apart_even_where_one_has_ended_early(tmp_path: Path) -> None:
    out = io.StringIO()
    for size, is_closed in ((1, True), (1, False), (2, True)):
        report = Report("example", {"size": size}, out)
        report.add("row", size=size)
        if is_closed:
            report.close()
    (tmp_path / "three.jsonl").write_text(out.getvalue())
    found = records.read([tmp_path / "three.jsonl"])
    assert found[1].at == found[1].rows[0]["at"]
    assert found[2].at == pytest.approx(found[2].rows[-1]["at"] - found[2].rows[-1]["took_s"])
    assert [(record.parameters["size"], record.verdict) for record in found] == [
        (1, "holds"),
        (1, "ended early"),
        (2, "holds"),
    ]


@pytest.mark.parametrize("line", ["no JSON", "[]", '{"benchmark": "x"}'])
def test_what_is_no_record_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "file").write_text(line)
    with pytest.raises(ValueError, match=r"file, line 1: expected a row"):
        records.read([tmp_path / "file"])
    assert CliRunner().invoke(cli, ["report", str(tmp_path / "file")]).exit_code == 1


class _Outside(HTMLParser):
    """Collects whatever a page would load or lead to elsewhere, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object"):
            self.found.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_shows_all_of_a_record_and_loads_nothing(record: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    shown = CliRunner().invoke(cli, ["report", str(record), "--html", str(html)], catch_exceptions=False).output
    assert "example: 1 violated" in shown
    assert re.search(r"usage +took\n3\.0 MB +1\.2 ms", shown)
    text = html.read_text()
    looked = _Outside()
    looked.feed(text)
    assert looked.found == []
    assert looked.open == []
    assert not re.search(r"url\(|@import|https?:", text)
    for words in ("1 violated", "it was &lt;wrong&gt;", "critical 192 MB", "held at warning", "&lt;b&gt;&amp; needed"):
        assert words in text
    assert "asked: 10 503" in text
    assert not re.search(r'="(nan|inf|-inf)|[ ,](nan|inf)', text)
    assert text.count("<svg") == 3


def test_an_empty_recording_can_be_drawn() -> None:
    empty = {
        "run": "nothing",
        "took_s": 0.0,
        "bounds": {"limit": 1 << 28, "baseline": None},
        "requests": {},
        "usage": {"at_s": [], "low_bytes": [], "high_bytes": []},
        **{key: [] for key in ("levels", "marks", "loads", "preparations", "leaves", "refusals")},
    }
    environment = {"machine": {"cpu": "", "cores": 1, "memory_bytes": 1, "kernel": "", "libc": ""}}
    environment |= {"versions": {"python": "", "onnxruntime": ""}, "commit": ""}
    record = records.Record("example", {}, environment, 0.0, [{"kind": "recorded", **empty}])
    assert "ended early" in page.render([record])


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_words_and_marks_stand_out_from_the_ground(colours: dict[str, str]) -> None:
    assert theme.LIGHT.keys() == theme.DARK.keys()
    for name in ("ink", "faint", "warning", "critical", "good", *theme.SERIES):
        assert theme.contrast(colours[name], colours["ground"]) >= 4.5, name


def test_contrast_is_that_of_wcag() -> None:
    assert theme.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert theme.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(
    ("high", "unit", "expected"),
    [
        (256 * _MB, "bytes", [0, 64 * _MB, 128 * _MB, 192 * _MB, 256 * _MB]),
        (100, "count", [0, 20, 40, 60, 80, 100]),
        (600, "s", [0, 120, 240, 360, 480, 600]),
    ],
)
def test_ticks_are_round(high: float, unit: Any, expected: list[float]) -> None:
    assert scales.Scale(0, high, 0, 500).ticks(5, unit) == expected


def test_ticks_of_a_logarithmic_scale_are_within_it() -> None:
    scale = scales.logarithmic([0.0, 2.0, 900.0], 100, 0)
    assert scale.at(2.0) > scale.at(900.0) >= 0
    assert scale.ticks(4, "ms") == [1, 10, 100, 1000]


def test_labels_keep_apart_in_their_order() -> None:
    assert svg.apart([10, 11, 200], 15, 0, 210) == [10, 25, 200]
    assert svg.apart([205, 209], 15, 0, 210) == [195, 210]


def test_a_long_name_beside_its_line_is_not_cut_off() -> None:
    plot = {
        "title": "a plot",
        "x": {"label": "start", "unit": "count"},
        "y": {"label": "time", "unit": "ms"},
        "series": [{"name": "not prepared, first right answer of all", "points": [[0, 1.0], [1, 12_107.0]]}],
    }
    drawn = chart.draw(plot)
    ((x, words),) = re.findall(r'<text x="([\d.]+)"[^>]*>(not prepared[^<]*)</text>', drawn)
    assert words.endswith("12.107 s")
    assert float(x) + len(words) * svg.CHARACTER <= chart.WIDTH
