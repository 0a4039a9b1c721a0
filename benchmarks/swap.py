"""Hot swap under load: a model's files are replaced again and again while clients ask for it.

Every generation of the model says which one it is in two outputs, by their values and by the name of one of
them, so that an answer of two generations cannot be taken for one of either. All must be answered, and no client
may see an older generation after a newer one.
"""

from __future__ import annotations

import http.client
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.client import Client, RequestFailed
from benchmarks.models import Array
from benchmarks.percentiles import percentile
from benchmarks.process import HostProcess, running_host, tail
from benchmarks.report import Report

NAME: Final = "swapped"
_SIDE: Final = 64
_WIDE: Final = 8192  # two matrices of 2 MB: weights that are worth mapping
_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.02
#: Rows of a request, by client: small ones are answered in place, JSON of 400 rows is decoded on a thread.
_ROWS: Final = (1, 2, 2, 400)
_METADATA_EVERY: Final = 25
#: Of the host's log, where a request has failed: a swap is some six lines.
_LOG_LINES: Final = 400
_HEADER: Final = "Inference-Header-Content-Length"


def generation(number: int) -> bytes:
    """Returns a model that says its number: `y = number * x`, and `generation_NUMBER` full of it."""
    left, right = np.zeros((_SIDE, _WIDE), np.float32), np.zeros((_WIDE, _SIDE), np.float32)
    left[:, :_SIDE], right[:_SIDE] = np.eye(_SIDE), number * np.eye(_SIDE)
    weights = {"left": left, "right": right, "none": np.zeros(1, np.float32), "g": np.full(1, number, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "left"], ["h"]),
        helper.make_node("MatMul", ["h", "right"], ["y"]),
        helper.make_node("Mul", ["x", "none"], ["z"]),
        helper.make_node("Add", ["z", "g"], [f"generation_{number}"]),
    ]
    shape: list[str | int | None] = ["n", _SIDE]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y", f"generation_{number}")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    onnx.checker.check_model(model)
    return data


def generation_of(names: list[str]) -> int:
    """Returns the generation that outputs of these names are of. Raises RequestFailed where they are of none."""
    numbers = [int(name.removeprefix("generation_")) for name in names if name.startswith("generation_")]
    if len(numbers) != 1 or sorted(names) != sorted(["y", f"generation_{numbers[0]}"]):
        raise RequestFailed(f"outputs of no generation: {names}")
    return numbers[0]


def check(x: Array, outputs: dict[str, Array]) -> int:
    """Returns the generation that an answer is of. Raises RequestFailed where it is of none, or of several."""
    number = generation_of(list(outputs))
    if not np.array_equal(outputs["y"], x * number) or not np.all(outputs[f"generation_{number}"] == number):
        raise RequestFailed(f"an answer of several generations: {number} by name, y is {outputs['y'][0, 0]} * x")
    return number


