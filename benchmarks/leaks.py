"""Every public operation again and again: what stays of it, by the leak detector of the toolkit.

The server runs in this process, on a thread, and is asked over a real connection: what the client keeps would be
found too. Which operations there are is read from the host's own OpenAPI page: one that is not tried is a violation.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.embedded import Embedded, serving, settings
from benchmarks.places import ROOT
from benchmarks.report import Report
from benchmarks.soak.wire import Connection, Reply
from modelhost.host import Host
from modelhost.testing import LeakDetector, allocate, cleanup, compare, pressure, take_snapshot, verify_recovered

_MB: Final = 1 << 20
_MODEL: Final = "wine"
_TENSOR: Final = {"name": "measurements", "datatype": "FP32", "shape": [1, 13], "data": [1.0] * 13}
_INFER: Final = json.dumps({"inputs": [_TENSOR]}).encode()
_PREDICT: Final = json.dumps({"instances": [[1.0] * 13]}).encode()
_BINARY_TENSOR: Final = {
    **{key: value for key, value in _TENSOR.items() if key != "data"},
    "parameters": {"binary_data_size": 52},
}
_BINARY_HEAD: Final = json.dumps({"inputs": [_BINARY_TENSOR], "parameters": {"binary_data_output": True}}).encode()
#: Few enough events to be kept: a history that fills up would look like growth for as long as it does.
_EVENTS: Final = 8


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that is done again and again; `group` is where it belongs."""

    group: str
    name: str
    run: Callable[[], object]
    iterations_share: float = 1.0


def run(report: Report, *, iterations: int, only: str | None) -> None:
    """Tries each operation; those whose name has `only` in it."""
    with tempfile.TemporaryDirectory(prefix="modelhost-leaks-") as scratch:
        models = Path(scratch) / "models"
        shutil.copytree(ROOT / "models" / _MODEL, models / _MODEL)
        host = Host(settings(models, memory={"event_history": _EVENTS}))
        with serving(host) as server, Connection(server.address, timeout_s=30) as connection:
            operations = [*_http(server, connection), *_refused(connection), *_python(models), *_toolkit()]
            missing = not_tried(server.app.openapi()["paths"], operations)
            report.require(not missing, f"operations of the OpenAPI page that are not tried: {missing}")
            for number, operation in enumerate(operations, 1):
                if only is None or only in operation.name:
                    connection.close()  # the server may have done so meanwhile, as nothing was asked
                    connection.ask(_load_request())  # what was tried before may have unloaded it
                    report.progress(f"{number} of {len(operations)}: {operation.name}")
                    _try(report, operation, iterations)
    report.table(
        "operation",
        {
            "operation": "operation",
            "group": "from",
            "iterations": "iterations",
            "leaks": "leaks",
            "python_each": "Python bytes each",
            "native_each": "native bytes each",
        },
    )


def _try(report: Report, operation: Operation, iterations: int) -> None:
    found = LeakDetector(max(40, int(iterations * operation.iterations_share))).run(operation.run)
    report.add(
        "operation",
        group=operation.group,
        operation=operation.name,
        iterations=found.iterations,
        leaks="yes" if found else "no",
        python_each=round(found.python_bytes),
        native_each=round(found.native_bytes),
        where=list(found.where),
    )
    report.require(not found, f"{operation.name}: {found}")


def not_tried(paths: Mapping[str, Iterable[str]], operations: Sequence[Operation]) -> list[str]:
    """Returns the operations of an OpenAPI page (methods by path) that are not among those that are tried."""
    tried = {operation.name for operation in operations}
    wanted = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    return [name for name in wanted if name not in tried]


# --- over HTTP -------------------------------------------------------------------------------------------


