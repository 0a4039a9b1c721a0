"""Content codings: what is decoded, what is refused, and within which memory."""

from __future__ import annotations

import contextlib
import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.api.codec import decompress
from modelhost.errors import InvalidRequest, RequestTooLarge

TEXT = b'{"inputs": []}' * 50_000


def raw_deflate(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-15)
    return coder.compress(data) + coder.flush()


@pytest.mark.parametrize("data", [b"", b"a", TEXT, bytes(1 << 20)])
def test_every_coding_gives_the_data_back(data: bytes) -> None:
    for body, coding in (
        (data, "identity"),
        (data, ""),
        (gzip.compress(data), "gzip"),
        (gzip.compress(data), " X-GZIP "),
        (zlib.compress(data), "deflate"),
        (raw_deflate(data), "Deflate"),
    ):
        assert data == decompress(body, coding, max_bytes=len(data))
        assert data == decompress(memoryview(body), coding, max_bytes=len(data))


def test_members_of_gzip_are_joined() -> None:
    body = b"".join(gzip.compress(part) for part in (b"a", b"", TEXT, b"b"))
    assert decompress(body, "gzip", max_bytes=1 << 20) == b"a" + TEXT + b"b"


@given(st.binary(max_size=300), st.integers(0, 300), st.sampled_from(["gzip", "deflate"]))
def test_any_cut_is_refused(data: bytes, cut: int, coding: str) -> None:
    body = gzip.compress(data) if coding == "gzip" else zlib.compress(data)
    with pytest.raises(InvalidRequest):
        decompress(body[: min(cut, len(body) - 1)], coding, max_bytes=1000)


@pytest.mark.parametrize(
    ("body", "coding", "words"),
    [
        (b"", "br", "'br' is not supported"),
        (b"", "gzip, deflate", "not supported"),
        (b"", "gzip", "cut short"),
        (b"not gzip", "gzip", "not valid gzip"),
        (b"\xff\xff", "deflate", "not valid deflate"),
        (gzip.compress(TEXT)[:-1], "gzip", "cut short"),
        (gzip.compress(b"a") + b"garbage", "gzip", "not valid gzip"),
        (gzip.compress(b"a") + b"\0", "gzip", "gzip"),
        (zlib.compress(b"a") + b"x", "deflate", "followed by more"),
        (raw_deflate(b"a") + b"x", "deflate", "followed by more"),
        (zlib.compress(b"a")[:-1] + b"x", "deflate", "not valid deflate"),
        (gzip.compress(b"") * 10_001, "gzip", "too many gzip members"),
    ],
)
def test_damage_is_refused(body: bytes, coding: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decompress(body, coding, max_bytes=1 << 30)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_refused_within_the_bound(coding: str) -> None:
    zeros = bytes(64 << 20)
    body = gzip.compress(zeros) if coding == "gzip" else zlib.compress(zeros)
    del zeros
    limit = 4 << 20
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge) as caught:
            decompress(body, coding, max_bytes=limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.limit_bytes == limit
    assert peak < 1.5 * limit


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_random_bytes_never_raise_anything_else(body: bytes, coding: str) -> None:
    with contextlib.suppress(InvalidRequest, RequestTooLarge):
        decompress(body, coding, max_bytes=1000)
