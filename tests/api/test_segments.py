"""Any requests, cut anywhere, on one connection: the answers are those that each would have by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Served, fake_host, fake_request, head, serve
from wire import Reply, infer, infer_binary, nothing_held, post, quick_script, warm, wire

pytestmark = pytest.mark.timeout(120)

BODY = json.dumps(fake_request()).encode()
CHUNKED = head("/v2/models/a/infer", "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)

#: Each with what its answer has in common whenever it is asked, and whether it ends the connection.
KINDS: list[tuple[bytes, bool]] = [
    (infer("a", value=1), False),
    (infer("a", value=7), False),  # the same head
    (post("/v2/models/a/infer", b"{".ljust(len(infer("a").partition(b"\r\n\r\n")[2]))), False),  # the same again
    (infer("a", value=2, id="two"), False),
    (infer("b", value=3, size=70_000), False),
    (infer_binary("a", np.arange(30_000, dtype="<f4")), False),
    (infer("a", "Accept-Encoding: gzip", value=4), False),
    (post("/v2/models/a/versions/1/infer?x=1", BODY), False),
    (post("/v2/models/%61/infer", BODY), False),
    (post("/v2/models/nowhere/infer", BODY), False),
    (post("/v2/models/a/infer", b'{"inputs": '), False),
    (post("/v2/models/a/infer", b""), False),
    (post("/v2/models/a/infer", BODY, "Content-Encoding: identity"), False),
    (post("/v1/models/a:predict", b'{"instances": [1, 2]}'), False),
    (CHUNKED, False),
    (head("/v2/health/live", method="GET"), False),
    (head("/v2/models/a/infer", method="GET"), False),
    (infer("a", "Connection: close", value=5), True),
    (infer("a", value=6).replace(b"HTTP/1.1", b"HTTP/1.0"), True),
    (head("/v2", "Connection: close", method="GET"), True),
    (b"nonsense\r\n\r\n", True),
    (head("/v2/models/a/infer", "Content-Length: 1, 2"), True),
]


def comparable(answer: Reply) -> tuple[int, dict[str, str], bytes]:
    return (
        answer.status,
        {name: value for name, value in answer.headers if name not in ("date", "x-request-id")},
        answer.body,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    scripts = {"a": quick_script(), "b": quick_script()}
    with serve(fake_host(Path(tmp_path_factory.mktemp("models")), scripts)) as served:
        warm(served, "a", "b")
        yield served
        nothing_held(served)
        assert not any(script.violations for script in scripts.values())


@pytest.fixture(scope="module")
def alone(served: Served) -> list[tuple[int, dict[str, str], bytes]]:
    """The answers to all kinds, each on a connection of its own."""
    answers = []
    for request, _ in KINDS:
        with wire(served, request) as connection:
            answers.append(comparable(connection.must()))
    assert {status for status, _, _ in answers} == {200, 400, 404, 405}
    return answers


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[int], list[int], int | None]:
    """Kinds of requests, where their bytes are cut, and after how many bytes the client leaves."""
    open_kinds = [index for index, (_, ends) in enumerate(KINDS) if not ends]
    kinds = draw(st.lists(st.sampled_from(open_kinds), max_size=8))
    kinds += draw(st.lists(st.sampled_from(range(len(KINDS))), min_size=1, max_size=2))
    size = sum(len(KINDS[kind][0]) for kind in kinds)
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=12, unique=True)))
    return kinds, cuts, draw(st.none() | st.integers(0, size))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(conversation=conversations(), turns=st.integers(0, 2))
def test_any_conversation_has_the_answers_of_its_requests(
    served: Served, alone: list[Any], conversation: tuple[list[int], list[int], int | None], turns: int
) -> None:
    kinds, cuts, leaves_after = conversation
    stream = b"".join(KINDS[kind][0] for kind in kinds)[:leaves_after]
    with wire(served) as connection:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            try:
                connection.send(stream[begin:end])
            except OSError:
                break  # closed by then, as it should be
            served.settle(turns)
        if leaves_after is not None:
            return  # at any moment; what it leaves behind is looked at in the end
        for kind in kinds:
            answer = connection.answer()
            assert answer is not None, f"no answer to {KINDS[kind][0][:100]!r}"
            expected = alone[kind]
            assert comparable(answer) == expected, KINDS[kind][0][:200]
            if KINDS[kind][1]:
                assert connection.answer() is None
                return
        connection.send(KINDS[0][0])
        assert comparable(connection.must()) == alone[0]
