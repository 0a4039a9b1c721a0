"""Content codings: of request bodies, decoded within a bound; of answers, where they are asked for."""

from __future__ import annotations

import io
import re
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
# A gzip member begins with the first and ends with its size modulo 2**32; deflate makes no more of a byte.
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_MIN_GZIP_BYTES: Final = 18
_MAX_RATIO: Final = 1032

#: How answers are coded, the better liked first, and the format of each; deflate in the form RFC 9110 means.
_CODINGS: Final = {"gzip": _GZIP, "deflate": _ZLIB}
#: One coding of Accept-Encoding, with its weight.
_ACCEPTED: Final = re.compile(
    r"(?P<coding>[!#$%&'*+.^_`|~0-9a-z-]+)(?:[ \t]*;[ \t]*q=(?P<weight>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?",
    re.IGNORECASE | re.ASCII,
)
#: JSON below this fits the segment that its head is sent in, compressed or not.
_WORTH_BYTES: Final = 1 << 10
#: The fastest: others take several times as long for a tenth less.
_LEVEL: Final = 1
#: What the encoder holds while it works.
_ENCODER_BYTES: Final = 400 << 10


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
    if coding != "deflate":
        _refuse_stated(body, max_bytes)
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


def _refuse_stated(body: bytes | memoryview, max_bytes: int) -> None:
    """Raises RequestTooLarge, before any work, where the last member states more than `max_bytes`.

    What it states may be too little (other members, 2**32 more, a lie), so that it lets nothing in. A size
    that nothing this long can have is damage, which the decoder has words for.
    """
    if len(body) < _MIN_GZIP_BYTES or body[:3] != _GZIP_MAGIC:
        return
    stated = int.from_bytes(body[-4:], "little")
    if max_bytes < stated <= _MAX_RATIO * len(body):
        raise _too_large(stated, max_bytes)


def _too_large(size_bytes: int, max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge("the body decompresses to at least", size_bytes=size_bytes, limit_bytes=max_bytes)


def _drain(decoder: zlib._Decompress, piece: bytes | memoryview, out: _Sink, max_bytes: int) -> None:
    """Writes all that `piece` decodes to; raises RequestTooLarge as soon as it is too much."""
    written = _STEP_BYTES
    # A full step may have left output behind even where all the input is used.
    while not decoder.eof and (piece or written == _STEP_BYTES):
        written = out.write(decoder.decompress(piece, _STEP_BYTES))
        if out.tell() > max_bytes:
            raise _too_large(out.tell(), max_bytes)
        piece = decoder.unconsumed_tail


# --- answers -----------------------------------------------------------------------------------------


def choose_coding(accept_encoding: str | None, *, body_bytes: int, is_json: bool) -> str | None:
    """Returns the coding, gzip or deflate, that an answer of `body_bytes` is sent in; None for none.

    `accept_encoding` is the header's value (all of its lines, joined by commas); what is malformed asks
    for nothing. A client that accepts one coding has asked for it. HTTP libraries accept several by
    themselves: then JSON is compressed where it is worth it, and raw tensors are not, which hardly shrink
    and would take longer than most runs. `identity` that is refused leaves no choice but to compress.
    """
    weights = _weights(accept_encoding or "")
    others = weights.pop("*", None)
    plain = weights.pop("identity", None)
    offered = {coding: weights.get(coding, others or 0.0) for coding in _CODINGS}
    best = max(offered, key=offered.__getitem__)
    if not offered[best]:
        return None
    if plain == 0 or (plain is None and others == 0):
        return best
    if plain is not None and plain > offered[best]:
        return None
    is_asked = not others and [coding for coding, weight in weights.items() if weight] == [best]
    return best if is_asked or (is_json and body_bytes >= _WORTH_BYTES) else None


def compress(body: bytes | memoryview, coding: str) -> bytes:
    """Returns `body` in `coding`, which is one that `choose_coding` gives. The same bytes give the same."""
    encoder = zlib.compressobj(_LEVEL, zlib.DEFLATED, _CODINGS[coding])  # zlib's gzip header states no time
    view, out = memoryview(body), io.BytesIO()
    for start in range(0, len(view), _FEED_BYTES):
        out.write(encoder.compress(view[start : start + _FEED_BYTES]))
    out.write(encoder.flush())
    return out.getvalue()


def compress_cost_bytes(body_bytes: int) -> int:
    """Returns an upper bound for the bytes that `compress` holds at its peak, the body not included."""
    # What does not shrink grows by a few bytes for each block of it, and the buffer by an eighth in advance.
    return _ENCODER_BYTES + body_bytes + body_bytes // 7


def _weights(accepted: str) -> dict[str, float]:
    """Returns the weight of each coding in the header's value; nothing where a part of it is malformed."""
    weights: dict[str, float] = {}
    for part in accepted.split(","):
        if not (words := part.strip(" \t")):
            continue  # a list may have empty entries
        match = _ACCEPTED.fullmatch(words)
        if match is None:
            return {}
        coding = match["coding"].lower()
        coding = "gzip" if coding == "x-gzip" else coding
        weight = float(match["weight"] or 1)
        weights[coding] = min(weight, weights.get(coding, weight))
    return weights
