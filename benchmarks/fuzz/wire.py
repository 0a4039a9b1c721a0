"""Connections that carry many requests in one write, and the answers in their order."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.fuzz.check import complaint
from benchmarks.fuzz.mutate import Sample

_CHUNK_BYTES: Final = 1 << 16
#: Longer than the host waits for the rest of a request.
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What should not have happened, and what was sent before it did."""

    text: str
    data: bytes


class Line:
    """One connection. One thread's."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._rest = b""
        self.statuses: dict[int, int] = {}

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def send(self, samples: Sequence[Sample]) -> None:
        """Sends all in one write; a host that closes meanwhile is found out by `receive`."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(b"".join(sample.data for sample in samples))

    def receive(self, samples: Sequence[Sample]) -> tuple[int, Finding | None]:
        """Reads the answers of framed samples; returns how many came, and what was wrong with one.

        Fewer come where the host has closed the connection and said so.
        """
        for index, sample in enumerate(samples):
            try:
                status, headers, body = self._answer(sample.method)
            except (OSError, ValueError) as error:
                self.close()
                # What came last may be the fault of the one before: it is looked at with it.
                return index, Finding(
                    f"{type(error).__name__}: {error}", b"".join(one.data for one in samples[: index + 1])
                )
            self.statuses[status] = self.statuses.get(status, 0) + 1
            text = complaint(status, headers, body, has_body=sample.method != b"HEAD")
            if text is not None:
                self.close()
                return index + 1, Finding(text, sample.data)
            if headers.get("connection") == "close":
                self.close()
                return index + 1, None
        if self._rest:
            rest = self._rest
            self.close()
            return len(samples), Finding(
                f"more than was asked for: {rest[:200]!r}", b"".join(one.data for one in samples)
            )
        return len(samples), None

    def send_raw(self, sample: Sample, *, waits: bool) -> Finding | None:
        """Sends bytes on a connection of their own, ends it, and reads what comes, unless it does not wait."""
        self.close()
        self.send([sample])
        assert self._socket is not None
        try:
            if not waits:
                return None
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            while True:
                try:
                    status, headers, body = self._answer(None)
                except ConnectionError:
                    return None
                self.statuses[status] = self.statuses.get(status, 0) + 1
                # Nobody knows whether it answers HEAD: what has a length and no body is looked at as one.
                text = complaint(status, headers, body, has_body=bool(body))
                if text is not None:
                    return Finding(text, sample.data)
        except (OSError, ValueError) as error:
            return Finding(f"{type(error).__name__}: {error}", sample.data)
        finally:
            self.close()

    def _answer(self, method: bytes | None) -> tuple[int, dict[str, str], bytes]:
        """Reads an answer. Raises OSError where none comes, ValueError where it is none."""
        while True:
            while (end := self._rest.find(b"\r\n\r\n")) < 0:
                self._more()
            first, *lines = self._rest[:end].decode("latin-1").split("\r\n")
            version, status, _ = f"{first} ".split(" ", 2)
            if version != "HTTP/1.1" or len(status) != 3:
                raise ValueError(f"no answer of HTTP/1.1: {first[:100]!r}")
            self._rest = self._rest[end + 4 :]
            if status != "100":
                break
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "0"))
        if method == b"HEAD" or status in ("204", "304"):
            return int(status), headers, b""
        if "content-length" not in headers:
            raise ValueError(f"an answer without a length: {first[:100]!r} {headers}")
        while True:
            if method is None and self._rest.startswith(b"HTTP/1.1 "):
                return int(status), headers, b""  # that was the answer to a HEAD, and this is the next
            if len(self._rest) >= size:
                break
            self._more(is_body=method is None)
        body, self._rest = self._rest[:size], self._rest[size:]
        return int(status), headers, body

    def _more(self, *, is_body: bool = False) -> None:
        assert self._socket is not None
        piece = self._socket.recv(_CHUNK_BYTES)
        if not piece:
            if self._rest and not is_body:
                raise ValueError(f"an answer breaks off: {self._rest[:100]!r}")
            raise ConnectionResetError("closed without an answer")
        self._rest += piece
