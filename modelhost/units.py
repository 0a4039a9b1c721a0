"""Sizes, durations and thresholds as people write them, and as messages print them."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

#: K, M and G are powers of 1024, as in `docker run --memory 256m`: a limit that is written the same
#: way on both sides has to mean the same bytes.
_SUFFIXES: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<suffix>[kmgt]?)(?:i?b)?", re.IGNORECASE)


#: More than any machine has; and figures up to here can be reckoned with in any way.
_LARGEST_BYTES: Final = 1 << 60

N = TypeVar("N", int, float)

_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<suffix>ms|s|m|h|)", re.IGNORECASE)


def format_bytes(size_bytes: float) -> str:
    """Returns `size_bytes` as messages print it: `18.4 MB`, with 1 MB = 2**20 bytes."""
    if abs(size_bytes) < 1 << 20:
        return f"{size_bytes / 1024:.1f} KB"
    return f"{size_bytes / (1 << 20):.1f} MB"


def format_change(size_bytes: int) -> str:
    """Returns a difference with its sign: `+12.5 MB`, `-3.0 KB`."""
    return ("+" if size_bytes >= 0 else "-") + format_bytes(abs(size_bytes))


def format_duration(seconds: float) -> str:
    """Returns `seconds` as messages print them, to three digits: `0.001 ms` (the least), `52.4 ms`, `1.5 s`."""
    if seconds <= 0:
        return "0 s"
    if seconds < 0.9995:  # what would be rounded to 1000 ms is a second
        return f"{max(seconds * 1000, 0.001):.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"


def format_span(seconds: float) -> str:
    """Returns `seconds` as people say them, to two digits or so: `40 s`, `12 min`, `3.5 h`, `8 d`."""
    for unit, size_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s:
            count = seconds / size_s
            return f"{count:.2g} {unit}" if count < 99.5 else f"{count:.0f} {unit}"
    return f"{seconds:.0f} s"


def parse_size(text: str | int) -> int:
    """Returns the bytes that `text` means: `268435456`, `"256MB"`, `"256m"`, `"1.5GiB"`.

    Raises ValueError that names what is accepted.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError(f"a size cannot be negative, got {text}")
        return _checked_size(text)
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'expected bytes or a size such as "256MB" or "1.5GB", got {text!r}')
    return int(_checked_size(float(match["number"]) * _SUFFIXES[match["suffix"].lower()]))


def _checked_size(size_bytes: N) -> N:
    if size_bytes > _LARGEST_BYTES:  # whose figure may have thousands of digits
        raise ValueError("a size cannot be over 1024 PB")
    return size_bytes


def parse_duration(text: str | float) -> float:
    """Returns the seconds that `text` means: `30`, `"1.5"`, `"500ms"`, `"30s"`, `"15m"`, `"2h"`.

    Raises ValueError that names what is accepted.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return _checked_duration(text)
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'expected seconds or a duration such as "500ms", "30s", "15m" or "2h", got {text!r}')
    return _checked_duration(float(match["number"]) * _SECONDS[match["suffix"].lower()])


def _checked_duration(seconds: float) -> float:
    if not 0 <= seconds <= sys.float_info.max:
        raise ValueError(f"a duration cannot be negative or endless, got {seconds}")
    return float(seconds)


@dataclass(frozen=True, slots=True)
class ThresholdSpec:
    """A memory threshold before the limit and the baseline are known.

    `kind` says what `value` is: `bytes`, a `share` of the limit (0 to 1), an `offset` in bytes above
    the baseline, or `auto` (value unused).
    """

    kind: Literal["auto", "bytes", "share", "offset"]
    value: float
    text: str

    @classmethod
    def parse(cls, text: str | int) -> ThresholdSpec:
        """Reads `"auto"`, `"170MB"`, `"66%"` or `"+50MB"`. Raises ValueError that names these forms."""
        words = str(text).strip()
        try:
            if words.lower() == "auto":
                return cls("auto", 0, words)
            if words.endswith("%") and words[0] not in "+-":
                share = float(words[:-1]) / 100
                if not 0 < share <= 1:
                    raise ValueError
                return cls("share", share, words)
            if words.startswith("+"):
                return cls("offset", parse_size(words[1:]), words)
            return cls("bytes", parse_size(int(words) if words.isdigit() else words), words)
        except ValueError:
            raise ValueError(
                f'expected "auto", a size ("170MB"), a share of the limit ("66%") or an offset above '
                f'the baseline ("+50MB"), got {text!r}'
            ) from None
