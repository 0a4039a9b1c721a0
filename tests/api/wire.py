"""HTTP/1.1 by hand, for what well-behaved clients never send; and a look at which way a request has taken."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from served import Served, fake_request, head

from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.runtime.fake import FakeScript

#: What a run has to be known to take before it may happen on the event loop.
SMALL = RunFootprint((Term(1000),), {})


#: Settings that let bodies of several MB in.
ROOMY = {"server": {"max_request_bytes": "8MB", "max_decoding_bytes": "24MB"}}


def numbers(size_bytes: int) -> np.ndarray[Any, Any]:
    """FP32 that are all different."""
    return np.arange(size_bytes // 4, dtype="<f4")


def quick_script(**more: Any) -> FakeScript:
    """A model whose runs may happen on the event loop, once they have shown to be short."""
    return FakeScript(run_footprint=SMALL, **more)


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST whose length is stated."""
    return head(path, f"Content-Length: {len(body)}", *headers) + body


def infer(name: str, *headers: str, value: float = 1, size: int = 0, **more: Any) -> bytes:
    """An inference request for a fake model, which answers [2 * value]; padded to `size` bytes of body."""
    body = fake_request() | {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}]} | more
    return post(f"/v2/models/{name}/infer", json.dumps(body).encode().ljust(size), *headers)


def binary(values: np.ndarray[Any, Any], *, binary_output: bool = True) -> tuple[bytes, int]:
    """A body with one raw FP32 tensor `x`, and the length of its JSON."""
    entry = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(values.shape),
        "parameters": {"binary_data_size": values.nbytes},
    }
    text = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": binary_output}}).encode()
    return text + values.tobytes(), len(text)


def infer_binary(name: str, values: np.ndarray[Any, Any], *headers: str, binary_output: bool = True) -> bytes:
    """An inference request with one raw tensor."""
    body, length = binary(values, binary_output=binary_output)
    return post(f"/v2/models/{name}/infer", body, f"Inference-Header-Content-Length: {length}", *headers)


@dataclass(frozen=True)
class Reply:
    """One answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def data(self) -> list[float]:
        """The values of the first output of a JSON answer."""
        assert self.status == 200, self.body
        values: list[float] = self.json["outputs"][0]["data"]
        return values

    @property
    def raw(self) -> np.ndarray[Any, Any]:
        """The values of a binary answer's one output."""
        length = self.header("inference-header-content-length")
        assert length is not None, self.body[:1000]
        return np.frombuffer(self.body, "<f4", offset=int(length))

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1
        return found[0] if found else None


@dataclass
class Wire:
    """One connection; answers are read one after another."""

    socket: socket.socket
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, *parts: bytes) -> None:
        for part in parts:
            self.socket.sendall(part)

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionResetError:
            return False
        self.buffer += piece
        return bool(piece)

    def answer(self) -> Reply | None:
        """Returns the next answer; None where the server has closed instead."""
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            if not self._more():
                assert not self.buffer, f"an answer breaks off: {self.buffer[:200]!r}"
                return None
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = [(line.partition(": ")[0], line.partition(": ")[2]) for line in lines[1:]]
        lengths = [int(value) for key, value in headers if key == "content-length"]
        size = lengths[0] if lengths else 0
        del self.buffer[: end + 4]
        while len(self.buffer) < size:
            assert self._more(), "an answer's body breaks off"
        body = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        return Reply(int(status), headers, body)

    def must(self) -> Reply:
        """Returns the next answer."""
        answer = self.answer()
        assert answer is not None, "closed without an answer"
        return answer

    def answers(self) -> list[Reply]:
        """Returns all answers until the server closes."""
        return list(iter(self.answer, None))


@contextmanager
def wire(served: Served, *parts: bytes) -> Iterator[Wire]:
    """Opens a connection and sends `parts`."""
    with served.connect() as connection:
        opened = Wire(connection)
        opened.send(*parts)
        yield opened


@dataclass
class Ways:
    """How many requests were answered on the socket, and of those without a coroutine; how many by the application."""

    socket: int = 0
    quick: int = 0
    application: int = 0

    def since(self, other: Ways) -> tuple[int, int]:
        """Requests on the socket and by the application since `other`."""
        return self.socket - other.socket, self.application - other.application


@contextmanager
def counting(served: Served) -> Iterator[Ways]:
    """Counts the ways that requests take."""
    ways = Ways()
    short_cut, inner = served.app.short_cut, served.app.infer
    begin, quickly, respond = short_cut.begin, short_cut._quickly, inner.respond

    def count_begin(exchange: Any) -> None:
        ways.socket += 1
        begin(exchange)

    def count_quickly(exchange: Any) -> bool:
        is_done = quickly(exchange)
        ways.quick += is_done
        return is_done

    def count_respond(*args: Any) -> Any:
        ways.application += 1
        return respond(*args)

    short_cut.begin, short_cut._quickly, inner.respond = count_begin, count_quickly, count_respond
    try:
        yield ways
    finally:
        short_cut.begin, short_cut._quickly, inner.respond = begin, quickly, respond


def warm(served: Served, *names: str, runs: int = 3) -> None:
    """Loads models, and lets them show what their runs take."""
    for name in names:
        for _ in range(runs):
            assert served.infer(name, json.loads(infer(name).partition(b"\r\n\r\n")[2])).status_code == 200


def used_bytes(served: Served) -> int:
    """What all requests together hold."""
    used: int = served.app.infer.inference.budget.used_bytes
    return used


def nothing_held(served: Served) -> None:
    """Fails unless it comes to that: no lease, no claim on memory for runs, no bytes of any request."""
    served.eventually(
        lambda snapshot: (
            snapshot.waiting == snapshot.in_flight == 0
            and all(model.leases == 0 for model in snapshot.models)
            and used_bytes(served) == served.app.infer.inference.arrivals.pieces.used_bytes == 0
            and not len(served.app.infer.inference.arrivals)
            and not served.app.short_cut.receiving
            and not served.app.short_cut._on_threads
        )
    )
    gate = served.host.pool.activations
    assert served.on_loop(lambda: gate.claimed_bytes) == 0
