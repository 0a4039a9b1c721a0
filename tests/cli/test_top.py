"""What `modelhost top` shows, without a terminal: the feed's JSON in, lines out; and the command around it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import windows
from fake_monitor import AT, MB, FakeSource, event, model, snapshot

from modelhost.cli.client import RequestFailed
from modelhost.cli.main import main
from modelhost.cli.memory_bar import Mark, Part, bar, marks_of, parts_of_feed, parts_of_memory
from modelhost.cli.memory_text import event_line, forecast_text, page_cache_line, policy_text
from modelhost.cli.segments import Role, Segment, ansi, columns, cut, fit, hung, plain, printable, wrapped
from modelhost.cli.top import command as top
from modelhost.cli.top import source as sources
from modelhost.cli.top.board import Board
from modelhost.cli.top.events import EventLog
from modelhost.cli.top.link import Link
from modelhost.cli.top.models import SORTS, figure, matching, ordered, sort_of, table
from modelhost.cli.top.view import once, overview

ROOT = Path(__file__).resolve().parents[2]


# --- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("wine", 4, "wine"),
        ("wine", 6, "wine  "),
        ("measurements", 8, "measu..."),
        ("wine", 2, ".."),
        ("модель", 8, "модель  "),
        ("模型模型", 6, "模... "),
        ("é", 2, "é "),
    ],
)
def test_text_takes_exactly_its_columns(text: str, width: int, expected: str) -> None:
    assert fit(text, width) == expected
    assert columns(fit(text, width)) == columns(fit(text, width, right=True)) == width
    assert columns(cut(text, width)) <= width


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("wine\x1b[2J\r\n\u202e") == "wine?[2J???"
    shown = table([model("a\x1b[31m")], width=80, now=AT, sort="name")
    assert "\x1b" not in plain(shown.rows[0].cells)


def test_what_is_longer_goes_on_below_its_text() -> None:
    pieces = (Segment("12:00:00 ", Role.DIM), Segment("kind", Role.WARNING), Segment(": one two three four five"))
    shown = hung(pieces, 24, indent=9)
    assert [plain(part) for part in shown] == ["12:00:00 kind: one two", "         three four five"]
    assert [piece.role for piece in shown[0]] == [Role.DIM, Role.WARNING, Role.PLAIN]
    assert hung(pieces, 80, indent=9) == [pieces]


def test_parts_of_a_line_stay_whole() -> None:
    parts = [(Segment("a" * 5),), (Segment("b" * 5),), (Segment("c" * 30),)]
    assert [plain(pieces) for pieces in wrapped(parts, 12)] == ["aaaaa  bbbbb", "ccccccccc..."]


# --- the bar -------------------------------------------------------------------------------------------------


def parts(*sizes: int) -> list[Part]:
    return [Part(name, size, name, Role.HOST) for name, size in zip("#=:", sizes, strict=False)]


def marks(*at: int) -> list[Mark]:
    return [Mark(letter, size, letter, Role.STRONG) for letter, size in zip("bwC]", at, strict=True)]


@pytest.mark.parametrize(
    ("sizes", "at", "expected"),
    [
        ((0,), (2, 6, 8, 10), "[..b...w.C.]"),
        ((4, 2), (2, 6, 8, 10), "[##b#==w.C.]"),
        ((4, 2, 3), (2, 6, 8, 10), "[##b#==w:C.]"),
        ((9, 3, 9), (2, 6, 8, 10), "[##b###w#C=]"),  # more than the limit is cut off
        ((-1, 2), (2, 6, 8, 10), "[==b...w.C.]"),
        ((1,), (8, 8, 8, 10), "[#.....bwC.]"),  # three in one place stand beside each other
        ((1,), (2, 9, 99, 10), "[#.b.....wC]"),
        ((0,), (0, 0, 0, 10), "[C.........]"),
    ],
)
def test_the_bar_has_parts_and_marks_where_they_belong(
    sizes: tuple[int, ...], at: tuple[int, ...], expected: str
) -> None:
    assert plain(bar(parts(*sizes), marks(*at), width=12)) == expected


def test_what_is_used_is_as_long_in_both_commands() -> None:
    feed = snapshot()
    for width in (20, 62, 80, 140):
        whole = plain(bar(parts_of_memory(feed["memory"]), marks_of(feed["memory"]), width=width))
        split = plain(bar(parts_of_feed(feed["bar"]), marks_of(feed["memory"]), width=width))
        assert len(whole) == len(split) == width
        assert whole.replace("#", ".") == split.translate(dict.fromkeys(map(ord, "#=>~"), "."))


# --- words ---------------------------------------------------------------------------------------------------


def test_a_forecast_is_told_where_something_grows() -> None:
    assert forecast_text(None) is None
    assert forecast_text(snapshot()["memory"]["forecast"]) is None
    growth = {"bytes_per_s": 1000.0, "seen_bytes": 3 * MB, "seen_s": 600.0}
    times = {"expected": 7200.0, "soonest": 3600.0, "latest": 10800.0}
    found = {"growth": growth, "place": "the heap", "to_warning_s": None, "to_critical_s": times}
    expected = "grows: 3.4 MB an hour that no model holds (3.0 MB in 10 min), the heap; critical in 2 h (60 min to 3 h)"
    assert forecast_text(found) == expected
    feed = snapshot(forecast=found, conditions=[{"name": "disk_full", "text": "no room " * 40, "since": AT}])
    lines = [plain(shown) for shown in overview("http://h", feed, 80)]
    assert "forecast: grows: 3.4 MB an hour that no model holds (3.0 MB in 10 min), the" in lines
    assert lines[1].startswith("! disk_full: no room")
    assert lines[2].endswith(" ...")
    assert max(map(len, lines)) <= 80


def test_adaptive_thresholds_say_why_they_are_what_they_are() -> None:
    assert policy_text(None) is None
    policy = {"changes": 2, "last": {"at": AT, "reason": "48.8 MB of file pages are read again each second"}}
    told = policy_text(policy)
    assert told is not None
    assert told.startswith("thresholds are adaptive, 2 changes; the last at ")
    lines = [plain(shown) for shown in overview("http://h", snapshot() | {"policy": policy}, 120)]
    assert told in lines
    assert policy_text({"changes": 0, "last": None}) == "thresholds are adaptive, 0 changes"


def test_what_the_kernel_does_not_tell_is_left_out() -> None:
    names = ("refaulted_bytes_per_s", "major_faults_per_s", "psi_full_avg10")
    nothing = snapshot()["memory"]["page_cache"] | dict.fromkeys(names) | {"weights_bytes": 0}
    assert plain(page_cache_line(nothing)) == "page cache: nothing is known"
    thrashing = snapshot()["memory"]["page_cache"] | {"is_thrashing": True, "psi_is_machines": True}
    assert plain(page_cache_line(thrashing)) == (
        "page cache, THRASHING: 24.0 MB of 40.0 MB of mapped weights, 1.5 MB/s read again, 3 major faults/s, "
        "stalled 0 % (the machine)"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kind": "level", "level": "critical", "from": "warning"}, "level: level critical, was warning, 96.0 MB"),
        (
            {"freed_bytes": 5 * MB, "expected_bytes": 6 * MB, "victims": ["a:1", "b:2"]},
            "recovery: level normal, 96.0 MB (request), freed 5.0 MB of 6.0 MB: a:1, b:2",
        ),
        ({"kind": "worker_crash", "reason": "signal 9"}, "worker_crash: level normal, 96.0 MB (request): signal 9"),
        ({"kind": "thrashing", "refaulted_bytes_per_s": MB}, "(request), 1.0 MB/s read again"),
        ({"kind": "thrashing", "refaulted_bytes_per_s": None}, "thrashing: level normal, 96.0 MB (request)"),
    ],
)
def test_an_event_is_one_line(more: dict[str, Any], words: str) -> None:
    assert words in plain(event_line(event(1) | more))


# --- models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort", "names"),
    [
        ("committed", ["b", "a", "c"]),
        ("cache", ["a", "b", "c"]),
        ("requests", ["b", "a", "c"]),
        ("p99", ["b", "a", "c"]),
        ("used", ["a", "b", "c"]),
        ("loads", ["a", "b", "c"]),
        ("name", ["a", "b", "c"]),
    ],
)
def test_models_are_in_order_and_those_without_a_figure_last(sort: str, names: list[str]) -> None:
    models = [
        model("c", "UNAVAILABLE", loads=0),
        model("b", committed_bytes=9 * MB, requests_per_s=99.0, p99_ms=90.0, last_used=AT - 60, loads=3),
        model("a", cached_bytes=13 * MB, loads=3),
    ]
    assert [found["name"] for found in ordered(models, sort)] == names
    has = [name for name in names if name != "c" or sort in ("committed", "loads", "name")]
    turned = [found["name"] for found in ordered(models, sort, is_reversed=True)]
    if sort != "loads":  # of which two are equal, and stay as they are
        assert turned[: len(has)] == has[::-1]


def test_every_order_has_its_column() -> None:
    heads = {head.text.strip() for head in table([], width=200, now=AT, sort="name").heads} | {"model"}
    assert {sort.head for sort in SORTS.values()} <= heads
    assert [sort_of(sort.head) for sort in SORTS.values()] == list(SORTS)
    assert sort_of("pin") is None


@pytest.mark.parametrize("width", [80, 100, 118, 119, 138, 139, 240])
def test_the_table_is_as_wide_as_there_is_room(width: int) -> None:
    shown = table([model("encoder-with-a-long-name", version="12")], width=width, now=AT, sort="used")
    for cells in (shown.heads, shown.rows[0].cells):
        assert sum(columns(cell.text) for cell in cells) + len(shown.gap) * (len(cells) - 1) == min(
            width, 105 if width < 119 else 159
        )
    assert ("evicted" in plain(shown.heads)) == (width >= 119)
    assert " USED" in plain(shown.heads)
    assert shown.rows[0].cells[-1].text.strip() == "30 s"


def test_models_are_found_by_a_part_of_their_name() -> None:
    models = [model("Digits"), model("wine")]
    assert [found["name"] for found in matching(models, "dig")] == ["Digits"]
    assert matching(models, "") == models


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0, "0"), (0.042, "0.04"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"), (12345.6, "12346")],
)
def test_figures_have_three_digits(value: float | None, text: str) -> None:
    assert figure(value) == text


# --- events --------------------------------------------------------------------------------------------------


def test_events_are_added_once_and_gaps_are_said() -> None:
    log, feed = EventLog(), snapshot()
    assert log.take(feed)
    assert not log.take(feed)
    assert len(log.lines) == 2
    feed["events"] = [event(number) for number in (2, 3, 7, 8)]
    assert log.take(feed)
    assert len(log.lines) == 5
    feed["events"] = [event(20)]
    log.take(feed)
    assert plain(log.lines[5]).strip() == "11 events between two looks are not shown"


def test_a_host_that_was_started_again_begins_anew() -> None:
    log, feed = EventLog(), snapshot()
    log.take(feed)
    feed["host"]["uptime_s"], feed["events"] = 1.0, [event(1, "level")]
    assert log.take(feed)
    assert plain(log.lines[2]).endswith("the host was started again")
    assert len(log.lines) == 4
    feed["host"]["uptime_s"], feed["events"] = 2.0, []
    assert not log.take(feed)


# --- the link ------------------------------------------------------------------------------------------------


def test_a_host_that_is_away_is_asked_more_and_more_seldom() -> None:
    link = Link.answered(100.0, 1.0)
    assert (link.is_up, link.next_s) == (True, 101.0)
    waits = []
    for now_s in range(101, 110):
        link = link.failed(now_s, 1.0, "refused")
        waits.append(link.next_s - now_s)
    assert waits == [2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert link.text(130.0) == "NO FIGURES for 30 s, these are the last; asked again in 9 s"
    assert "asking again" in link.text(139.0)
    assert Link.answered(0, 60.0).failed(0, 60.0, "").next_s == 60


def test_what_is_known_stays_in_grey_with_its_age() -> None:
    board = Board("http://h", snapshot(), 0.0, interval_s=1)
    board.failed("no host answers", 5.0)
    board.failed("no host answers", 7.0)
    first, *rest = board.overview(80, 12.0)
    assert first[0].role is Role.CRITICAL
    assert plain(first).startswith("NO FIGURES for 12 s")
    assert {piece.role for shown in rest for piece in shown} == {Role.DIM}
    shown = board.table(80, 12.0)
    assert {cell.role for row in shown.rows for cell in row.cells} == {Role.DIM}
    assert shown.rows[0].cells[-1].text.strip() == "15 s"  # last used 3 s before the figures
    board.answered(snapshot(), 20.0)
    assert plain(board.overview(80, 20.0)[0]).startswith("modelhost 0.1.0")
    said = [plain(shown)[9:] for shown in board.events.lines]
    assert said[2:] == ["no host answers", "the host answers again"]  # once, however often it failed


def test_ages_go_by_the_hosts_clock() -> None:
    board = Board("http://h", snapshot(), 100.0, interval_s=1)
    assert board.table(80, 157.0).rows[0].cells[-1].text.strip() == "60 s"


# --- the host ------------------------------------------------------------------------------------------------


class Answers:
    """Stands for the client's `request`: answers what it was given, and notes what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, url: str, path: str, body: Any = None, **how: Any) -> Any:
        self.asked.append((path, body))
        assert how["key"] == "secret"
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    found = Answers({})
    monkeypatch.setattr(sources, "request", found)
    return found


