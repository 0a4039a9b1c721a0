"""A process of its own that sends large bodies byte by byte over many connections, until its standard input ends.

    python -m benchmarks.slow_senders HOST PORT MODEL CONNECTIONS BODY_BYTES BYTES_PER_SECOND

Whoever is refused, or hung up on, comes again after a second, as its `Retry-After` says. Says `started` when all
have sent their heads, and at its end, as JSON, what became of them: refusals by status, bytes that were sent.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections import Counter
from typing import Final

from benchmarks.standing import stand_back

_AGAIN_AFTER_S: Final = 1.0
#: They send at different moments, as strangers do: all at once, this process alone would be a pause for everybody on
#: the machine.
_SLICES: Final = 20
_LEFT: Final = "left without an answer"


class Sender:
    """One client that sends a body for as long as it is let."""

    def __init__(self, address: tuple[str, int], head: bytes) -> None:
        self._address, self._head = address, head
        self._socket: socket.socket | None = None
        self._again_at = 0.0

    def step(self, now: float, told: Counter[str]) -> None:
        """Sends one byte, or comes again; counts what it was told in `told`."""
        if self._socket is None:
            if now >= self._again_at:
                self._connect(now, told)
            return
        try:
            answer = self._socket.recv(4096)
        except BlockingIOError:
            answer = None
        except OSError:
            answer = b""
        if answer is not None:
            self._end(now, answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else _LEFT, told)
            return
        try:
            told["bytes"] += self._socket.send(b" ")
        except BlockingIOError:
            told["full"] += 1
        except OSError:
            self._end(now, _LEFT, told)

    def close(self) -> None:
        """Hangs up."""
        if self._socket is not None:
            self._socket.close()

    def _connect(self, now: float, told: Counter[str]) -> None:
        try:
            self._socket = socket.create_connection(self._address, timeout=10)
            self._socket.sendall(self._head)
        except OSError:
            self._end(now, "no connection", told)
        else:
            self._socket.setblocking(False)
            told["requests"] += 1

    def _end(self, now: float, why: str, told: Counter[str]) -> None:
        told[why] += 1
        self.close()
        self._socket, self._again_at = None, now + _AGAIN_AFTER_S


def main() -> None:
    """See the module."""
    host, port, model, count, body_bytes, per_second = sys.argv[1:]
    stand_back()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {body_bytes}\r\n"
        "Content-Type: application/json\r\n\r\n"
    ).encode()
    told: Counter[str] = Counter()
    senders = [Sender((host, int(port)), head) for _ in range(int(count))]
    for sender in senders:
        sender.step(0.0, told)
    print("started", flush=True)
    interval_s, due, turn = 1 / float(per_second) / _SLICES, time.monotonic(), 0
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        due, turn = max(due + interval_s, time.monotonic() - interval_s), turn + 1
        for sender in senders[turn % _SLICES :: _SLICES]:
            sender.step(time.monotonic(), told)
    for sender in senders:
        sender.close()
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
