"""The form of the log: text for people, JSON for programs, and of exceptions no word that they say."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from benchmarks.tracebacks import first_traceback
from modelhost.api import request_ids
from modelhost.api.logs import JsonFormatter, TextFormatter, configure
from modelhost.config import LoggingSettings

CANARY = "canary-3141592653"


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("modelhost", logging.WARNING, __file__, 1, message, arguments, None)
    made.__dict__ |= fields
    return made


def failed() -> logging.LogRecord:
    """A record of an exception, caused by another, that repeat what a request had in it."""
    made = record("it failed")
    try:
        try:
            raise ValueError(CANARY)
        except ValueError as error:
            raise KeyError(CANARY) from error
    except KeyError:
        made.exc_info = sys.exc_info()
    return made


def test_text_has_time_level_message_and_id() -> None:
    line = TextFormatter().format(record("%s is %d", "it", 3, request_id="abc"))
    assert line[2] == line[5] == ":"
    assert line[8:] == " WARNING it is 3 [abc]"
    assert TextFormatter().format(record("it"))[8:] == " WARNING it"


def test_json_is_an_object_a_line_with_its_fields() -> None:
    found = json.loads(JsonFormatter().format(record("it is", request_id="abc", status=200, key="app", other=1)))
    assert found.pop("time").endswith("Z")
    wanted = {"level": "warning", "logger": "modelhost", "message": "it is", "request_id": "abc"}
    assert found == wanted | {"status": 200, "key": "app"}


@pytest.mark.parametrize("text", ["a\nb", "a\r\nERROR b", "a\x1b[2Jb", "a\x85b", "a\u2028b", "a\x00b", "a\tb"])
def test_nothing_in_a_message_ends_its_line(text: str) -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record("%s", text))
        assert line.isprintable()
        assert "\\" in line


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter(), logging.Formatter()])
def test_a_search_for_tracebacks_finds_them_in_every_form(formatter: logging.Formatter) -> None:
    plain = formatter.format(record('it is in File "a", line %d', 3, request_id="abc"))
    assert first_traceback(f"{plain}\n{plain}\n") is None
    found = first_traceback(f"{plain}\n{formatter.format(failed())}\n{plain}\n")
    assert found is not None
    assert "it failed" in found
    assert "test_logs.py" in found


def test_text_that_is_no_unicode_is_written_too() -> None:
    assert "\\udc" in json.loads(JsonFormatter().format(record("a\udcffb")))["message"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_of_an_exception_class_and_frames_are_written_and_no_word(formatter: logging.Formatter) -> None:
    text = formatter.format(failed())
    assert "KeyError" in text
    assert "ValueError" in text
    assert "test_logs.py" in text
    assert "in failed" in text
    assert CANARY not in text


def test_all_of_the_process_logs_in_the_form_that_is_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uvicorn", "uvicorn.error"):  # which other tests may have set
        for key, value in (("propagate", True), ("disabled", False), ("level", logging.NOTSET)):
            monkeypatch.setattr(logging.getLogger(name), key, value)
    root, ours = logging.getLogger(), logging.getLogger("modelhost")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    ours.setLevel(logging.NOTSET)  # which other tests may have set
    try:
        configure(LoggingSettings(format="json", level="warning"))
        logging.getLogger("uvicorn.error").warning("from elsewhere")
        logging.getLogger("modelhost").info("not this")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        ours.setLevel(our_level)
    entries = [json.loads(line) for line in capsys.readouterr().err.splitlines()]  # what other tests left may speak too
    assert [entry["logger"] for entry in entries if "from elsewhere" in str(entry)] == ["uvicorn.error"]
    assert not any("not this" in str(entry) for entry in entries)


def test_a_sane_id_is_taken_over_and_any_other_replaced() -> None:
    for sent in ("a", "0af7651916cd43dd8448eb211c80319c", "req:1/2+3=@4.5_6", "x" * 128):
        assert request_ids.sane_or_new(sent) == sent
    for sent in (None, "", "a b", "a\nb", "x" * 129, "größe", '"', "a;b", "\x00"):
        made = request_ids.sane_or_new(sent)
        assert made != sent
        assert len(made) == 16
