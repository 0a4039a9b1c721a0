"""The end of a process while its clients are still at it."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

from host_process import running_host

HALF = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n" + b" " * 50


def test_a_body_that_never_comes_holds_up_the_end_only_for_so_long(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELHOST_SERVER_SHUTDOWN_TIMEOUT_S="1") as host:
        address, port = host.address.split(":")
        with (
            socket.create_connection((address, int(port)), timeout=20) as sending,
            socket.create_connection((address, int(port)), timeout=20) as idle,
        ):
            sending.sendall(HALF)
            idle.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += idle.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")  # so the body's beginning has been read
            host.process.send_signal(signal.SIGTERM)
            assert idle.recv(1000) == b""
            answer = b"".join(iter(lambda: sending.recv(1000), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nconnection: close" in head
        assert json.loads(body)["code"] == "closed"
        assert host.process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in host.log