class Asker:
    """One client on one connection, which asks until it is told to stop. A thread of its own."""

    def __init__(self, url: str, index: int) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_PATIENCE_S)
        self._is_json = index % 2 == 0
        rows = _ROWS[index // 2 % len(_ROWS)]
        # Small whole numbers: every product is exact, whatever the order of the sums.
        self._x = np.random.default_rng(index).integers(1, 9, (rows, _SIDE)).astype(np.float32)
        self.generation = 0
        self.times_s: list[float] = []
        self.errors: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Asks; what goes wrong is kept, and it goes on."""
        for count in itertools.count(1):
            if stop.is_set():
                self._http.close()
                return
            try:
                self._ask() if count % _METADATA_EVERY else self._look()
            except (OSError, http.client.HTTPException, RequestFailed, KeyError, ValueError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self._http.close()

    def _ask(self) -> None:
        began = time.perf_counter()
        number = check(self._x, self._infer_json() if self._is_json else self._infer_binary())
        self.times_s.append(time.perf_counter() - began)
        self._see(number)

    def _look(self) -> None:
        """Asks for the model's metadata, and whether it is ready."""
        found = json.loads(self._send("GET", f"/v2/models/{NAME}")[1])
        self._see(generation_of([output["name"] for output in found["outputs"]]))
        self._send("GET", f"/v2/models/{NAME}/ready")
        self._send("GET", "/v2/health/ready")

    def _see(self, number: int) -> None:
        if number < self.generation:
            raise RequestFailed(f"generation {number} after {self.generation}")
        self.generation = number

    def _infer_json(self) -> dict[str, Array]:
        tensor = {"name": "x", "datatype": "FP32", "shape": self._x.shape, "data": self._x.ravel().tolist()}
        found = json.loads(self._send("POST", f"/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode())[1])
        return {
            output["name"]: np.array(output["data"], np.float32).reshape(output["shape"]) for output in found["outputs"]
        }

    def _infer_binary(self) -> dict[str, Array]:
        raw = self._x.tobytes()
        tensor = {"name": "x", "datatype": "FP32", "shape": self._x.shape, "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers, data = self._send("POST", f"/v2/models/{NAME}/infer", head + raw, {_HEADER: str(len(head))})
        length = int(headers[_HEADER] or 0)
        outputs, at = {}, length
        for output in json.loads(data[:length])["outputs"]:
            size = output["parameters"]["binary_data_size"]
            outputs[output["name"]] = np.frombuffer(data[at : at + size], np.float32).reshape(output["shape"])
            at += size
        return outputs

    def _send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[Any, bytes]:
        self._http.request(method, path, body, headers or {})
        response = self._http.getresponse()
        data = response.read()
        if response.status != 200:
            raise RequestFailed(f"{method} {path}: {response.status} {data[:300]!r}")
        return response.headers, data


@dataclass(slots=True)
class Files:
    """The model's files, and ways to replace them."""

    directory: Path
    number: int = 1
    version: int = 1
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        self._to_version(1)
        self.file.write_bytes(generation(1))

    def _to_version(self, version: int) -> None:
        self.version = version
        self.file = self.directory / NAME / str(version) / "model.onnx"
        self.file.parent.mkdir(parents=True)

    def rename(self, data: bytes) -> None:
        """A new file, renamed into the place of the old one."""
        aside = self.file.with_name(".model.onnx.new")
        aside.write_bytes(data)
        aside.replace(self.file)

    def write_in_place(self, data: bytes) -> None:
        """As a plain copy does it: the file is cut off and written again, in pieces."""
        with self.file.open("wb") as stream:
            for start in range(0, len(data), 1 << 16):
                stream.write(data[start : start + (1 << 16)])
                stream.flush()

    def add_version(self, data: bytes) -> None:
        """A folder beside the others, the highest."""
        self._to_version(self.version + 1)
        self.write_in_place(data)


@dataclass(slots=True)
class Outcome:
    """What the clients and the swaps saw."""

    answers: int
    errors: list[str]
    swap_s: list[float]
    p50_ms: float
    p99_ms: float
    longest_ms: float


def swap_under_load(
    host: HostProcess, files: Files, *, swaps: int, clients: int, said: Callable[[str], None]
) -> Outcome:
    """Has clients ask while a model's files are replaced in turns: renamed, in place, as a version, by a broken one."""
    stop, askers = threading.Event(), [Asker(host.url, index) for index in range(clients)]
    with Client(host.url) as client:
        client.load(NAME)
        threads = [threading.Thread(target=asker.run, args=(stop,)) for asker in askers]
        for thread in threads:
            thread.start()
        took_s = []
        try:
            for turn in range(swaps):
                took_s.append(_swap(client, files, turn, askers))
                said(f"swap {turn + 1} of {swaps}, {sum(len(asker.times_s) for asker in askers)} answers")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    times = sorted(itertools.chain.from_iterable(asker.times_s for asker in askers))
    errors = [error for asker in askers for error in asker.errors]
    return Outcome(
        len(times), errors, took_s, percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3, times[-1] * 1e3
    )


def _swap(client: Client, files: Files, turn: int, askers: list[Asker]) -> float:
    """Replaces the files once; returns the seconds until every client has an answer of the new ones."""
    began = time.monotonic()
    if turn % 4 == 3:
        files.rename(generation(files.number)[: 3 << 20])
        _until(lambda: "not served" in _index(client)[str(files.version)])
    files.number += 1
    data = generation(files.number)
    (files.rename, files.write_in_place, files.add_version, files.rename)[turn % 4](data)
    _index(client)
    _until(lambda: all(asker.generation == files.number for asker in askers))
    return time.monotonic() - began


def _index(client: Client) -> dict[str, str]:
    """Has the host look at its models; returns what it says of each version."""
    return {entry["version"]: entry["reason"] for entry in client.index() if entry["name"] == NAME}


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise RequestFailed(f"a swap was not over after {_PATIENCE_S:g} s")
        time.sleep(_POLL_S)


def run(report: Report, *, limit_bytes: int, swaps: int, clients: int) -> None:
    """Swaps under load, and reports."""
    with tempfile.TemporaryDirectory(prefix="modelhost-swap-") as folder:
        files = Files(Path(folder))
        with running_host(Path(folder), limit_bytes=limit_bytes, settings={"PREPARE_ON_LOAD": "true"}) as host:
            outcome = swap_under_load(host, files, swaps=swaps, clients=clients, said=report.progress)
            if outcome.errors:  # an answer does not say what was wrong inside; the log does
                report.progress(tail(host.log, _LOG_LINES))
            figures = host.group_figures()
            usage_bytes = host.usage_bytes()
            report.require(host.is_alive, host.last_words())
        report.require(not outcome.errors, f"{len(outcome.errors)} requests failed: {outcome.errors[:3]}")
        if figures is not None:
            report.require(figures.oom_kills == 0, "the kernel has killed")
        report.add(
            "total",
            swaps=len(outcome.swap_s),
            answers=outcome.answers,
            failed=len(outcome.errors),
            swap_median_s=sorted(outcome.swap_s)[len(outcome.swap_s) // 2],
            swap_max_s=max(outcome.swap_s),
            p50_ms=outcome.p50_ms,
            p99_ms=outcome.p99_ms,
            longest_ms=outcome.longest_ms,
            usage_bytes=usage_bytes,
        )
        report.summary("total")
