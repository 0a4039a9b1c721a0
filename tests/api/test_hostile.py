"""Bytes that no well-behaved client sends, against the real server and its parser."""

from __future__ import annotations

import gzip
import json

import pytest
from served import Served, error_of, fake_request, head, tensor

from modelhost.runtime.fake import FakeScript

#: What a hidden request would do: it shows in the counters and as a second answer.
HIDDEN = head("/memory/cleanup", "Content-Length: 0", "Connection: close")
PATH = "/v2/models/add/infer"


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Transfer-Encoding: identity"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: chunked;q=1"],
        ["Transfer-Encoding: \x0bchunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding:\r\n chunked"],
        ["Content-Length: 0", "Content-Length: 40"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: +5"],
        ["Content-Length: -1"],
        ["Content-Length: 0x5"],
        ["Content-Length: 5, 5"],
        ["Content-Length:"],
        ["Content-Length: 99999999999999999999999"],
        ["Content-Length : 5"],
        ["Content-Length: 5\nTransfer-Encoding: chunked"],
    ],
    ids=" + ".join,
)
def test_ambiguous_framing_is_refused_and_nothing_hides_behind_it(ort: Served, headers: list[str]) -> None:
    answer = ort.exchange(head(PATH, *headers) + b"0\r\n\r\n" + HIDDEN)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"recovered" not in answer


@pytest.mark.parametrize("chunk", [b"fffffffffffffffff\r\n{}\r\n", b"-1\r\n{}\r\n", b"2 2\r\n{}\r\n", b"2\n{}\n0\n\n"])
def test_a_malformed_chunk_ends_the_connection(ort: Served, chunk: bytes) -> None:
    answer = ort.exchange(head(PATH, "Transfer-Encoding: chunked") + chunk + HIDDEN)
    assert b"recovered" not in answer
    assert answer.count(b"HTTP/1.1 200") == 0


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /nothing?\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nothing\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"BREW /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_the_connection_ends(ort: Served, request_bytes: bytes) -> None:
    assert ort.exchange(request_bytes).startswith(b"HTTP/1.1 400 ")
    assert ort.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "x:99999999", "", "\x80"])
def test_a_nonsense_host_header_does_not_break_the_error_answer(ort: Served, host: str) -> None:
    request = head("/nothing", "Connection: close", method="GET").replace(b"test", host.encode("latin-1"))
    assert ort.exchange(request).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))


def test_pipelined_requests_are_answered_in_order_even_after_a_bad_one(ort: Served) -> None:
    def infer(value: object, *headers: str) -> bytes:
        content = json.dumps(tensor("x", "FP32", [1], [value])).encode()
        return head(PATH, f"Content-Length: {len(content)}", *headers) + content

    answer = ort.exchange(infer(1) + infer("no number") + infer(3, "Connection: close"))
    first, second, third = answer.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200") and b'"data":[11.0]' in first  # noqa: PT018 - one answer, one look
    assert second.startswith(b"400")
    assert third.startswith(b"200") and b'"data":[13.0]' in third  # noqa: PT018


def test_an_unread_body_is_not_taken_for_the_next_request(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()}, server={"max_request_bytes": 100})
    body = HIDDEN.ljust(200)
    answer = served.exchange(
        head("/v2/models/a/infer", f"Content-Length: {len(body)}"),
        body,
        head("/v2/health/live", "Connection: close", method="GET"),
    )
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"413", b"200"]
    assert b"recovered" not in answer


def test_what_follows_a_last_request_is_dropped(ort: Served) -> None:
    answer = ort.exchange(head("/v2/health/live", "Connection: close", method="GET") + HIDDEN)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_body_that_comes_byte_by_byte_is_a_body(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    content = json.dumps(fake_request()).encode()
    parts = [content[index : index + 1] for index in range(len(content))]
    answer = served.exchange(head("/v2/models/a/infer", f"Content-Length: {len(content)}", "Connection: close"), *parts)
    assert answer.endswith(b'"data":[2.0,4.0]}]}')


def test_chunks_of_any_size_are_one_body(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    content = json.dumps(fake_request()).encode()
    chunks = b"".join(b"%x;name=value\r\n%c\r\n" % (1, byte) for byte in content) + b"0\r\nTrailer: x\r\n\r\n"
    answer = served.exchange(head("/v2/models/a/infer", "Transfer-Encoding: chunked", "Connection: close") + chunks)
    assert answer.endswith(b'"data":[2.0,4.0]}]}')


def test_gzip_bombs_are_refused_one_after_another(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    bomb = gzip.compress(b" " * (64 << 20), 1)
    for _ in range(3):
        error_of(served.infer("a", bomb, headers={"Content-Encoding": "gzip"}), 413)
    assert served.infer("a").status_code == 200


@pytest.mark.parametrize("opening", [b"[", b'{"inputs":[', b'{"a":'])
@pytest.mark.parametrize("depth", [1_000, 50_000])
def test_a_document_of_brackets_is_refused(ort: Served, opening: bytes, depth: int) -> None:
    assert ort.infer("add", opening * depth).status_code in (400, 413)
    assert ort.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    "shape", [[1 << 62], [1 << 63], [1 << 64], [1 << 32, 1 << 32], [-(1 << 63)], [1.0], ["1"], [None], [[1]], [1] * 40]
)
def test_a_shape_that_cannot_be_is_400(ort: Served, shape: list[object]) -> None:
    body = error_of(ort.infer("add", tensor("x", "FP32", shape, [1])), 400)  # type: ignore[arg-type]
    assert body["tensor"] == "x"


def test_an_integer_of_five_thousand_digits_is_400(ort: Served) -> None:
    content = json.dumps(tensor("x", "FP32", [1], "N")).replace('"N"', "[" + "9" * 5_000 + "]")
    error_of(ort.infer("add", content.encode()), 400)


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"'])
def test_text_that_is_no_unicode_is_400(ort: Served, text: bytes) -> None:
    body = b'{"id":' + text + b',"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[1]}]}'
    assert "not valid JSON" in error_of(ort.infer("add", body), 400)["error"]
