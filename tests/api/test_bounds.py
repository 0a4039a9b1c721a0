"""What one client may take from the others: nothing that they notice."""

from __future__ import annotations

import gzip
import json
import threading

import pytest
from served import FakeScript, Served, fake_request, head, tensor

from modelhost.api.heads import MAX_HEAD_BYTES, without_upgrade

pytestmark = pytest.mark.timeout(60)


def states(served: Served) -> dict[str, tuple[str, str]]:
    entries = served.post("/v2/repository/index").json()
    return {entry["name"]: (entry["state"], entry["reason"]) for entry in entries}


# --- upgrades ----------------------------------------------------------------------------------------------


def test_an_offer_of_http2_is_ignored_and_the_request_answered(ort: Served) -> None:
    content = json.dumps(tensor("x", "FP32", [1], [1])).encode()
    answer = ort.exchange(
        head(
            "/v2/models/add/infer",
            f"Content-Length: {len(content)}",
            "Connection: Upgrade, HTTP2-Settings, close",
            "Upgrade: h2c",
        )
        + content
    )
    assert answer.startswith(b"HTTP/1.1 200"), answer


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_no_request_hides_behind_an_upgrade(ort: Served, pieces: int) -> None:
    hidden = head("/memory/cleanup", "Content-Length: 0", "Connection: close")
    request = head("/v2/models/add/infer", f"Content-Length: {len(hidden)}", "Connection: Upgrade", "Upgrade: h2c")
    step = -(-len(request) // pieces)
    with ort.connect() as connection:
        connection.settimeout(1)
        for begin in range(0, len(request), step):
            connection.sendall(request[begin : begin + step])
            ort.settle()
        answer = b""
        try:
            connection.sendall(hidden)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass
    assert b"recovered" not in answer


def test_only_the_upgrade_line_is_taken_out_of_a_head() -> None:
    start = b"POST /x HTTP/1.1\r\nHost: a\r\nUPGRADE : h2c\r\nX-Upgrade: kept\r\n\r\nupgrade: body"
    assert without_upgrade(start) == b"POST /x HTTP/1.1\r\nHost: a\r\nX-Upgrade: kept\r\n\r\nupgrade: body"
    assert without_upgrade(b"\r\nupgrade: unfinished") == b"\r\nupgrade: unfinished"
    for body in (b"upgrade: a body is not looked at", b"UPGRADE"):
        start = b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n" + body
        assert without_upgrade(start) is start


# --- heads and connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [1, 1000])
def test_a_head_without_end_is_refused(ort: Served, lines: int) -> None:
    with ort.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\n")
        try:
            for number in range(lines):
                connection.sendall(b"X-%d: " % number + b"a" * (4 * MAX_HEAD_BYTES // lines) + b"\r\n" * (lines > 1))
            answer = connection.recv(65536)
        except ConnectionError:
            return  # closed before all of it was sent
    assert answer.startswith(b"HTTP/1.1 431 "), answer


def test_a_long_body_in_the_first_segment_is_no_long_head(ort: Served) -> None:
    content = json.dumps(tensor("x", "FP32", [1], [1])).encode().ljust(2 * MAX_HEAD_BYTES)
    request = head("/v2/models/add/infer", f"Content-Length: {len(content)}", "Connection: close")
    assert ort.exchange(request + content).startswith(b"HTTP/1.1 200")


def test_more_connections_than_allowed_are_answered_503(ort: Served) -> None:
    connections = [ort.connect() for _ in range(400)]
    try:
        ort.settle()
        with ort.connect() as one_more:
            one_more.settimeout(5)
            assert one_more.recv(65536).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in connections:
            connection.close()
    ort.settle()
    assert ort.get("/v2/health/live").status_code == 200


# --- bodies --------------------------------------------------------------------------------------------------


def test_an_upload_that_is_announced_and_never_sent_holds_nothing(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    with served.connect() as connection:
        connection.sendall(head("/v2/models/a/infer", f"Content-Length: {served.host.budgets.request_bytes}"))
        served.settle()
        assert served.infer("a").status_code == 200


@pytest.mark.parametrize("sent", [b"", b" "])
def test_a_client_that_pauses_for_too_long_is_answered_timeout(serve_fake, sent: bytes) -> None:
    served = serve_fake({"a": FakeScript()}, server={"read_timeout": 0.2})
    with served.connect() as connection:
        connection.settimeout(5)
        connection.sendall(head("/v2/models/a/infer", "Content-Length: 100") + sent)
        assert connection.recv(100).startswith(b"HTTP/1.1 503")


def test_compressed_requests_are_served_at_once(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    content = gzip.compress(json.dumps(fake_request()).encode())
    requests = [
        served.later(lambda: served.infer("a", content, headers={"Content-Encoding": "gzip"})) for _ in range(16)
    ]
    assert [request.result().text for request in requests if request.result().status_code != 200] == []


@pytest.mark.parametrize(("rows", "clients"), [(80_000, 8), (120_000, 4)])
def test_large_requests_at_once_wait_for_each_other(serve_fake, rows: int, clients: int) -> None:
    served = serve_fake({"a": FakeScript()})
    content = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows], "data": [0.5] * rows}]}
    ).encode()
    requests = [served.later(lambda: served.infer("a", content)) for _ in range(clients)]
    assert [request.result().text for request in requests if request.result().status_code != 200] == []


def test_a_client_that_left_is_no_success(serve_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    served = serve_fake({"a": script})
    content = json.dumps(fake_request()).encode()
    with served.connect() as connection:
        connection.sendall(head("/v2/models/a/infer", f"Content-Length: {len(content)}") + content)
        assert script.run_started.wait(10)
    served.eventually(lambda snapshot: snapshot.in_flight == 0)
    metrics = served.get("/metrics").text
    assert 'outcome="client_gone"' in metrics
    assert 'modelhost_request_seconds_count{outcome="ok"} 0' in metrics


# --- words -----------------------------------------------------------------------------------------------------


def test_unload_while_loading_leaves_the_model_unloaded(serve_fake) -> None:
    script = FakeScript(load_may_end=threading.Event())
    served = serve_fake({"a": script})
    request = served.later(served.infer, "a")
    assert script.load_started.wait(10)
    unload = served.later(served.post, "/v2/repository/models/a/unload")
    served.settle(50)
    script.load_may_end.set()
    assert (request.result().status_code, unload.result().status_code) == (200, 200)
    assert states(served) == {"a": ("UNAVAILABLE", "unloaded")}
    assert served.get("/v2/models/a/ready").status_code == 503
    assert served.infer("a").status_code == 200
    assert served.get("/v2/models/a/ready").status_code == 200


def test_load_reports_no_lease_of_its_own(serve_fake) -> None:
    served = serve_fake({"a": FakeScript()})
    assert served.post("/v2/repository/models/a/load").json()["leases"] == 0


def test_inputs_that_disagree_on_a_shared_dimension_are_the_clients_fault(ort: Served) -> None:
    response = ort.infer(
        "sum",
        {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [2], "data": [1, 2]},
                {"name": "b", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]},
            ]
        },
    )
    assert response.status_code == 400, response.text
    assert (response.json()["tensor"], response.json()["got"]) == ("b", "shape [3]")
