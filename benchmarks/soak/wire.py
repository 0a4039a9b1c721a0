"""HTTP/1.1 on one connection, by hand: what was sent is known, and so is how far an answer came when it broke off."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

_CHUNK_BYTES: Final = 1 << 18
#: Longer than any time limit of the host.
_TIMEOUT_S: Final = 150.0


class Lost(Exception):
    """A request was sent and not answered: the connection broke, or nothing came."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; names of headers in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One keep-alive connection, opened when it is needed. One thread's."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = _TIMEOUT_S) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._socket: socket.socket | None = None
        self._rest = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def send(self, data: bytes) -> None:
        """Sends without waiting for an answer. Raises Lost."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, self._timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from None

    def receive(self) -> Reply:
        """Reads the next answer. Raises Lost."""
        try:
            return self._receive()
        except (OSError, ValueError) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from None

    def ask(self, data: bytes) -> Reply:
        """Sends a request and returns its answer. Raises Lost."""
        self.send(data)
        return self.receive()

    def _receive(self) -> Reply:
        head, _, self._rest = self._until(b"\r\n\r\n").partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = f"{first} ".split(" ", 2)
        if version != "HTTP/1.1":
            raise ValueError(f"expected an answer of HTTP/1.1, got {first[:100]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        while len(self._rest) < size:
            self._more()
        body, self._rest = self._rest[:size], self._rest[size:]
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(status), headers, body)

    def _until(self, end: bytes) -> bytes:
        while end not in self._rest:
            self._more()
        return self._rest

    def _more(self) -> None:
        assert self._socket is not None
        piece = self._socket.recv(_CHUNK_BYTES)
        if not piece:
            raise ConnectionResetError(f"closed before the answer was whole, {len(self._rest)} bytes of it came")
        self._rest += piece
