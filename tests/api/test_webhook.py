"""Alerts from a served host to a receiver: bodies, signatures, redirects, TLS; and requests wait for none of it."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from served import MB, Served, error_of, fake_host, serve

from modelhost.alerts.webhook import SIGNATURE, Webhook, sign
from modelhost.config import AlertsSettings
from modelhost.runtime.fake import FakeScript

SECRET = b"sixteen or more bytes"


class Receiver:
    """Takes what is posted; answers `status`, when `may_answer`."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.taken: list[tuple[str, dict[str, str], bytes]] = []
        self.status, self.headers = 200, dict[str, str]()
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.taken.append((self.path, dict(self.headers), body))
                receiver.may_answer.wait(10)
                self.send_response(receiver.status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"127.0.0.1:{self.server.server_port}"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in list(self.taken)]


@contextmanager
def receiving(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    receiver = Receiver(context)
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.may_answer.set()
        receiver.server.shutdown()
        thread.join()
        receiver.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@contextmanager
def alerting(directory: Path, scripts: dict[str, FakeScript], **alerts: Any) -> Iterator[Served]:
    host = fake_host(directory, scripts)
    host.settings = host.settings.model_copy(update={"alerts": AlertsSettings(**alerts)})
    with serve(host) as served:
        yield served


def until(holds: Callable[[], Any]) -> Any:
    end = time.monotonic() + 10
    while not (found := holds()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
    return found


def metric(served: Served, name: str) -> float:
    (line,) = [line for line in served.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_refusals_reach_the_webhook_signed_once_with_a_count_and_the_rest_at_the_end(
    tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secret").chmod(0o600)
    with alerting(
        tmp_path / "models",
        {"giant": FakeScript(resident_bytes=500 * MB)},
        webhook_url=f"http://user:p%40ss@{receiver.address}/hook?token=1",
        secret_file=tmp_path / "secret",
    ) as served:
        error_of(served.infer("giant"), 507)
        until(lambda: receiver.taken)
        for _ in range(3):
            error_of(served.infer("giant"), 507)
        assert metric(served, "modelhost_alerts_waiting") == 0
    path, headers, body = receiver.taken[0]
    assert path == "/hook?token=1"
    assert headers[SIGNATURE] == sign(body, SECRET)
    assert headers["Authorization"] == "Basic dXNlcjpwQHNz"
    assert headers["Content-Type"] == "application/json"
    told = [found for found in receiver.bodies() if found["kind"] == "refusals"]
    assert [(found["subject"], found["count"]) for found in told] == [("never_fits", 1), ("never_fits", 3)]
    assert len({found["id"] for found in receiver.bodies()}) == len(receiver.taken)
    first = told[0]
    assert first.keys() == {
        "schema",
        "id",
        "kind",
        "subject",
        "severity",
        "state",
        "text",
        "at",
        "first_at",
        "count",
        "models",
        "details",
        "host",
    }
    assert first["host"].keys() == {
        "name",
        "version",
        "worker",
        "ready",
        "level",
        "usage_bytes",
        "limit_bytes",
        "conditions",
    }
    assert first["text"] == "requests are refused: never_fits"


def test_requests_do_not_wait_for_a_webhook_that_does_not_answer(tmp_path: Path, receiver: Receiver) -> None:
    receiver.may_answer.clear()
    with alerting(
        tmp_path,
        {"a": FakeScript(), "giant": FakeScript(resident_bytes=500 * MB)},
        webhook_url=f"http://{receiver.address}/",
        min_interval=0,
        max_waiting=2,
        drain_timeout="10ms",
    ) as served:
        for _ in range(8):
            error_of(served.infer("giant"), 507)
            served.on_loop(served.app.infer.inference.metrics.alerts.look)
        until(lambda: receiver.taken)
        assert served.infer("a").status_code == 200
        text = served.get("/metrics").text
        assert 'modelhost_alerts_total{kind="refusals"} 8' in text
        assert 'modelhost_alerts_dropped_total{reason="queue_full"} 0' not in text
        assert metric(served, "modelhost_alerts_waiting") == 2


@pytest.mark.parametrize(
    ("status", "headers", "error", "again"),
    [
        (204, {}, "", False),
        (302, {"Location": "http://127.0.0.1:1/elsewhere"}, "it answered 302, and redirects are not followed", False),
        (400, {}, "it answered 400", False),
        (429, {"Retry-After": "7"}, "it answered 429", True),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "it answered 503", True),
    ],
)
def test_what_an_answer_means(
    receiver: Receiver, status: int, headers: dict[str, str], error: str, again: bool
) -> None:
    receiver.status, receiver.headers = status, headers
    outcome = Webhook(f"http://{receiver.address}", secret=None, timeout_s=5).post(b"{}")
    assert (outcome.is_done, outcome.error, outcome.may_try_again) == (not error, error, again)
    assert outcome.retry_after_s == (7 if status == 429 else 0)
    assert len(receiver.taken) == 1, "nothing is followed"
    assert SIGNATURE not in receiver.taken[0][1]


def test_who_does_not_answer_or_is_not_there_may_be_asked_again(receiver: Receiver) -> None:
    receiver.may_answer.clear()
    late = Webhook(f"http://{receiver.address}/secret-path", secret=None, timeout_s=0.05)
    assert late.post(b"{}").error == "it did not answer in time"
    assert late.shown == f"http://{receiver.address}"
    nobody = Webhook("http://127.0.0.1:1/x", secret=None, timeout_s=5).post(b"{}")
    assert (nobody.is_done, nobody.may_try_again, nobody.error) == (False, True, "Connection refused")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificate, is missing")
def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    with receiving(context) as receiver:
        unknown = Webhook(f"https://{receiver.address}/", secret=None, timeout_s=5).post(b"{}")
        assert (unknown.is_done, unknown.may_try_again) == (False, False)
        assert unknown.error.startswith("its certificate is not trusted")
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        assert Webhook(f"https://{receiver.address}/", secret=None, timeout_s=5).post(b"{}").is_done
        assert len(receiver.taken) == 1
