"""Malformed requests of every kind against a real process: a clear 4xx, soon, and no growth in memory."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest
from host_process import MODELS, HostProcess, running_host
from malformed import DIGITS, GOOD, Malformed, all_malformed, http
from sizes import FULL

from modelhost.testing import take_snapshot

TABLE = list(all_malformed())
MB = 1 << 20
ROUNDS = 100 if FULL else 20


class Client:
    """One connection, made again where the host has ended it."""

    def __init__(self, host: HostProcess) -> None:
        address, port = host.address.split(":")
        self._target = (address, int(port))
        self._connection: socket.socket | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Sends a request as it is and returns the status and the body of its answer."""
        if self._connection is None:
            self._connection = socket.create_connection(self._target, timeout=30)
            self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # answered and closed before all was sent; the answer is there
            self._connection.sendall(raw)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, body = received.split(b"\r\n\r\n", 1)
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None, head
        while len(body) < int(length[1]):
            body += self._receive()
        if b"connection: close" in head.lower() or head.startswith(b"HTTP/1.1 413"):
            self._close()
        return int(head.split()[1]), body

    def _receive(self) -> bytes:
        assert self._connection is not None
        data = self._connection.recv(65536)
        assert data, "the connection ended without an answer"
        return data

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host of its own: what others leave in it would be measured too."""
    with running_host(tmp_path_factory.mktemp("host"), MODELS, "--memory-limit", "400MB") as running:
        yield running


def committed_bytes(host: HostProcess) -> int:
    return take_snapshot(host.process.pid, exact=True).committed_bytes


def test_the_table_has_every_kind() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 150


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_it_is_refused_and_the_error_says_why(host: HostProcess, row: Malformed) -> None:
    with Client(host) as client:
        status, body = client.ask(row.raw)
        assert status in row.statuses, body
        error = json.loads(body)
        assert error["code"]
        assert row.words in error["error"]
        assert 0 < len(error["error"]) < 2_000
    with Client(host) as client:
        assert client.ask(http(DIGITS, GOOD))[0] == 200


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
@pytest.mark.timeout(600)
def test_thousands_of_them_are_refused_soon_and_leave_nothing_behind(host: HostProcess) -> None:
    took_s: dict[str, list[float]] = {row.name: [] for row in TABLE}
    with Client(host) as client:
        for _ in range(10):
            for row in TABLE:
                client.ask(row.raw)
        client.ask(http("/memory/cleanup", b""))
        before = committed_bytes(host)
        for _ in range(ROUNDS):
            for row in TABLE:
                began = time.perf_counter()
                client.ask(row.raw)
                took_s[row.name].append(time.perf_counter() - began)
        after = committed_bytes(host)
        client.ask(http("/memory/cleanup", b""))
        at_rest = committed_bytes(host)
    medians = {name: statistics.median(times) * 1e3 for name, times in took_s.items()}
    median, slowest = statistics.median(medians.values()), max(medians, key=medians.__getitem__)
    print(
        f"{ROUNDS * len(TABLE)} requests: {(after - before) / MB:+.2f} MB, at rest {(at_rest - before) / MB:+.2f} MB; "
        f"median {median:.1f} ms, the slowest {medians[slowest]:.1f} ms ({slowest})"
    )
    assert at_rest - before <= 1 * MB  # a third of a kilobyte of each is found
    assert median < 100  # the figures above are what was measured; a busy machine is no reason to fail
