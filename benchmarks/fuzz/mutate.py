"""Changes of requests: of what they say, with the framing kept right, and of their bytes, whatever becomes of them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from benchmarks.fuzz.corpus import Corpus, Message

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[\[\]{},:]')
_NUMBERS: Final = (
    *(b"0", b"-1", b"1", b"1.5", b"-0.0", b"1e308", b"1e309", b"-1e39", b"1e-400", b"4294967296", b"2147483647"),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809"),
    *(b"9" * 400, b"0." + b"3" * 400, b"00", b"0x10", b"1_000", b"NaN", b"Infinity", b"-Infinity", b"1e", b"+1"),
)
_VALUES: Final = (
    *_NUMBERS,
    *(
        b"null",
        b"true",
        b"false",
        b'""',
        b'"a"',
        b"[]",
        b"{}",
        b"[[]]",
        b"[[[[[[[[1]]]]]]]]",
        b"[1,[2]]",
        b'{"b64":"AA"}',
    ),
    *(b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\xc3\xbc"', b'"\xff"', b'"' + b"x" * 300 + b'"', b"[" * 1200),
    *(b'"FP32"', b'"FP16"', b'"BF16"', b'"BYTES"', b'"INT64"', b'"BOOL"', b'"inputs"', b'"instances"', b'"outputs"'),
    *(b'"data"', b'"shape"', b'"parameters"', b'"binary_data_size"', b'"binary_data_output"', b'"timeout"', b'"id"'),
)
_HEADERS: Final = (
    *(b"Accept-Encoding", b"Content-Encoding", b"Inference-Header-Content-Length", b"Content-Type", b"Expect"),
    *(
        b"Authorization",
        b"Accept",
        b"Host",
        b"X-Request-Id",
        b"Cookie",
        b"Range",
        b"TE",
        b"Via",
        b"Origin",
        b"Connection",
    ),
)
_HEADER_VALUES: Final = (
    *(b"", b"gzip", b"deflate", b"gzip, deflate", b"br", b"identity", b"gzip;q=0", b"*;q=0.001", b"gzip;q=x", b"GZIP"),
    *(b"0", b"1", b"-1", b"+5", b"007", b"1e3", b"10", b"64", b"99999999999999999999", b"9" * 500, b"0x10", b"1, 2"),
    *(b"100-continue", b"close", b"keep-alive", b"application/json", b"text/plain; charset=utf-16", b"bytes=0-10"),
    *(b"Bearer ", b"Bearer a.b.c", b"Basic OjA=", b"test", b"\xff\xfe", b"a" * 3000, b"http://evil.test", b";", b","),
)
_SEGMENTS: Final = (
    *(b"digits", b"wine", b"iris_petals", b"nothing", b"1", b"2", b"00", b"99999999999999999999", b"infer", b"ready"),
    *(
        b"..",
        b"%2e%2e",
        b"%2F",
        b"%00",
        b"%",
        b"%zz",
        b"%ff",
        b"%C3%BC",
        b"",
        b"*",
        b"a" * 300,
        b"digits:predict",
        b":",
    ),
    *(b"v1", b"v2", b"models", b"versions", b"config", b"stats", b"load", b"unload", b"index", b"repository", b"."),
)
_METHODS: Final = (b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"PROPFIND")
_RAW_PIECES: Final = (
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\x00",
    b":",
    b" ",
    b"HTTP/1.1",
    b"Content-Length: 5\r\n",
    b"\xff" * 8,
)
_MOST_BODY_BYTES: Final = 20_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What is sent. With `method` it is one request that has one answer; else nobody knows what it is."""

    data: bytes
    method: bytes | None


