"""The app behind a real server on a thread of the test's process, and the clients that drive it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi.dependencies.models
import httpx

from modelhost.api.app import create_app
from modelhost.api.drain import DrainingServer, Shared, server_config
from modelhost.config import (
    BatchingSettings,
    LoggingSettings,
    MemorySettings,
    ModelsSettings,
    PoolSettings,
    RuntimeSettings,
    SecuritySettings,
    ServerSettings,
    Settings,
)
from modelhost.host import Host
from modelhost.memory.board import Seat, Siblings
from modelhost.pool import PoolSnapshot
from modelhost.runtime.fake import FakeMemory, FakeRuntime, FakeScript

MODELS = Path(__file__).parents[1] / "models"
MB = 1 << 20
_PATIENCE_S = 10.0


def settings(directory: Path, **sections: dict[str, Any]) -> Settings:
    """Settings that look at memory often and give up waiting for it soon; `sections` override."""
    return Settings(
        server=ServerSettings(**sections.get("server", {})),
        memory=MemorySettings(**({"sample_interval_s": 0.02} | sections.get("memory", {}))),
        pool=PoolSettings(**({"memory_wait_s": 0.05} | sections.get("pool", {}))),
        runtime=RuntimeSettings(),
        logging=LoggingSettings(**sections.get("logging", {})),
        security=SecuritySettings(**sections.get("security", {})),
        batching=BatchingSettings(**sections.get("batching", {})),
        models=ModelsSettings(**({"directory": directory} | sections.get("models", {}))),
    )


class Served:
    """An open host behind HTTP, for as long as `serve` holds."""

    def __init__(self, host: Host, port: int) -> None:
        self.host, self.port = host, port
        self.url = f"http://127.0.0.1:{port}"
        # No TLS here; to read all the world's certificates for each host takes half the time of its start.
        self.http = httpx.Client(base_url=self.url, timeout=30, verify=False, trust_env=False)
        self.errors: list[dict[str, Any]] = []
        """What the event loop had to say of exceptions that nobody caught."""
        self._threads = ThreadPoolExecutor(40)

    # --- requests ------------------------------------------------------------------------------------

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Posts a JSON value, bytes as they are, or nothing."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.http.post(path, content=content, **more)

    def infer(self, name: str, body: Any = None, **more: Any) -> httpx.Response:
        """Posts an inference request; by default the one that every fake model takes."""
        return self.post(f"/v2/models/{name}/infer", fake_request() if body is None else body, **more)

    def later(self, call: Callable[..., httpx.Response], *args: Any) -> Future[httpx.Response]:
        """Makes a request on a thread of its own."""
        return self._threads.submit(call, *args)

    def connect(self) -> socket.socket:
        """Opens a connection for bytes that no well-behaved client would send."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, *parts: bytes) -> bytes:
        """Sends `parts`, each as a segment of its own, and returns all that came until the server closed."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
                self.settle()
            return b"".join(iter(lambda: connection.recv(65536), b""))

    # --- looking inside --------------------------------------------------------------------------------

    def on_loop(self, call: Callable[[], Any]) -> Any:
        """Calls something on the event-loop thread and returns its result."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)

        self.loop.call_soon_threadsafe(run)
        return done.result(_PATIENCE_S)

    def settle(self, turns: int = 3) -> None:
        """Lets the event loop take a few turns."""
        for _ in range(turns):
            self.on_loop(lambda: None)

    def snapshot(self) -> PoolSnapshot:
        return self.on_loop(self.host.pool.snapshot)

    def eventually(self, holds: Callable[[PoolSnapshot], bool]) -> PoolSnapshot:
        """Returns the first snapshot for which `holds` is true; fails when it never is."""
        until = time.monotonic() + _PATIENCE_S
        while not holds(snapshot := self.snapshot()):
            assert time.monotonic() < until, f"it never came to that: {snapshot}"
            time.sleep(0.001)
        return snapshot


def _forget_routes() -> None:
    """Empties the framework's caches, which keep the routes of thousands of applications, and their hosts."""
    for found in vars(fastapi.dependencies.models).values():
        if hasattr(found, "cache_clear"):
            found.cache_clear()


@contextmanager
def serve(host: Host, *, private: socket.socket | None = None, **config: Any) -> Iterator[Served]:
    """Serves `host` on a free port until the scope is left; `config` is for the server.

    `private`: as one of several processes, which ask each other there.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    served = Served(host, listener.getsockname()[1])
    ready = threading.Event()

    async def on_ready() -> None:
        served.loop = asyncio.get_running_loop()
        served.loop.set_exception_handler(lambda loop, context: served.errors.append(context))
        ready.set()

    app = create_app(host, on_ready=on_ready)
    seat = host.siblings
    shared = Shared(seat, listener, (private,) * seat.seats) if isinstance(seat, Seat) and private is not None else None
    server = DrainingServer(server_config(app, 400, **config), host, app, shared=shared)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener] if shared is None else []})
    thread.start()
    try:
        assert ready.wait(_PATIENCE_S), "the host did not open"
        served.app, served.server, served.thread = app, server, thread
        yield served
    finally:
        served.http.close()
        server.end()
        thread.join(_PATIENCE_S)
        served._threads.shutdown()
        assert not thread.is_alive(), "the server did not stop"
        _forget_routes()
    assert served.errors == []


def fake_host(
    directory: Path,
    scripts: dict[str, FakeScript],
    *,
    machine: FakeMemory | None = None,
    siblings: Siblings | None = None,
    **sections: dict[str, Any],
) -> Host:
    """A host of fake models on a fake machine, by default of 256 MB, of which 132 MB are for models."""
    for name in scripts:
        folder = directory / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(b"never read by the fake runtime")
    memory = machine or FakeMemory()
    return Host(
        settings(directory, **sections),
        runtime_factory=lambda settings, budgets: FakeRuntime(memory, scripts),
        probe=memory,
        siblings=siblings,
    )


def fake_request(**parameters: Any) -> dict[str, Any]:
    """What every fake model takes: it answers [2, 4]."""
    body: dict[str, Any] = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
    return body | ({"parameters": parameters} if parameters else {})


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": list(shape), "data": data}]}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Returns the error's object, having checked what every failure has in common."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert isinstance(body["error"], str)
    assert body["error"]
    return body


def head(path: str, *headers: str, method: str = "POST") -> bytes:
    """The bytes of a request's head."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()
