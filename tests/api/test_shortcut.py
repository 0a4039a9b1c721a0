"""Which requests are answered on the socket, that they are answered as the application does, and what that rests on."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import re
from typing import Any

import httptools
import httpx
import pytest
from served import Served, fake_request, head
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState
from wire import counting, infer, nothing_held, post, quick_script, warm, wire

from modelhost.api.connection import Connection
from modelhost.api.heads import target_of
from modelhost.api.protocol import HttpProtocol

pytestmark = pytest.mark.timeout(60)

BODY = json.dumps(fake_request()).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
PATH = "/v2/models/a/infer"


# --- what it rests on --------------------------------------------------------------------------------------


def test_the_attributes_of_the_servers_protocol_are_there(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    with wire(served) as connection:
        served.eventually(lambda _: len(served.server.server_state.connections) == 1)
        (protocol,) = served.server.server_state.connections
        assert isinstance(protocol, HttpToolsProtocol)
        assert protocol.connections is served.server.server_state.connections
        assert protocol.tasks is served.server.server_state.tasks
        assert protocol.server_state is served.server.server_state
        assert isinstance(protocol.loop, asyncio.AbstractEventLoop)
        assert isinstance(protocol.flow, FlowControl)
        assert protocol.flow.write_paused is False
        assert len(protocol.pipeline) == 0
        assert protocol.cycle is None
        assert protocol.expect_100_continue is False
        assert protocol.timeout_keep_alive_task is None
        assert protocol.timeout_keep_alive == served.server.config.timeout_keep_alive
        assert isinstance(protocol.parser, httptools.HttpRequestParser)
        connection.send(head("/v2", method="GET"))
        assert connection.must().status == 200
        served.settle()
        assert isinstance(protocol.cycle, RequestResponseCycle)
        assert (protocol.cycle.response_complete, protocol.cycle.response_started) == (True, True)
        assert (protocol.cycle.keep_alive, protocol.cycle.disconnected) == (True, False)
        assert isinstance(protocol.cycle.message_event, asyncio.Event)


#: What exchanges, the receiver of large bodies, the door, streams and the end of the server call.
OWN = {"send", "received", "granted", "refused", "note_piece", "idle_s", "slow_s", "spare", "end_lingering"} | {
    "has_unread",
}


def test_every_callback_of_ours_is_one_of_the_servers_protocol() -> None:
    named = vars(Connection) | vars(HttpProtocol)
    ours = {name for name in named if not name.startswith("_") and name not in OWN and inspect.isfunction(named[name])}
    assert ours == {
        "connection_made",
        "connection_lost",
        "data_received",
        "on_message_begin",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "on_response_complete",
        "resume_writing",
    }
    for name in ours:
        theirs = inspect.signature(getattr(HttpToolsProtocol, name))
        assert list(inspect.signature(getattr(HttpProtocol, name)).parameters) == list(theirs.parameters), name


def test_a_pipelined_request_waits_in_the_servers_queue_behind_an_exchange() -> None:
    source = inspect.getsource(HttpToolsProtocol.on_headers_complete)
    assert "self.pipeline.appendleft((self.cycle, app))" in source
    assert "existing_cycle is None or existing_cycle.response_complete" in source
    assert "self.pipeline.pop()" in inspect.getsource(HttpToolsProtocol.on_response_complete)
    shutdown = inspect.getsource(HttpToolsProtocol.shutdown)
    assert "self.cycle.keep_alive = False" in shutdown
    assert "self.cycle.response_complete" in shutdown


def test_the_servers_state_has_what_answers_need() -> None:
    state = ServerState()
    assert (state.total_requests, state.default_headers, state.tasks, state.connections) == (0, [], set(), set())
    # What our server sets in its place, and no more: answers of uvicorn's own have it from there too.
    assert "default_headers = date_header + self.config.encoded_headers" in inspect.getsource(Server.on_tick)


def test_the_parser_says_what_is_asked_of_it() -> None:
    class Seen:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def on_message_begin(self) -> None:
            self.calls.append("begin")

        def on_url(self, url: bytes) -> None:
            self.calls.append(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self.calls.append((name, value))

        def on_headers_complete(self) -> None:
            self.calls.append((parser.get_method(), parser.get_http_version(), parser.should_keep_alive()))

        def on_body(self, body: bytes) -> None:
            # When the body comes the head can still be asked for: a request is handed over then.
            self.calls.append((body, parser.get_method(), parser.get_http_version(), parser.should_keep_alive()))

        def on_message_complete(self) -> None:
            self.calls.append("complete")

    seen = Seen()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(b"POST /a HTTP/1.1\r\nEmpty:\r\nContent-Length: 2\r\nConnection: close\r\n\r\nxy")
    assert seen.calls == [
        "begin",
        b"/a",
        (b"Empty", b""),
        (b"Content-Length", b"2"),
        (b"Connection", b"close"),
        (b"POST", "1.1", False),
        (b"xy", b"POST", "1.1", False),
        "complete",
    ]
    assert issubclass(httptools.HttpParserCallbackError, httptools.HttpParserError)
    assert issubclass(httptools.HttpParserInvalidURLError, httptools.HttpParserError)


# --- which way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(PATH, BODY),
        post(PATH + "?a=b&c=%2F", BODY),
        post("/v2/models/%61/infer", BODY),
        post("/v2/models/a/versions/1/infer", BODY),
        post(PATH, BODY, "Accept-Encoding: gzip", f"Inference-Header-Content-Length: {len(BODY)}"),
        post(PATH, BODY, "Connection: keep-alive", "X-Empty:", "X-Empty:"),
        post(PATH, BODY).replace(b"Content-Length: ", b"content-LENGTH: 00"),
        post(PATH, BODY.ljust(70_000)),
        post("/v2/models/nowhere/infer", BODY),
        post(PATH, b""),
    ],
)
def test_a_request_of_stated_length_is_answered_on_the_socket(serve_fake, request_bytes: bytes) -> None:
    served = serve_fake({"a": quick_script()})
    with counting(served) as ways, wire(served, request_bytes) as connection:
        first = connection.must()
        connection.send(request_bytes)
        assert connection.must().status == first.status
        assert (ways.socket, ways.application) == (2, 0)
    nothing_held(served)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (head(PATH, "Transfer-Encoding: chunked") + CHUNKED, 200),
        (post(PATH, BODY, "Expect: 100-continue"), 100),
        (post(PATH, gzip.compress(BODY), "Content-Encoding: gzip"), 200),
        (post(PATH, BODY, "Content-Encoding: identity"), 200),
        (post(PATH, BODY).replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
        (post(PATH, BODY, f"Inference-Header-Content-Length: {len(BODY)}", "inference-header-content-length: 1"), 200),
        (post(PATH, BODY, "Accept-Encoding: gzip", "Accept-Encoding: identity;q=0"), 200),
        (post("/v2/models/a/infer#part", BODY), 200),
        (post("http://test/v2/models/a/infer", BODY), 200),
        (head(PATH), 400),
        (head(PATH, f"Content-Length: {10**17}"), 413),
        (head(PATH, f"Content-Length: {10**18}"), 413),
    ],
)
def test_an_unusual_inference_request_is_answered_by_the_application(
    serve_fake, request_bytes: bytes, status: int
) -> None:
    served = serve_fake({"a": quick_script()})
    with counting(served) as ways, wire(served, request_bytes) as connection:
        answer = connection.must()
        assert answer.status == status, answer.body
        if status == 100:
            assert connection.must().status == 200
        assert (ways.socket, ways.application) == (0, 1)
    nothing_held(served)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/v2/models/a%2Fb/infer", BODY), 404),
        (post("/v2/models/a%2finfer", BODY), 404),
        (post("/v2/models/a#b/infer", BODY), 405),
        (post("/v2/models//infer", BODY), 404),
        (post("/v2/models/a/versions//infer", BODY), 404),
        (head(PATH, method="GET"), 405),
        (head(PATH, method="HEAD"), 405),
        (head(PATH, method="OPTIONS"), 405),
        (post(PATH, BODY).replace(b"POST", b"PUT"), 405),
        (post("/v2/repository/index", b""), 200),
        (head("/v2", method="GET"), 200),
    ],
)
def test_what_is_no_inference_request_is_for_the_framework(serve_fake, request_bytes: bytes, status: int) -> None:
    served = serve_fake({"a": quick_script()})
    with counting(served) as ways, wire(served, request_bytes) as connection:
        answer = connection.socket.recv(65536)
        assert answer.split(b" ")[1] == b"%d" % status, answer
        assert (ways.socket, ways.application) == (0, 0)


@pytest.mark.parametrize(
    "head_line",
    [
        f"Content-Length: {len(BODY)}\r\nContent-Length: {len(BODY)}",
        f"Content-Length: {len(BODY)}\r\nTransfer-Encoding: chunked",
        "Content-Length: +2",
        "Content-Length: -1",
        "Content-Length: 2, 2",
        "Content-Length: 0x2",
        "Content-Length: 99999999999999999999",
    ],
)
def test_a_length_that_is_none_is_refused_and_the_connection_ends(serve_fake, head_line: str) -> None:
    served = serve_fake({"a": quick_script()})
    with counting(served) as ways, wire(served, head(PATH, head_line) + BODY) as connection:
        (answer,) = connection.answers()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert ways.socket == 0


def test_a_request_that_may_not_be_waited_for_takes_no_coroutine(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    with counting(served) as ways:
        warm(served, "a", runs=1)
        assert (ways.socket, ways.quick) == (1, 0)  # it was not loaded
        warm(served, "a", runs=8)
        assert (ways.socket, ways.quick, ways.application) == (9, 8, 0)


def test_the_targets_that_are_remembered_are_bounded(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    warm(served, "a")
    targets = served.server.config.http_protocol_class._targets
    targets.clear()
    for number in range(1100):
        served.http.post(f"{PATH}?{number}", content=b"")
    assert 0 < len(targets) <= 1024
    served.http.post(f"{PATH}?{'a' * 5000}", content=b"")
    assert max(map(len, targets)) <= 512


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (b"/v2/models/a/infer", ("a", None)),
        (b"/v2/models/a/infer?x=%2F", ("a", None)),
        (b"/v2/models/a/versions/3/infer", ("a", "3")),
        (b"/v2/models/gr%C3%B6%C3%9Fe%20%26/infer", ("größe &", None)),
        (b"/v2/models/%2561/infer", ("%61", None)),
        (b"/v2/models/..%2Fa/infer", None),
        (b"/v2/models/a#b/infer", None),
        (b"/v2/models/a/infer/", None),
        (b"/v2/models/a/ready", None),
        (b"/V2/models/a/infer", None),
    ],
)
def test_a_target_is_read_as_the_application_reads_it(url: bytes, target: Any) -> None:
    assert target_of(url) == target


# --- the same answers ----------------------------------------------------------------------------------------

#: The client would ask for compression by itself.
ASKS_FOR_NOTHING = {"Accept-Encoding": "", "X-Request-Id": "the-same"}
X = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
RAW = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
BINARY = {"parameters": {"binary_data_output": True}}


def _raw(text: Any, raw: bytes = b"\0\0\x80?\0\0\0@") -> tuple[bytes, dict[str, str]]:
    body = json.dumps(text).encode()
    return body + raw, {"Inference-Header-Content-Length": str(len(body))}


CASES: list[tuple[str, bytes, dict[str, str]]] = [
    (PATH, json.dumps(body).encode(), headers)
    for body, headers in [
        ({"inputs": [X]}, {}),
        ({"inputs": [X], "id": 'größe "1" \u2028'}, {}),
        ({"inputs": [X], "id": ""}, {}),
        ({"inputs": [X], "id": 7}, {}),
        ({"inputs": [X]} | BINARY, {}),
        ({"inputs": [X], "outputs": [{"name": "y"}]}, {}),
        ({"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, {}),
        ({"inputs": [X], "outputs": [{"name": "z"}]}, {}),
        ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, {}),
        ({"inputs": [X], "outputs": []}, {}),
        ({"inputs": [X], "parameters": {"timeout": 1}}, {}),
        ({"inputs": [X], "parameters": {"timeout": 10_000_000}}, {}),
        ({"inputs": [X], "parameters": {"timeout": "soon"}}, {}),
        ({"inputs": [X], "parameters": None, "unknown": [1]}, {}),
        ({"inputs": []}, {}),
        ({"inputs": [X, X]}, {}),
        ({"inputs": [X | {"name": "w"}]}, {}),
        ({"inputs": [X | {"datatype": "INT64"}]}, {}),
        ({"inputs": [X | {"shape": [3]}]}, {}),
        ({"inputs": [X | {"shape": [2, 1]}]}, {}),
        ({"inputs": [X | {"shape": [-2]}]}, {}),
        ({"inputs": [X | {"shape": [2**62]}]}, {}),
        ({"inputs": [X | {"data": [1, "2"]}]}, {}),
        ({"inputs": [X | {"data": [1, True]}]}, {}),
        ({"inputs": [X | {"data": [1, 1e39]}]}, {}),
        ({"inputs": [X | {"data": [[1], [2]]}]}, {}),
        ({"inputs": [X | {"shape": [0], "data": []}]}, {}),
        ({"inputs": [X | {"shape": [500], "data": [0.25] * 500}]}, {"Accept-Encoding": "gzip, deflate, br"}),
        ({"inputs": [X | {"shape": [500], "data": [0.25] * 500}]}, {"Accept-Encoding": "deflate"}),
        ({"inputs": [X | {"shape": [500], "data": [0.25] * 500}]}, {"Accept-Encoding": "gzip;q=0"}),
        ({"inputs": [X | {"shape": [50_000], "data": [0.25] * 50_000}]}, {"Accept-Encoding": "gzip, deflate"}),
        ({"inputs": [X]}, {"Inference-Header-Content-Length": "99999"}),
        ({"inputs": [X]}, {"Inference-Header-Content-Length": "-1"}),
        ({"inputs": [X]}, {"Inference-Header-Content-Length": "9" * 5000}),
        ({"inputs": [X]}, {"Inference-Header-Content-Length": ""}),
    ]
] + [
    (PATH, b"", {}),
    (PATH, b"{", {}),
    (PATH, b"[1]", {}),
    (PATH, b"\xff\xfe", {}),
    (PATH, b'{"inputs": NaN}', {}),
    (PATH, b"[" * 50_000, {}),
    (PATH, *_raw({"inputs": [RAW]} | BINARY)),
    (PATH, *_raw({"inputs": [RAW]})),
    (PATH, *_raw({"inputs": [RAW]}, b"\0\0\x80\x7f\0\0\0@")),  # infinity
    (PATH, *_raw({"inputs": [RAW]}, b"1234567")),
    (PATH, *_raw({"inputs": [RAW]}, b"123456789")),
    (PATH, b"\0\0\x80?\0\0\0@", {"Inference-Header-Content-Length": "0"}),
    (PATH, b"\0\0\x80?\0\0\0", {"Inference-Header-Content-Length": "0"}),
    (PATH, b"\0" * 400_000, {"Inference-Header-Content-Length": "0", "Accept-Encoding": "gzip"}),
    (PATH, BODY.ljust(100_000), {"Inference-Header-Content-Length": "9" * 5000}),
    ("/v2/models/a/versions/1/infer", BODY, {}),
    ("/v2/models/a/versions/2/infer", BODY, {}),
    ("/v2/models/nowhere/infer", BODY, {}),
    ("/v2/models/bad/infer", BODY, {}),
    ("/v2/models/bug/infer", BODY, {}),
    ("/v2/models/hopeless/infer", BODY, {}),
]


def _comparable(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = [(name, value) for name, value in answer.headers.multi_items() if name != "date"]
    if answer.status_code < 500:
        return answer.status_code, headers, answer.content
    # How long it waited, and how much memory was free, are measurements.
    headers = [header for header in headers if header[0] != "content-length"]
    return answer.status_code, headers, re.sub(rb"[0-9.]+", b"0", answer.content)


def test_an_answer_is_the_same_on_the_socket_and_from_the_application(serve_fake) -> None:
    served: Served = serve_fake(
        {
            "a": quick_script(),
            "bad": quick_script(load_error="torn"),
            "bug": quick_script(run_error=RuntimeError("a bug")),
            "hopeless": quick_script(resident_bytes=400 << 20),
        }
    )

    async def ask_app() -> list[tuple[int, list[tuple[str, str]], bytes]]:
        transport = httpx.ASGITransport(served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=ASKS_FOR_NOTHING) as client:
            return [_comparable(await client.post(path, content=body, headers=more)) for path, body, more in CASES]

    for _ in range(3):  # not loaded, then on threads, then in place
        expected = asyncio.run_coroutine_threadsafe(ask_app(), served.loop).result(30)
        with counting(served) as ways:
            answers = [
                _comparable(served.http.post(path, content=body, headers=ASKS_FOR_NOTHING | more))
                for path, body, more in CASES
            ]
        assert (ways.socket, ways.application) == (len(CASES), 0)
        for case, answer, wanted in zip(CASES, answers, expected, strict=True):
            assert answer == wanted, (case[0], case[1][:300], case[2])
    assert len({answer[0] for answer in expected}) >= 5
    nothing_held(served)


def test_answers_have_the_servers_own_headers_and_in_its_order(serve_fake) -> None:
    served = serve_fake({"a": quick_script()})
    warm(served, "a")
    served.eventually(lambda _: bool(served.server.server_state.default_headers))
    with wire(served, infer("a"), head("/v2", method="GET"), infer("a", "Connection: close")) as connection:
        quick, plain, last = connection.answers()
    assert [name for name, _ in plain.headers] == ["date", "content-length", "content-type"]
    assert [name for name, _ in quick.headers] == ["date", "content-type", "content-length"]
    assert last.headers[-1] == ("connection", "close")
    with wire(served, b"nonsense\r\n\r\n") as connection:
        (refused,) = connection.answers()
    assert [name for name, _ in refused.headers] == ["date", "content-type", "content-length", "connection"]
    assert refused.json["code"] == "invalid_request"
