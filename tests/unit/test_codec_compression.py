"""Content codings: what is decoded, what is refused, and within which memory."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.api.codec import (
    choose_coding,
    compress,
    compress_cost_bytes,
    decompress,
    decompressed_size_bytes,
)
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
        decompress(body[: min(cut, len(body) - 1)], coding, max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("body", "coding", "words"),
    [
        (b"", "br", "'br' is not supported"),
        (b"", "gzip, deflate", "not supported"),
        (b"", "gzip", "cut short"),
        (b"not gzip", "gzip", "not valid gzip"),
        (b"\xff\xff", "deflate", "not valid deflate"),
        (gzip.compress(TEXT, mtime=0)[:-1], "gzip", "cut short"),
        (gzip.compress(b"a", mtime=0) + b"garbage", "gzip", "not valid gzip"),
        (gzip.compress(b"a", mtime=0) + b"\0", "gzip", "gzip"),
        (zlib.compress(b"a") + b"x", "deflate", "followed by more"),
        (raw_deflate(b"a") + b"x", "deflate", "followed by more"),
        (zlib.compress(b"a")[:-1] + b"x", "deflate", "not valid deflate"),
        (gzip.compress(b"", mtime=0) * 10_001, "gzip", "too many gzip members"),
    ],
)
def test_damage_is_refused(body: bytes, coding: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decompress(body, coding, max_bytes=1 << 30)


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "gzip that states nothing": lambda zeros: gzip.compress(zeros)[:-4] + bytes(4),
    "gzip whose last member is small": lambda zeros: gzip.compress(zeros) + gzip.compress(b""),
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_within_the_bound(bomb: str) -> None:
    coding, body = bomb.split()[0], BOMBS[bomb](bytes(64 << 20))
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


def test_gzip_that_states_too_much_is_refused_unread() -> None:
    body = bytearray(gzip.compress(bytes(64 << 20)))
    body[100:200] = b"\xff" * 100
    for read in (decompress, decompressed_size_bytes):
        with pytest.raises(RequestTooLarge) as caught:
            read(bytes(body), "gzip", max_bytes=(64 << 20) - 1)
        assert caught.value.size_bytes == 64 << 20
        with pytest.raises(InvalidRequest, match="not valid x-gzip"):  # as is found once it may be read
            read(memoryview(body), "X-Gzip", max_bytes=64 << 20)


def test_a_size_that_is_stated_lets_nothing_in_and_keeps_nothing_valid_out() -> None:
    members = gzip.compress(TEXT) + gzip.compress(bytes(5000))
    size_bytes = len(TEXT) + 5000
    assert decompressed_size_bytes(members, "gzip", max_bytes=size_bytes) == size_bytes
    for limit in (4999, 5000, size_bytes - 1):
        with pytest.raises(RequestTooLarge):
            decompressed_size_bytes(members, "gzip", max_bytes=limit)
    body = gzip.compress(b"a" * 1000)
    for stated in (0, 999, 1001, 2000, 2**32 - 1):  # those above 1000 are possible, or not even that
        with pytest.raises(InvalidRequest, match="incorrect length"):
            decompress(body[:-4] + stated.to_bytes(4, "little"), "gzip", max_bytes=2000)


def test_a_body_that_is_not_gzip_is_not_said_to_be_large() -> None:
    text = b'{"inputs": [' + b" " * (8 << 20) + b"]}"  # its end, read as a size, would be possible
    with pytest.raises(InvalidRequest, match="not valid gzip"):
        decompress(text, "gzip", max_bytes=1 << 20)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]))
def test_random_bytes_never_raise_anything_else(body: bytes, coding: str) -> None:
    with contextlib.suppress(InvalidRequest, RequestTooLarge):
        decompress(body, coding, max_bytes=1000)


# --- answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accepted", "tensors", "text"),
    [
        # Nobody asks for anything.
        (None, None, None),
        ("", None, None),
        (" , ,", None, None),
        ("identity", None, None),
        ("br", None, None),
        ("br, zstd", None, None),
        # One coding, which somebody has asked for.
        ("gzip", "gzip", "gzip"),
        ("deflate", "deflate", "deflate"),
        (" GZip ", "gzip", "gzip"),
        ("x-gzip", "gzip", "gzip"),
        ("gzip, X-Gzip", "gzip", "gzip"),
        ("gzip;q=0.001", "gzip", "gzip"),
        ("gzip ; Q=1.000", "gzip", "gzip"),
        (",gzip,,", "gzip", "gzip"),
        ("gzip, identity", "gzip", "gzip"),
        ("gzip, deflate;q=0", "gzip", "gzip"),
        ("gzip;q=0, deflate", "deflate", "deflate"),
        ("gzip;q=0, br;q=0.0, deflate;q=0.5", "deflate", "deflate"),
        # Several, as HTTP libraries send by themselves.
        ("gzip, deflate", None, "gzip"),
        ("gzip, deflate, br", None, "gzip"),
        ("deflate, gzip;q=1.0", None, "gzip"),
        ("deflate, gzip;q=0.9", None, "deflate"),
        ("br, deflate;q=0.2", None, "deflate"),
        ("gzip;q=1.0,deflate;q=0.6,identity;q=0.3", None, "gzip"),
        # Refused, or liked less than nothing.
        ("gzip;q=0", None, None),
        ("gzip;q=0.000, deflate;q=0", None, None),
        ("gzip;q=0, gzip", None, None),
        ("x-gzip;q=0, gzip", None, None),
        ("gzip;q=0.5, identity", None, None),
        ("gzip;q=0.5, deflate;q=0.5, identity;q=0.6", None, None),
        # All the others.
        ("*", None, "gzip"),
        ("*;q=0", None, None),
        ("gzip;q=0, *", None, "deflate"),
        ("gzip;q=0.5, *", None, "deflate"),
        ("gzip, *;q=0.5", None, "gzip"),
        ("identity, *;q=0.5", None, None),
        ("identity, *;q=0", None, None),
        # Without a coding it would not be accepted.
        ("identity;q=0", None, None),
        ("identity;q=0, *", "gzip", "gzip"),
        ("gzip, *;q=0", "gzip", "gzip"),
        ("gzip, deflate, *;q=0", "gzip", "gzip"),
        ("br, deflate;q=0.1, identity;q=0", "deflate", "deflate"),
        # Malformed.
        ("gzip deflate", None, None),
        ("gzip;q=2", None, None),
        ("gzip;q=-1", None, None),
        ("gzip;q=0.1234", None, None),
        ("gzip;q=1.1", None, None),
        ("gzip;q=", None, None),
        ("gzip;q=nan", None, None),
        ("gzip;q=\u0661", None, None),
        ("gzip;level=1", None, None),
        ("gzip, deflate;", None, None),
        ("gzip\n", None, None),
        ("\u017fgzip", None, None),
    ],
)
def test_the_coding_of_an_answer_is_one_that_was_asked_for(
    accepted: str | None, tensors: str | None, text: str | None
) -> None:
    assert choose_coding(accepted, body_bytes=1 << 20, is_json=False) == tensors
    assert choose_coding(accepted, body_bytes=1024, is_json=True) == text
    # What is small is compressed only for those who insist, and these get raw tensors so, too.
    assert choose_coding(accepted, body_bytes=1023, is_json=True) == tensors


@given(st.text(alphabet="gziptxdeflat*,;=q01. -", max_size=60))
def test_no_header_gives_anything_but_a_coding(accepted: str) -> None:
    for is_json in (True, False):
        assert choose_coding(accepted, body_bytes=2000, is_json=is_json) in (None, "gzip", "deflate")


@pytest.mark.parametrize("data", [b"", b"a", TEXT, random.Random(1).randbytes(1 << 20)])
def test_a_compressed_answer_is_read_as_clients_read_it(data: bytes) -> None:
    assert gzip.decompress(compress(data, "gzip")) == data
    assert zlib.decompress(compress(memoryview(data), "deflate")) == data
    for coding in ("gzip", "deflate"):
        assert decompress(compress(data, coding), coding, max_bytes=len(data)) == data


def test_the_same_answer_is_compressed_to_the_same_bytes() -> None:
    once = compress(TEXT, "gzip")
    assert once[4:8] == bytes(4)  # no time
    assert compress(TEXT, "gzip") == once
    assert len(once) < len(TEXT) / 50


@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 70_000, 1 << 20, (5 << 20) + 3])
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressing_holds_no_more_than_its_bound(coding: str, size_bytes: int) -> None:
    for body in (bytes(size_bytes), random.Random(1).randbytes(size_bytes)):
        tracemalloc.start()
        try:
            compressed = compress(body, coding)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(compressed) < peak <= compress_cost_bytes(size_bytes)
