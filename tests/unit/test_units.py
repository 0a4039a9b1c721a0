"""Sizes and thresholds mean what people write."""

from __future__ import annotations

import pytest

from modelhost.errors import DeadlineExceeded
from modelhost.units import ThresholdSpec, format_bytes, format_duration, format_span, parse_size

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (0, 0),
        (268435456, 256 * MB),
        ("268435456", 256 * MB),
        ("256MB", 256 * MB),
        ("256 MB", 256 * MB),
        ("256m", 256 * MB),
        ("256M", 256 * MB),
        ("256MiB", 256 * MB),
        ("256mib", 256 * MB),
        (" 1.5GB ", 3 * GB // 2),
        ("1.5g", 3 * GB // 2),
        ("2t", 2 << 40),
        ("64kb", 64 * KB),
        ("100b", 100),
        ("0.5k", 512),
    ],
)
def test_a_size_is_read_in_every_usual_form(text: str | int, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-1", "-1MB", "1,5GB", "256 M B", "256MBB", "1e6", "0x10", "nan", "inf", "ten", ".5GB", True, 1.5, None],
)
def test_what_is_not_a_size_is_refused_with_the_accepted_forms(text: object) -> None:
    with pytest.raises(ValueError, match=r'expected bytes or a size such as "256MB"'):
        parse_size(text)  # type: ignore[arg-type]


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative, got -1"):
        parse_size(-1)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("auto", "auto", 0),
        ("AUTO", "auto", 0),
        ("170MB", "bytes", 170 * MB),
        (178257920, "bytes", 178257920),
        ("178257920", "bytes", 178257920),
        ("66%", "share", 0.66),
        ("66.5 %", "share", 0.665),
        ("100%", "share", 1.0),
        ("+50MB", "offset", 50 * MB),
        ("+ 50MB", "offset", 50 * MB),
        ("+0", "offset", 0),
    ],
)
def test_a_threshold_is_bytes_a_share_or_an_offset(text: str | int, kind: str, value: float) -> None:
    spec = ThresholdSpec.parse(text)
    assert spec.kind == kind
    assert spec.value == pytest.approx(value)
    assert spec.text == str(text)


@pytest.mark.parametrize("text", ["", "0%", "101%", "-5%", "nan%", "%", "+", "+-5MB", "-5MB", "some", "²", True])
def test_what_is_not_a_threshold_is_refused_with_the_accepted_forms(text: object) -> None:
    with pytest.raises(ValueError, match=r'expected "auto", a size \("170MB"\), a share .* or an offset'):
        ThresholdSpec.parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0.0 KB"),
        (1536, "1.5 KB"),
        (MB, "1.0 MB"),
        (18.4 * MB, "18.4 MB"),
        (2 * GB, "2048.0 MB"),
        (-2 * MB, "-2.0 MB"),
    ],
)
def test_messages_print_sizes_in_kb_and_mb(size_bytes: float, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-9, "0.001 ms"),
        (1e-6, "0.001 ms"),
        (52.4e-6, "0.0524 ms"),
        (0.03, "30 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (1.5, "1.5 s"),
        (999.4, "999 s"),
        (999.6, "1000 s"),
        (7200, "7200 s"),
    ],
)
def test_messages_print_times_in_ms_and_seconds(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_time_that_is_over_is_said_in_a_unit_that_fits_it() -> None:
    assert str(DeadlineExceeded("loading a:1", waited_s=1e-6)) == "loading a:1 did not finish within 0.001 ms"
    assert str(DeadlineExceeded("the run", waited_s=30)) == "the run did not finish within 30 s"
    nothing = DeadlineExceeded("the run", waited_s=0.0)
    assert str(nothing) == "the run did not finish within its time, of which nothing was left"
    assert nothing.details() == {"waited_s": 0.0}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (4000, "67 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (9e5, "10 d"),
    ],
)
def test_spans_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert format_span(seconds) == text