class Mutator:
    """Makes samples, the same ones for the same seed. One thread's."""

    def __init__(self, corpus: Corpus, seed: str) -> None:
        self._corpus, self._random = corpus, random.Random(seed)
        self._ways: tuple[Callable[[Message], Message], ...] = (
            *(self._with_token,) * 6,
            *(self._with_bytes,) * 2,
            *(self._with_header,) * 3,
            self._with_length_of_json,
            *(self._with_target,) * 2,
            self._with_method,
            self._with_chunks,
            self._with_other_body,
        )

    def framed(self) -> Sample:
        """Returns a request that is changed in what it says."""
        message = self._seed()
        for _ in range(self._random.choice((0, 1, 1, 1, 2, 3))):
            message = self._random.choice(self._ways)(message)
        return Sample(message.rendered(), message.method)

    def raw(self) -> Sample:
        """Returns bytes that were a request, or several."""
        choose = self._random
        data = bytearray(choose.choice(self._corpus.raw) if choose.random() < 0.5 else self._seed().rendered())
        for _ in range(choose.choice((0, 1, 1, 2, 4))):
            self._change_bytes(data)
        if choose.random() < 0.2:
            data += self._seed().rendered()
        return Sample(bytes(data), None)

    def message_bytes(self, seeds: list[bytes]) -> bytes:
        """Returns one of some other seeds, its bytes changed."""
        data = bytearray(self._random.choice(seeds))
        for _ in range(self._random.choice((0, 1, 2, 4))):
            self._change_bytes(data)
        return bytes(data)

    def _seed(self) -> Message:
        return self._random.choices(self._corpus.framed, self._corpus.weights)[0]

    # --- what it says ------------------------------------------------------------------------------------

    def _with_token(self, message: Message) -> Message:
        """Changes one token of JSON, or of what looks so."""
        found = [match.span() for match in _TOKEN.finditer(message.body[:4000])]
        if not found:
            return self._with_bytes(message)
        begin, end = self._random.choice(found)
        other = self._random.choice(found)
        body = message.body
        match self._random.randrange(6):
            case 0 | 1 | 2:
                put = self._random.choice(_VALUES)
            case 3:
                put = body[other[0] : other[1]]
            case 4:
                put = b""
            case _:
                put = body[begin:end] + b"," + body[begin:end]
        return replace(message, body=body[:begin] + put + body[end:])

    def _with_bytes(self, message: Message) -> Message:
        data = bytearray(message.body or b"{}")
        self._change_bytes(data)
        return replace(message, body=bytes(data[:_MOST_BODY_BYTES]))

    def _with_other_body(self, message: Message) -> Message:
        return replace(message, body=self._seed().body)

    def _with_header(self, message: Message) -> Message:
        headers = list(message.headers)
        at = self._random.randrange(len(headers)) if headers else 0
        name, value = self._random.choice(_HEADERS), self._random.choice(_HEADER_VALUES)
        match self._random.randrange(4):
            case 0 if headers:
                del headers[at]
            case 1 if headers and headers[at][0].lower() != b"upgrade":
                headers[at] = (headers[at][0], value)
            case 2 if headers:
                headers.append(headers[at])
            case _:
                headers.insert(at, (name, value))
        return replace(message, headers=tuple(headers))

    def _with_length_of_json(self, message: Message) -> Message:
        """Says something else of how much of the body is JSON."""
        size = len(message.body)
        value = self._random.choice((0, 1, size - 1, size, size + 1, size // 2, 1 << 31, 1 << 63, -1))
        kept = tuple(one for one in message.headers if one[0].lower() != b"inference-header-content-length")
        return replace(message, headers=(*kept, (b"Inference-Header-Content-Length", b"%d" % value)))

    def _with_target(self, message: Message) -> Message:
        parts = message.target.split(b"/")
        at = self._random.randrange(1, len(parts)) if len(parts) > 1 else 0
        match self._random.randrange(4):
            case 0:
                parts.insert(at, self._random.choice(_SEGMENTS))
            case 1 if len(parts) > 2:
                del parts[at]
            case _:
                parts[at] = self._random.choice(_SEGMENTS)
        target = b"/".join(parts)
        return replace(message, target=target if target.startswith(b"/") else b"/" + target)

    def _with_method(self, message: Message) -> Message:
        return replace(message, method=self._random.choice(_METHODS))

    def _with_chunks(self, message: Message) -> Message:
        return replace(message, chunks=tuple(self._random.randrange(1 << 16) for _ in range(3)))

    # --- bytes -------------------------------------------------------------------------------------------

    def _change_bytes(self, data: bytearray) -> None:
        choose = self._random
        at = choose.randrange(len(data) + 1)
        match choose.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << choose.randrange(8)
            case 1:
                data[at:at] = choose.randbytes(choose.randrange(1, 9))
            case 2:
                del data[at : at + choose.randrange(1, 64)]
            case 3:
                data[at:at] = data[at : at + choose.randrange(1, 256)]
            case 4:
                data[at:at] = choose.choice(_RAW_PIECES)
            case _:
                del data[at:]
