"""Requests whose heads are those of others before them, byte for byte: the parser sees nothing of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import Served, head
from wire import Wire, counting, infer, infer_binary, nothing_held, numbers, quick_script, warm, wire

from modelhost.api import heads
from modelhost.api.protocol import HttpProtocol

pytestmark = pytest.mark.timeout(60)

LIVE = head("/v2/health/live", method="GET")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The targets of the requests that the parser has seen."""
    seen: list[bytes] = []
    on_url = HttpProtocol.on_url

    def note(self: HttpProtocol, url: bytes) -> None:
        seen.append(url)
        on_url(self, url)

    monkeypatch.setattr(HttpProtocol, "on_url", note)
    return seen


@pytest.fixture
def served(serve_fake: Any, parsed: list[bytes]) -> Iterator[Served]:
    served = serve_fake({"a": quick_script(), "b": quick_script()})
    warm(served, "a", "b")
    parsed.clear()
    yield served
    nothing_held(served)


def asked(connection: Wire, *parts: bytes, served: Served) -> list[float]:
    """Sends a request in parts that the server reads one by one; returns what its model answers."""
    for part in parts:
        connection.send(part)
        served.settle()
    return connection.must().data


def test_the_parser_sees_each_head_once_whatever_the_connection(served: Served, parsed: list[bytes]) -> None:
    with wire(served) as one, wire(served) as other:
        for number in range(9):
            assert asked(one, infer("a", value=number), served=served) == [2 * number]
            assert asked(other, infer("b", value=number), served=served) == [2 * number]
    assert parsed == [b"/v2/models/a/infer", b"/v2/models/b/infer"]


def test_raw_tensors_too(served: Served, parsed: list[bytes]) -> None:
    with wire(served) as connection:
        for number in range(3):
            connection.send(infer_binary("a", numbers(64) + number))
            assert connection.must().raw.tolist() == (2 * (numbers(64) + number)).tolist()
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "headers",
    [
        ["Connection: close"],
        ["Authorization: Bearer secret"],
        ["X-Request-Id: 17"],
        ["Upgrade: h2c"],
        ["X-Long: " + "x" * 1024],
        ["Expect: 100-continue"],
        ["Content-Encoding: identity"],
    ],
)
def test_what_is_not_to_be_remembered_is_not(served: Served, parsed: list[bytes], headers: list[str]) -> None:
    for _ in range(2):
        with wire(served, infer("a", *headers)) as connection:
            while (answer := connection.must()).status == 100:
                pass
            assert answer.data == [2]
    assert len(parsed) == 2


def test_other_requests_on_the_connection_are_parsed_as_ever(served: Served, parsed: list[bytes]) -> None:
    with wire(served) as connection:
        for _ in range(3):
            assert asked(connection, infer("a"), served=served) == [2]
            connection.send(LIVE)
            assert connection.must().json == {"live": True}
        assert asked(connection, infer("a"), served=served) == [2]
        connection.send(b"nonsense\r\n\r\n")
        assert connection.must().status == 400
        assert connection.answer() is None
    assert parsed == [b"/v2/models/a/infer", *[b"/v2/health/live"] * 3]


def test_a_body_that_is_not_all_there_is_received_as_ever(served: Served) -> None:
    request = infer("a", value=3)
    with wire(served) as connection:
        assert asked(connection, request, served=served) == [6]
        for cut in (1, request.find(b"\r\n\r\n") + 2, request.find(b"\r\n\r\n") + 4, len(request) - 1):
            assert asked(connection, request[:cut], request[cut:], served=served) == [6]
        connection.send(request * 3 + LIVE + request[:50])
        assert [connection.must().data for _ in range(3)] == [[6]] * 3
        assert connection.must().json == {"live": True}
        assert asked(connection, request[50:], served=served) == [6]
        assert asked(connection, request, served=served) == [6]


def test_a_head_that_ends_otherwise_than_it_seems_is_not_remembered(served: Served) -> None:
    """Its body is as long as it says, but two requests share the segment: what is behind the first is no body."""
    first = infer("a", value=4)
    body_bytes = len(first.partition(b"\r\n\r\n")[2])
    for size in range(body_bytes, 2 * len(first)):  # one of which is what is behind the first head
        second = infer("b", value=5, size=size)
        for _ in range(2):
            with wire(served) as connection:
                connection.send(first + second[: size - body_bytes])
                assert connection.must().data == [8]
                connection.send(second[size - body_bytes :])
                assert connection.must().data == [10]


def test_only_so_many_are_remembered(served: Served, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_HEADS_KEPT", 4)
    with wire(served) as connection:
        for number in range(9):
            assert asked(connection, infer("a", f"X-Number: {number}"), served=served) == [2]
        assert len(parsed) == 9
        assert asked(connection, infer("a", "X-Number: 8"), served=served) == [2]
        assert asked(connection, infer("a", "X-Number: 0"), served=served) == [2]
        assert len(parsed) == 10


def test_a_host_that_accepts_no_more_has_the_application_say_so(served: Served, parsed: list[bytes]) -> None:
    with wire(served) as connection, counting(served) as ways:
        assert asked(connection, infer("a"), served=served) == [2]
        served.on_loop(lambda: setattr(served.host, "is_accepting", False))
        for _ in range(2):
            connection.send(infer("a"))
            connection.must()
        served.on_loop(lambda: setattr(served.host, "is_accepting", True))
        assert asked(connection, infer("a"), served=served) == [2]
        assert (ways.socket, ways.application, len(parsed)) == (2, 2, 3)
