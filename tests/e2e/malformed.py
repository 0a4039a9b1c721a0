"""Requests that are wrong, each in one way: what is sent, byte for byte, and what the answer has to say."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

PIXELS = [0.5] * 64
DIGITS, IRIS = "/v2/models/digits/infer", "/v2/models/iris_petals/infer"
PREDICT = "/v1/models/digits:predict"
INDEX, LOAD = "/v2/repository/index", "/v2/repository/models/digits/load"
LENGTH = "Inference-Header-Content-Length"


class Malformed(NamedTuple):
    """One request; `words` are in the error, `statuses` may be its status."""

    name: str
    raw: bytes
    words: str
    statuses: tuple[int, ...] = (400,)


def http(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def document(**changes: Any) -> dict[str, Any]:
    """A request that digits answers, with members of its input changed; ... takes one away."""
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": PIXELS} | changes
    return {"inputs": [{key: value for key, value in entry.items() if value is not ...}]}


def with_text(text: str, **changes: Any) -> bytes:
    """The document with `text`, which need be no JSON, in place of the string @."""
    return json.dumps(document(**changes)).replace('"@"', text).encode()


GOOD = json.dumps(document()).encode()


def all_malformed() -> Iterator[Malformed]:
    """Every request of the table."""
    for kind, path, rows in (
        ("json", DIGITS, _texts()),
        ("tensor", DIGITS, _tensors()),
        ("fields", DIGITS, _fields()),
        ("v1", PREDICT, _v1()),
    ):
        for name, body, words, *statuses in rows:
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            yield Malformed(f"{kind}: {name}", http(path, text), words, tuple(statuses) or (400,))
    yield from _binary()
    yield from _repository()
    yield from _compressed()
    yield from _framing()


def _texts() -> Iterator[tuple[Any, ...]]:
    yield "nothing", b"", "not valid JSON"
    yield "white space", b" \r\n\t ", "not valid JSON"
    yield "an opening brace", b"{", "not valid JSON"
    yield "cut in the middle", GOOD[: len(GOOD) // 2], "not valid JSON"
    yield "cut at the end", GOOD[:-1], "not valid JSON"
    yield "followed by more", GOOD + b"}", "not valid JSON"
    yield "two documents", GOOD + GOOD, "not valid JSON"
    yield "a list", b"[]", "must be a JSON object"
    yield "null", b"null", "must be a JSON object"
    yield "a number", b"1", "must be a JSON object"
    yield "a string", b'"inputs"', "must be a JSON object"
    yield "single quotes", GOOD.replace(b'"', b"'"), "not valid JSON"
    yield "a comma too much", GOOD[:-1] + b",}", "not valid JSON"
    yield "a comment", b"/* */" + GOOD, "not valid JSON"
    yield "NaN", with_text("[NaN]", data="@"), "not valid JSON"
    yield "Infinity", with_text("[Infinity]", data="@"), "not valid JSON"
    yield "minus Infinity", with_text("[-Infinity]", data="@"), "not valid JSON"
    yield "a leading zero", with_text("[007]", data="@"), "not valid JSON"
    yield "hexadecimal", with_text("[0x10]", data="@"), "not valid JSON"
    yield "a byte that is no UTF-8", GOOD.replace(b"image", b"im\xffage"), "not valid JSON"
    yield "overlong UTF-8", GOOD.replace(b"image", b"\xc0\xaf"), "not valid JSON"
    yield "UTF-8 of a surrogate", GOOD.replace(b"image", b"\xed\xa0\x80"), "not valid JSON"
    yield "an escaped surrogate alone", GOOD.replace(b"image", b"\\ud800"), "not valid JSON"
    yield "UTF-8 cut short at the end", b'{"id":"\xf0\x9f', "not valid JSON"
    yield "a zero byte", GOOD.replace(b"image", b"im\x00age"), "not valid JSON"
    yield "UTF-16", GOOD.decode().encode("utf-16"), "not valid JSON"
    yield "random bytes", bytes(range(256)) * 4, "not valid JSON"
    for depth in (1_100, 100_000):
        yield f"{depth} lists left open", b"[" * depth, "", 400, 413
        yield f"{depth} objects left open", b'{"a":' * depth, "", 400, 413
        yield f"{depth} lists as data", with_text("[" * depth + "]" * depth, data="@"), "", 400, 413
    yield "900 lists as data", with_text("[" * 900 + "]" * 900, data="@"), "tensor 'image'"


def _tensors() -> Iterator[tuple[Any, ...]]:
    for name, shape in (
        ("2^62", [1 << 62]),
        ("2^63", [1 << 63]),
        ("2^64", [1 << 64]),
        ("a product of 2^64", [1 << 32, 1, 1 << 16, 1 << 16]),
        ("2^62 rows", [1 << 62, 1, 8, 8]),
        ("minus one", [-1, 1, 8, 8]),
        ("a fraction", [1.5, 1, 8, 8]),
        ("a float", [1.0, 1, 8, 8]),
        ("text", ["1", 1, 8, 8]),
        ("true", [True, 1, 8, 8]),
        ("null", [None, 1, 8, 8]),
        ("lists", [[1], [1], [8], [8]]),
        ("forty dimensions", [1] * 40),
        ("no dimensions", []),
        ("other dimensions", [1, 8, 8, 1]),
        ("nothing", None),
        ("an object", {"0": 1}),
        ("a number", 64),
    ):
        yield f"a shape of {name}", document(shape=shape), "tensor 'image'"
    yield "a number of 5,000 digits in the shape", with_text("[" + "9" * 5_000 + "]", shape="@"), "", 400
    yield "a number of 5,000 digits in the data", with_text("[" + "9" * 5_000 + "]", data="@"), "", 400
    yield "a number of 5,000 decimals too few", with_text("[0." + "9" * 5_000 + "]", data="@"), "tensor 'image'"
    yield "1e400", with_text(json.dumps([*PIXELS[1:], "@@"]).replace('"@@"', "1e400"), data="@"), "", 400
    for name, data in (
        ("nothing", ...),
        ("null", None),
        ("a number", 1),
        ("a string", "0.5"),
        ("an object", {"0": 0.5}),
        ("no elements", []),
        ("63 elements", PIXELS[1:]),
        ("65 elements", [*PIXELS, 0.5]),
        ("ragged lists", [[[[0.5] * 8] * 7 + [[0.5] * 7]]]),
        ("lists and numbers", [[[[0.5] * 8] * 7 + [0.5]]]),
        ("one list too deep", [[[[[0.5] * 8] * 8]]]),
        ("text", [*PIXELS[1:], "0.5"]),
        ("true", [*PIXELS[1:], True]),
        ("null at the end", [*PIXELS[1:], None]),
        ("objects", [{}] * 64),
        ("1e39", [*PIXELS[1:], 1e39]),
    ):
        yield f"data: {name}", document(data=data), "tensor 'image'"
    for name, datatype in (
        ("unknown", "FP31"),
        ("another", "FP64"),
        ("small letters", "fp32"),
        ("null", None),
        ("a number", 32),
        ("long", "F" * 10_000),
    ):
        yield f"datatype: {name}", document(datatype=datatype), "tensor 'image'"


def _fields() -> Iterator[tuple[Any, ...]]:
    entry = document()["inputs"][0]
    for name, inputs, words in (
        ("null", None, "'inputs' must be a list"),
        ("an object", {"image": PIXELS}, "'inputs' must be a list"),
        ("empty", [], "missing input 'image'"),
        ("a number", [1], "input 0 must be an object"),
        ("a list", [[]], "input 0 must be an object"),
        ("twice the same", [entry, entry], "input 'image' is given twice"),
        ("one too many", [entry, entry | {"name": "more"}], "unknown input 'more'"),
        ("another name", [entry | {"name": "picture"}], "unknown input 'picture'"),
        ("a number as name", [entry | {"name": 1}], "must have a string as 'name'"),
        ("no name", [{"datatype": "FP32"}], "must have a string as 'name'"),
        ("a name of 10,000", [entry | {"name": "a" * 10_000}], "a name of 10000 characters"),
    ):
        yield f"inputs: {name}", {"inputs": inputs}, words
    yield "no inputs", {"outputs": []}, "no 'inputs'"
    for name, outputs, words in (
        ("an object", {}, "'outputs' must be a list"),
        ("unknown", [{"name": "more"}], "unknown output 'more'"),
        ("twice the same", [{"name": "logits"}] * 2, "output 'logits' is given twice"),
        ("a number", [1], "output 0 must be an object"),
        ("classification", [{"name": "logits", "parameters": {"classification": 2}}], "not supported"),
        ("binary_data: 1", [{"name": "logits", "parameters": {"binary_data": 1}}], "must be true or false"),
    ):
        yield f"outputs: {name}", document() | {"outputs": outputs}, words
    yield "id: a number", document() | {"id": 1}, "'id' must be a string"
    for name, parameters, words in (
        ("a list", [], "'parameters' of the request must be an object"),
        ("timeout: -1", {"timeout": -1}, "whole microseconds"),
        ("timeout: a string", {"timeout": "1"}, "whole microseconds"),
        ("binary_data_output: 1", {"binary_data_output": 1}, "must be true or false"),
    ):
        yield f"parameters: {name}", document() | {"parameters": parameters}, words
    yield "a region of shared memory", document(parameters={"shared_memory_region": "a"}), "not supported"


def _v1() -> Iterator[tuple[Any, ...]]:
    image = [[[0.5] * 8] * 8]
    yield from (
        ("nothing", b"", "not valid JSON"),
        ("cut short", json.dumps({"instances": [image]}).encode()[:-9], "not valid JSON"),
        ("neither form", {}, "either 'instances' or 'inputs'"),
        ("both forms", {"instances": [image], "inputs": [image]}, "either 'instances' or 'inputs'"),
        ("no instances", {"instances": []}, "at least one instance"),
        ("an object of instances", {"instances": {"0": image}}, "at least one instance"),
        ("NaN", b'{"instances":[[[[NaN]]]]}', "not valid JSON"),
        ("a ragged row", {"instances": [image, [[[0.5] * 8] * 7]]}, "in instance 1"),
        ("a ragged list in a row", {"instances": [image, [[[0.5] * 8] * 7 + [[0.5] * 7]]]}, "of instance 1"),
        ("text in a row", {"instances": [image, [[["0.5"] * 8] * 8]]}, "of instance 1"),
        ("another shape", {"instances": [[0.5] * 64]}, "expected FP32 [batch,1,8,8]"),
        ("an unknown input", {"instances": [{"picture": image}]}, "instance 0: unknown input 'picture'"),
        ("a missing input", {"instances": [{"image": image}, {}]}, "instance 1: missing input 'image'"),
        ("base64 for numbers", {"instances": [{"b64": "AAAA"}]}, "tensor 'image'"),
        ("1,100 lists", b'{"instances":' + b"[" * 1_100 + b"]" * 1_100 + b"}", "not valid JSON"),
        ("900 lists", b'{"instances":' + b"[" * 900 + b"]" * 900 + b"}", "tensor 'image'"),
        ("a whole input that does not fit", {"inputs": {"image": image}}, "expected FP32 [batch,1,8,8]"),
    )


def _binary() -> Iterator[Malformed]:
    def row(
        name: str, words: str, text: bytes = GOOD, raw: bytes = b"", *, length: str | None = None, path: str = DIGITS
    ) -> Malformed:
        stated = str(len(text)) if length is None else length
        return Malformed(f"binary: {name}", http(path, text + raw, f"{LENGTH}: {stated}"), words)

    for value in ("-1", "+5", "1e3", "0x10", "5, 6", "9" * 5_000, "99999999", "1.0", "one"):
        yield row(f"a header length of {value[:10]}", LENGTH, length=value)
    yield row("a header length that cuts the JSON", "not valid JSON", length="10")
    yield row(
        "a header length that reaches into the data", "not valid JSON", raw=b"\x00\x01", length=str(len(GOOD) + 1)
    )
    yield row("bytes that nobody declared", "declare 0 bytes", raw=b"\x00")

    def sized(size: Any, **changes: Any) -> bytes:
        return json.dumps(document(**{"data": ..., "parameters": {"binary_data_size": size}} | changes)).encode()

    for name, size in (("less", 252), ("more", 260), ("none", 0)):
        yield row(f"{name} bytes than the shape takes", "256 bytes for FP32", sized(size), bytes(size))
    yield row("fewer bytes than declared", "declare 256 bytes", sized(256), bytes(255))
    yield row("more bytes than declared", "declare 256 bytes", sized(256), bytes(257))
    for size in (-1, 1.5, "256", True, 1 << 62, 1 << 64, [256]):
        yield row(f"a size of {size}", "", sized(size), bytes(256))
    yield row("both data and bytes", "both of them", sized(256, data=PIXELS), bytes(256))
    yield row("a shape that overflows", "tensor 'image'", sized(256, shape=[1 << 62, 1, 8, 8]), bytes(256))
    yield row("a raw tensor of odd size", "tensor 'image'", b"", bytes(255), length="0")
    yield row("a raw tensor for two inputs", "models with one input", b"", bytes(255), length="0", path=IRIS)
    for name, raw, words in (
        ("a text longer than the data", b"\xff\xff\xff\x7fa", "tensor 'species'"),
        ("a length cut short", b"\x01\x00", "tensor 'species'"),
        ("a text that is no UTF-8", b"\x02\x00\x00\x00\xff\xfe", "UTF-8"),
        ("bytes behind the text", b"\x01\x00\x00\x00ab", "tensor 'species'"),
    ):
        inputs = [
            {"name": "species", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": len(raw)}},
            {"name": "sepal", "datatype": "FP32", "shape": [1, 2], "data": [5.1, 3.4]},
        ]
        yield row(name, words, json.dumps({"inputs": inputs}).encode(), raw, path=IRIS)


def _repository() -> Iterator[Malformed]:
    for name, path, body, words, status in (
        ("index: no JSON", INDEX, b"{", "not JSON", 400),
        ("index: a list", INDEX, b"[]", "expected a JSON object", 400),
        ("index: ready is text", INDEX, b'{"ready":"yes"}', "expected true or false", 400),
        ("index: 2,000 lists", INDEX, b"[" * 2_000, "not JSON", 400),
        ("index: two megabytes", INDEX, b" " * (2 << 20), "at least", 413),
        ("load: no JSON", LOAD, b"nope", "not JSON", 400),
        ("load: parameters are a list", LOAD, b'{"parameters":[1]}', "expected an object", 400),
        ("load: a configuration", LOAD, b'{"parameters":{"config":"{}"}}', "not supported", 400),
        ("load: a file", LOAD, b'{"parameters":{"file:1/model.onnx":"AAAA"}}', "not supported", 400),
        ("load: no model", LOAD.replace("digits", "nothing"), b"", "no model 'nothing'", 404),
        ("load: a path", LOAD.replace("digits", "..%2f..%2fetc"), b"", "no name has one", 404),
        (
            "unload: dependents are text",
            LOAD.replace("/load", "/unload"),
            b'{"parameters":{"unload_dependents":"no"}}',
            "expected true or false",
            400,
        ),
        ("logging: a number", "/v2/logging", b'{"log_info":1}', "expected true or false", 400),
        ("logging: a file", "/v2/logging", b'{"log_file":"/tmp/log"}', "cannot be changed", 400),
    ):
        yield Malformed(name, http(path, body), words, (status,))


def _compressed() -> Iterator[Malformed]:
    good = gzip.compress(GOOD)
    spaces = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = spaces.compress(bytes(64 << 20)) + spaces.flush()
    for name, coding, body, words, status in (
        ("gzip: a bomb", "gzip", bomb, "decompresses to at least", 413),
        ("gzip: a bomb of members", "gzip", gzip.compress(b"") * 10_100, "too many gzip members", 400),
        ("gzip: cut short", "gzip", good[:-9], "cut short", 400),
        ("gzip: nothing", "gzip", b"", "cut short", 400),
        ("gzip: followed by more", "gzip", good + b"more", "", 400),
        ("gzip: no gzip", "gzip", GOOD, "not valid gzip", 400),
        ("gzip: a wrong checksum", "gzip", good[:-8] + bytes(8), "not valid gzip", 400),
        ("gzip: of nothing", "gzip", gzip.compress(b""), "not valid JSON", 400),
        ("gzip: twice", "gzip", gzip.compress(good), "not valid JSON", 400),
        ("gzip: stated, and a list of codings", "gzip, gzip", good, "not supported", 400),
        ("deflate: a bomb", "deflate", zlib.compress(bytes(64 << 20), 9), "decompresses to at least", 413),
        ("deflate: cut short", "deflate", zlib.compress(GOOD)[:-5], "cut short", 400),
        ("deflate: no deflate", "deflate", b"\xff" * 100, "not valid deflate", 400),
        ("deflate: followed by more", "deflate", zlib.compress(GOOD) + b"more", "followed by more", 400),
        ("deflate: stated, and gzip sent", "deflate", good, "not valid deflate", 400),
        ("a coding that nobody knows", "br", GOOD, "'br' is not supported", 400),
    ):
        yield Malformed(name, http(DIGITS, body, f"Content-Encoding: {coding}"), words, (status,))


def _framing() -> Iterator[Malformed]:
    """Bodies that HTTP itself gets wrong; the connection ends with the answer."""

    def head(*headers: str) -> bytes:
        return "\r\n".join([f"POST {DIGITS} HTTP/1.1", "Host: test", *headers, "", ""]).encode()

    chunked = head("Transfer-Encoding: chunked")
    for name, raw, status in (
        ("chunked: no size", chunked + b"zz\r\n{}\r\n0\r\n\r\n", 400),
        ("chunked: a negative size", chunked + b"-1\r\n{}\r\n0\r\n\r\n", 400),
        ("chunked: a size that overflows", chunked + b"f" * 17 + b"\r\n{}\r\n", 400),
        ("chunked: a chunk longer than stated", chunked + b"1\r\n{}\r\n0\r\n\r\n", 400),
        ("chunked: a broken second chunk", chunked + b"2\r\n{}\r\nq\r\n\r\n", 400),
        ("chunked: of what is no request", chunked + b"2\r\n{}\r\n0\r\n\r\n", 400),
        ("chunked, and a length", head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n", 400),
        ("a coding of the transfer", head("Transfer-Encoding: gzip") + b"0\r\n\r\n", 400),
        ("two lengths", head("Content-Length: 2", "Content-Length: 3") + b"{}", 400),
        ("a length that is no number", head("Content-Length: two") + b"{}", 400),
        ("a length of 200 GB", head("Content-Length: 200000000000"), 413),
        ("a head that does not end", head("X: " + "a" * 40_000)[:-4], 431),
        ("a method that is none", b"BREW / HTTP/1.1\r\nHost: test\r\n\r\n", 400),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ):
        yield Malformed(name, raw, "", (status,))
