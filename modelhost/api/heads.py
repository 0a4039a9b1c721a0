"""Heads of requests and answers as bytes: what the short cut has to know of the ones, and how the others are sent."""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from typing import ClassVar, Final, NamedTuple
from urllib.parse import unquote

from modelhost.api.answers import Answer, Header
from modelhost.api.arrivals import SMALL_BODY_BYTES
from modelhost.api.infer import Head, infer_path
from modelhost.api.request_ids import RAW_HEADER

#: Request line and headers together. Every connection may hold as much at any time.
MAX_HEAD_BYTES: Final = 32 << 10

#: Headers of one request. What one holds beside its bytes is more than many have.
MAX_HEADERS: Final = 128
HEADER_BYTES: Final = 160

_HEAD_END: Final = b"\r\n\r\n"
_UPGRADE_LINE: Final = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}

CONTENT_LENGTH: Final = b"content-length"
_HEADER_LENGTH: Final = b"inference-header-content-length"
_ACCEPT_ENCODING: Final = b"accept-encoding"
AUTHORIZATION: Final = b"authorization"
#: Stands for any known header that came twice: which one counts is for the application to say.
TWICE: Final = b""
#: With one of these a request is not for the short cut.
UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"content-encoding", TWICE})
#: Headers that the short cut looks at.
KNOWN: Final = frozenset({CONTENT_LENGTH, _HEADER_LENGTH, _ACCEPT_ENCODING, AUTHORIZATION, RAW_HEADER}) | (
    UNUSUAL - {TWICE}
)

#: Of the headers that are known, in a request with nothing but the two lengths.
_WITH_LENGTH: Final = 2

#: Heads of requests that are remembered with what they ask, and the longest: clients send the same ones again and
#: again, and the parser and its callbacks are a sixth of what a tiny request takes.
_HEADS_KEPT: Final = 128
_HEAD_KEPT_BYTES: Final = 1 << 10

Target = tuple[str, "str | None"]


class Asked(NamedTuple):
    """What the head of an inference request asks that the short cut is for."""

    target: Target
    head: Head
    size_bytes: int
    """Of the body."""
    keeps_alive: bool

    @property
    def may_come_again(self) -> bool:
        """Whether a head like it is worth remembering: it has no id, and its body comes in one piece, if any does."""
        return self.keeps_alive and 0 < self.size_bytes <= SMALL_BODY_BYTES and self.head.request_id is None


class KnownHeads:
    """What heads ask that the parser has taken, by their bytes; a few hundred bytes for each."""

    __slots__ = ("_asked",)

    def __init__(self) -> None:
        self._asked: dict[bytes, Asked] = {}

    def find(self, data: bytes) -> Asked | None:
        """Returns what `data` asks, where it is one of these heads and just the body that it states; else None."""
        end = _end_of_head(data)
        asked = self._asked.get(data[:end])
        return asked if asked is not None and len(data) == end + asked.size_bytes else None

    def remember(self, data: bytes, asked: Asked) -> None:
        """Remembers the head of a request that `data` began with, as the parser says, where its body is all that is
        behind it: so it is known where the parser has seen the head's end."""
        end = _end_of_head(data)
        if not end or len(data) != end + asked.size_bytes:
            return
        if len(self._asked) >= _HEADS_KEPT:
            self._asked.clear()
        self._asked[data[:end]] = asked


def _end_of_head(data: bytes) -> int:
    """Returns the size of the head that `data` begins with; 0 where it is too long to remember, or not all there."""
    found = data.find(_HEAD_END, 0, _HEAD_KEPT_BYTES)
    return 0 if found < 0 else found + len(_HEAD_END)


def target_of(url: bytes) -> Target | None:
    """Returns name and version where a request's target is that of an inference request in its common form."""
    path = url.partition(b"?")[0]
    # An encoded slash would be one between segments once it is decoded: the application refuses it. What
    # follows a '#' is no part of a path.
    if not path.startswith(b"/v2/models/") or b"#" in path or b"%2f" in path.lower():
        return None
    text = path.decode("latin-1")
    return infer_path(unquote(text) if "%" in text else text)


def path_of(target: Target) -> str:
    """Returns the decoded path of an inference request in its common form."""
    name, version = target
    return f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"


def head_of(known: dict[bytes, bytes]) -> Head:
    """Returns what says how the body is read, of the headers that are known."""
    header_length, accept_encoding = known.get(_HEADER_LENGTH), known.get(_ACCEPT_ENCODING)
    if header_length is not None and len(known) == _WITH_LENGTH:
        return _length_head(header_length)
    request_id = known.get(RAW_HEADER)
    return Head(
        None if header_length is None else header_length.decode("latin-1"),
        None,
        None if accept_encoding is None else accept_encoding.decode("latin-1"),
        None if request_id is None else request_id.decode("latin-1"),
    )


@lru_cache(maxsize=64)
def _length_head(header_length: bytes) -> Head:
    """Returns the head of a request with raw tensors, as most clients send it: one for all that are alike."""
    return Head(header_length.decode("latin-1"), None, None)


def head_bytes(url: bytes, headers: list[Header]) -> int:
    """Returns the size of what was parsed of a head: its target and its headers, each with a colon and an end."""
    return len(url) + sum([len(name) + len(value) + 4 for name, value in headers])


def without_upgrade(data: bytes) -> bytes:
    """Returns `data`, the beginning of a request, without an `Upgrade` header.

    A server may ignore the header (RFC 9110, 7.8), and clients that offer HTTP/2 send it with
    ordinary requests. The parser cannot ignore it: it takes such a request for one without a body.
    """
    end = data.find(_HEAD_END)
    if end < 0:
        return data
    # Not in the body behind it, which may be long.
    if data.find(b"grade", 0, end) < 0 and data.find(b"GRADE", 0, end) < 0:
        return data
    return _UPGRADE_LINE.sub(b"", data[:end]) + data[end:]


class _Defaults:
    """The server's own headers (the date), as they are sent; it makes new ones each second."""

    headers: ClassVar[list[Header]] = []
    text: ClassVar[bytes] = b""


@lru_cache(maxsize=64)
def _lines(headers: tuple[Header, ...]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def answer_head(answer: Answer, defaults: list[Header], *, keep_alive: bool) -> bytes:
    """Returns status line and headers of an answer, the server's own (`defaults`) first."""
    if defaults is not _Defaults.headers:
        _Defaults.headers = defaults
        _Defaults.text = _lines(tuple(defaults))
    extra = _lines(answer.extra) if answer.extra else b""
    return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n" % (
        _STATUS_LINES[answer.status],
        _Defaults.text,
        answer.content_type,
        len(answer.body),
        extra,
        b"" if keep_alive else b"connection: close\r\n",
    )