def _http(server: Embedded, connection: Connection) -> Iterator[Operation]:
    """Yields each operation of the OpenAPI page, with the body that it takes, and other forms of the same."""

    def asked(method: str, path: str, body: bytes = b"", *headers: str, status: int = 200) -> Callable[[], Reply]:
        filled = path.format(name=_MODEL, version="1", repository="default")
        lines = [f"{method} {filled} HTTP/1.1", "Host: leaks", f"Content-Length: {len(body)}", *headers, "", ""]
        data = "\r\n".join(lines).encode() + body

        def ask() -> Reply:
            reply = connection.ask(data)
            if reply.status != status:
                raise RuntimeError(f"{method} {filled}: expected {status}, got {reply.status}: {reply.body[:300]!r}")
            return reply

        return ask

    for path, methods in server.app.openapi()["paths"].items():
        for method in (word.upper() for word in methods):
            yield _operation(method, path, asked)
    content = f"Inference-Header-Content-Length: {len(_BINARY_HEAD)}"
    infer = "/v2/models/{name}/infer"
    yield Operation("HTTP", "infer, binary tensors", asked("POST", infer, _BINARY_HEAD + bytes(52), content))
    yield Operation("HTTP", "infer, unknown model", asked("POST", "/v2/models/nobody/infer", _INFER, status=404))
    yield Operation("HTTP", "infer, broken JSON", asked("POST", infer, b'{"inputs": [', status=400))
    wrong = json.dumps({"inputs": [{**_TENSOR, "shape": [1, 12], "data": [1.0] * 12}]}).encode()
    yield Operation("HTTP", "infer, wrong shape", asked("POST", infer, wrong, status=400))
    load, unload = (asked("POST", f"/v2/repository/models/{{name}}/{verb}") for verb in ("load", "unload"))
    yield Operation("HTTP", "load and unload", lambda: (load(), unload()), 0.5)


def _load_request() -> bytes:
    return f"POST /v2/repository/models/{_MODEL}/load HTTP/1.1\r\nHost: leaks\r\nContent-Length: 0\r\n\r\n".encode()


def _operation(method: str, path: str, asked: Callable[..., Callable[[], Reply]]) -> Operation:
    body = _PREDICT if path.endswith(":predict") else _INFER if path.endswith("/infer") else b""
    if path == "/v2/logging" and method == "POST":
        body = b'{"log_info": false}'
    is_load = path.endswith(("/load", "/unload"))
    return Operation("HTTP", f"{method} {path}", asked(method, path, body), 0.5 if is_load else 1.0)


def _refused(connection: Connection) -> Iterator[Operation]:
    """Yields a client that leaves before its answer."""

    def leave() -> None:
        connection.send(
            f"POST /v2/models/{_MODEL}/infer HTTP/1.1\r\nHost: leaks\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        connection.close()
        connection.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: leaks\r\n\r\n")

    yield Operation("HTTP", "a client that leaves", leave)


# --- from Python -----------------------------------------------------------------------------------------


def _python(models: Path) -> Iterator[Operation]:
    import numpy as np

    loop = asyncio.new_event_loop()
    question = {"measurements": np.ones((1, 13), np.float32)}

    async def whole_life() -> Any:
        opened = Host(settings(models, memory={"event_history": _EVENTS}))
        async with opened as host, host.pool.lease(_MODEL) as lease:
            return await lease.run(question)

    yield Operation("Python", "Host: open, lease, run, close", lambda: loop.run_until_complete(whole_life()), 0.5)


def _toolkit() -> Iterator[Operation]:
    before = take_snapshot()
    baseline = take_snapshot(exact=True)
    yield Operation("toolkit", "take_snapshot", take_snapshot)
    yield Operation("toolkit", "take_snapshot, exact, objects", lambda: take_snapshot(exact=True, objects=True), 0.5)
    yield Operation("toolkit", "compare", lambda: str(compare(before, take_snapshot())))
    for kind in ("anonymous", "heap", "page-cache", "shared"):
        yield Operation("toolkit", f"allocate, {kind}", lambda kind=kind: _allocated(kind))  # type: ignore[misc]
    yield Operation("toolkit", "cleanup", cleanup, 0.5)
    yield Operation("toolkit", "verify_recovered", lambda: verify_recovered(baseline, within="64MB"), 0.5)
    yield Operation("toolkit", "pressure", _pressed, 0.5)


def _allocated(kind: Any) -> None:
    with allocate(_MB, kind):
        pass


def _pressed() -> None:
    with pressure("+4MB"):
        pass