HOST = sources.HostSource("http://h/", "secret")


def test_each_key_asks_for_its_own_route(answers: Answers) -> None:
    HOST.load("a/b c")
    HOST.unload("wine")
    HOST.pin("wine", pinned=True)
    assert HOST.clean_up() is None
    answers.answer = {"total": 0, "models": []}
    assert HOST.search("a&b") == answers.answer
    answers.answer = snapshot()
    assert HOST.look() is answers.answer
    assert answers.asked == [
        ("/v2/repository/models/a%2Fb%20c/load", {}),
        ("/v2/repository/models/wine/unload", {}),
        ("/monitor/models/wine/pin", {"pinned": True}),
        ("/memory/cleanup", {}),
        ("/monitor/models?search=a%26b&offset=0&limit=50", None),
        ("/monitor", None),
    ]


def test_an_older_host_is_told_by_what_it_lacks(answers: Answers) -> None:
    answers.answer = RequestFailed("404: Not Found", status=404)
    with pytest.raises(RequestFailed, match="what answers at http://h has no /monitor: a host older than this command"):
        HOST.look()
    answers.answer = RequestFailed("403: the key 'app' is for infer", status=403)
    with pytest.raises(RequestFailed, match="the key 'app' is for infer"):
        HOST.look()


@pytest.mark.parametrize("part", ["host", "memory", "bar", "totals", "models", "events"])
def test_a_host_of_another_version_ends_nothing(answers: Answers, part: str) -> None:
    answers.answer = found = snapshot()
    each = found[part][-1] if isinstance(found[part], list) else found[part]
    each.popitem()
    each |= {"what": "is new"}
    wanted = {"host": "uptime_s", "memory": "level", "events": "id", "models": "loads"}.get(part)
    each.pop(wanted, None)
    with pytest.raises(RequestFailed, match="a host of another version than this command"):
        HOST.look()
    for other in ([], None, {}, "modelhost"):
        answers.answer = other
        for ask in (HOST.look, lambda: HOST.search("")):
            with pytest.raises(RequestFailed, match="otherwise than expected"):
                ask()
    answers.answer = {"recovered": []}
    with pytest.raises(RequestFailed, match="otherwise than expected"):
        HOST.clean_up()


