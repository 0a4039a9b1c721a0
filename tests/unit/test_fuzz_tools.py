"""What the fuzzer rests on: seeds and changes keep their framing, are the same again, and answers are judged."""

from __future__ import annotations

import json

import pytest

from benchmarks.fuzz import corpus
from benchmarks.fuzz.check import complaint
from benchmarks.fuzz.corpus import Message, parsed
from benchmarks.fuzz.mutate import Mutator


def test_seeds_are_what_they_say() -> None:
    for file in (corpus.DIRECTORY / "framed").glob("*.http"):
        data = file.read_bytes()
        again = parsed(data).rendered()
        assert again.partition(b"\r\n\r\n")[2] == data.partition(b"\r\n\r\n")[2]
        assert parsed(again) == parsed(data)


def test_a_length_that_is_not_the_bodys_is_no_framed_seed() -> None:
    with pytest.raises(ValueError, match=r"5 bytes of body where \[4\]"):
        parsed(b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n12345")


def test_changed_requests_keep_their_framing() -> None:
    mutator = Mutator(corpus.read(), "1")
    changed = [mutator.framed() for _ in range(2000)]
    for sample in changed:
        head, _, body = sample.data.partition(b"\r\n\r\n")
        first, *headers = head.split(b"\r\n")
        assert first.endswith(b" HTTP/1.1")
        assert first.startswith(sample.method + b" " if sample.method else b"?")
        names = [name.lower() for name, _, _ in (line.partition(b":") for line in headers)]
        if b"transfer-encoding" in names:
            assert b"content-length" not in names
            assert body.endswith(b"0\r\n\r\n")
        elif b"content-length" in names:
            assert names.count(b"content-length") == 1
            (length,) = [line.partition(b": ")[2] for line in headers if line.lower().startswith(b"content-length")]
            assert int(length) == len(body)
        else:
            assert body == b""
    assert len({sample.data for sample in changed}) > 1000


def test_the_same_seed_makes_the_same_samples() -> None:
    one, same, other = (Mutator(corpus.read(), seed) for seed in ("1", "1", "2"))
    first, second, third = ([mutator.framed(), *(mutator.raw() for _ in range(50))] for mutator in (one, same, other))
    assert first == second != third


def test_chunks_carry_the_whole_body() -> None:
    data = Message(b"POST", b"/", (), b"0123456789", chunks=(3, 7, 7, 25)).rendered()
    assert data.endswith(b"\r\n\r\n3\r\n012\r\n4\r\n3456\r\n3\r\n789\r\n0\r\n\r\n")


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("status", "body", "wrong"),
    [
        (200, {}, None),
        (404, {"error": "no", "code": "model_not_found"}, None),
        (503, {"error": "no", "code": "overloaded"}, None),
        (503, {"ready": False}, None),
        (507, {"error": "no", "code": "never_fits"}, None),
        (400, {"detail": "no"}, "without a text"),
        (500, {"error": "no", "code": "internal"}, "status 500, code internal"),
        (500, {"error": "no", "code": "run_failed"}, "status 500, code run_failed"),
        (503, {"error": "no", "code": "internal"}, "status 503, code internal"),
        (400, {"error": "Traceback (most recent call last)", "code": "invalid_request"}, "shows a traceback"),
        (199, {}, "status 199"),
    ],
)
def test_answers_are_judged(status: int, body: object, wrong: str | None) -> None:
    found = complaint(status, JSON, json.dumps(body).encode(), has_body=True)
    assert found is None if wrong is None else wrong in str(found)


def test_a_body_that_is_not_what_it_says_is_wrong() -> None:
    assert "no JSON" in str(complaint(200, JSON, b"{", has_body=True))
    assert complaint(200, JSON, b"", has_body=False) is None
    assert complaint(200, {"content-type": "text/plain"}, b"{", has_body=True) is None
