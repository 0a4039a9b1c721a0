"""Content codings of request bodies, decoded within a bound."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from modelhost.errors import InvalidRequest, RequestTooLarge

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
# zlib copies the input it did not use on every call, so input goes in by small pieces.
_FEED_BYTES: Final = 1 << 14
_STEP_BYTES: Final = 1 << 18
# A body of empty members costs time without giving output; block-wise writers (bgzip) make one
# member per 64 KB.
_MAX_MEMBERS: Final = 10_000


def decompress(body: bytes | memoryview, encoding: str, *, max_bytes: int) -> bytes:
    """Returns `body` decoded from the content coding `encoding` (gzip, deflate or identity).

    At most about `max_bytes` are held at any time. identity gives the body as it came, whose size
    was for the reader to bound. Raises RequestTooLarge where the result is over `max_bytes`, and
    InvalidRequest where the coding is unknown, or the data damaged, cut short or followed by more.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return bytes(body)
    out = io.BytesIO()  # grows in place and gives its bytes away without a copy
    _inflate(body, coding, out, max_bytes)
    return out.getvalue()


def decompressed_size_bytes(body: bytes | memoryview, encoding: str, *, max_bytes: int) -> int:
    """Returns what `decompress` will hold, having decoded `body` once in little memory.

    Raises what `decompress` raises.
    """
    coding = encoding.strip().lower()
    if coding in ("", "identity"):
        return len(body)
    counter = _Counter()
    _inflate(body, coding, counter, max_bytes)
    return counter.tell()


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...

    def tell(self) -> int: ...


class _Counter:
    """Counts what is written to it."""

    def __init__(self) -> None:
        self._size_bytes = 0

    def write(self, data: bytes, /) -> int:
        self._size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size_bytes


def _decoder_of(body: bytes | memoryview, coding: str) -> Callable[[], zlib._Decompress]:
    if coding in ("gzip", "x-gzip"):
        return lambda: zlib.decompressobj(_GZIP)
    if coding == "deflate":
        wbits = _ZLIB if _has_zlib_header(body) else _RAW
        return lambda: zlib.decompressobj(wbits)
    raise InvalidRequest(f"Content-Encoding '{coding[:60]}' is not supported; use gzip or deflate")


def _has_zlib_header(body: bytes | memoryview) -> bool:
    """Tells the zlib format, which RFC 9110 means by deflate, from the raw one that some send.

    A raw stream that looks like this would begin with a stored block with ones in its padding,
    which no known writer makes.
    """
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _inflate(body: bytes | memoryview, coding: str, out: _Sink, max_bytes: int) -> None:
    """Runs the decoder over `body`, member by member where `coding` is gzip."""
    start = _decoder_of(body, coding)
    view, position, members, decoder = memoryview(body), 0, 1, start()
    try:
        while position < len(view):
            if decoder.eof:
                members += 1
                if coding == "deflate" or members > _MAX_MEMBERS:
                    break
                decoder = start()
            piece = view[position : position + _FEED_BYTES]
            _drain(decoder, piece, out, max_bytes)
            position += len(piece) - len(decoder.unused_data)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid {coding}: {error}") from None
    if not decoder.eof:
        raise InvalidRequest(f"the {coding} body is cut short after {len(view)} bytes")
    if position < len(view):
        what = "too many gzip members" if members > _MAX_MEMBERS else "more"
        raise InvalidRequest(f"the {coding} body ends at byte {position}, followed by {what} up to byte {len(view)}")


def _drain(decoder: zlib._Decompress, piece: bytes | memoryview, out: _Sink, max_bytes: int) -> None:
    """Writes all that `piece` decodes to; raises RequestTooLarge as soon as it is too much."""
    written = _STEP_BYTES
    # A full step may have left output behind even where all the input is used.
    while not decoder.eof and (piece or written == _STEP_BYTES):
        written = out.write(decoder.decompress(piece, _STEP_BYTES))
        if out.tell() > max_bytes:
            raise RequestTooLarge("the body decompresses to at least", size_bytes=out.tell(), limit_bytes=max_bytes)
        piece = decoder.unconsumed_tail