# --- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    fake = FakeSource()
    monkeypatch.setattr(top, "HostSource", lambda url, key: fake)
    for name in ("COLUMNS", "NO_COLOR", "MODELHOST_API_KEY", "MODELHOST_URL"):
        monkeypatch.delenv(name, raising=False)
    return fake


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["top", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize(("width", "heads"), [("80", False), ("140", True)])
def test_one_view_is_plain_text(
    source: FakeSource,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: str,
    heads: bool,
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    status, out, _ = run(capsys, "--once", "--sort", "name")
    assert status == 0
    assert out.isascii()
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= int(width)
    assert "level normal: 96.0 MB of 256.0 MB (cgroup v1) in use" in out
    assert "b baseline 54.0 MB" in out
    assert ("evicted" in out) == heads
    names = [row.split()[0] for row in out.splitlines() if ":1 " in row and not row[0].isdigit()]
    assert names == ["digits:1", "iris:1", "wine:1"]
    assert "recovery: level normal, 96.0 MB (request): iris:1" in out


def test_one_view_for_scripts_is_the_feed_itself(source: FakeSource, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "--once", "--json")
    assert (status, json.loads(out)) == (0, source.now)


def test_a_terminal_gets_colours_unless_it_wants_none(
    source: FakeSource, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = once(source.url, source.now, width=80, sort="name")
    assert any("\x1b[" in ansi(pieces) for pieces in shown)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[32mnormal" in run(capsys, "--once")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run(capsys, "--once")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json"], "--json goes with --once"),
        (["--interval", "1ms"], "--interval: expected 100ms to 1h"),
        ([], "the live view needs a terminal; --once prints one view"),
        (["--sort", "size", "--once"], "Invalid value for '--sort'"),
    ],
)
def test_a_wrong_command_line_says_what_would_be_right(
    source: FakeSource, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert words in err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RequestFailed("403: the key 'app' is for infer", status=403), "Error: 403: the key 'app' is for infer"),
        (RequestFailed("no host answers at http://h"), "Error: no host answers at http://h"),
    ],
)
def test_a_host_that_cannot_be_looked_at_is_status_1(
    source: FakeSource, capsys: pytest.CaptureFixture[str], error: RequestFailed, words: str
) -> None:
    source.error = error
    status, out, err = run(capsys, "--once")
    assert (status, out) == (1, "")
    assert words in err


def test_without_textual_the_live_view_says_what_to_install(
    source: FakeSource, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    for module in [name for name in sys.modules if name.startswith("modelhost.cli.top.") and "command" not in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    status, _, err = run(capsys)
    assert status == 1
    assert "pip install 'modelhost[top]'; --once works without" in err
    assert source.looks == 0


_AS_ON_WINDOWS = f"""
import importlib.abc, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {windows.MODULES!r}:
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            # The standard library has other modules there instead.
            if frame.f_globals.get("__name__", "").startswith(("modelhost", "click", "textual", "rich")):
                raise ImportError(f"{{name}} is not there on Windows")

import asyncio, os, signal, subprocess, tempfile, time
for name in {windows.MODULES!r}:
    sys.modules.pop(name, None)
saved = [(sys.modules[module], name) for module, names in {windows.PARTS!r}.items() for name in names]
saved = [(module, name, getattr(module, name)) for module, name in saved]
for module, name, _ in saved:
    delattr(module, name)
sys.meta_path.insert(0, Finder())
from modelhost.cli.main import main
here = ["--url", "http://127.0.0.1:1"]
ends = []
for arguments in (["top", "--once", *here], ["memory", *here], ["top", "--help"], ["--help"]):
    try:
        main(arguments)
    except SystemExit as ended:
        ends.append(ended.code)
    if len(ends) == 3:
        print(sorted({{"textual", "rich", "numpy", "pydantic", "onnxruntime", "fastapi"}} & set(sys.modules)))
for each in saved:  # textual has other modules there
    setattr(*each)
import modelhost.cli.top.app
print(ends)
"""


def test_the_command_needs_nothing_that_windows_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", _AS_ON_WINDOWS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no host answers at http://127.0.0.1:1") == 2
    assert "\n[]\n" in done.stdout  # what is looked at with is a small program
    assert done.stdout.endswith("\n[1, 1, 0, 0]\n")
