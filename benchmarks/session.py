"""One session in a process of its own, driven by lines of JSON: the child of `python -m benchmarks prepared`.

    python -m benchmarks.session stock FILE
    python -m benchmarks.session VARIANT FILE       as the host opens that variant of a prepared model

It loads and says what that took; then each line that it reads, `{"feed": {"x": [shape, datatype]},
"seconds": 0.2}`, makes it run on inputs of those shapes for so long and answer with the times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.smaps import read_process

#: Of the arena that all of the host's sessions share; large, since not the ceiling is measured here.
_CEILING_BYTES: Final = 2 << 30

#: Runs on a feed.
_Run = Callable[[dict[str, Any]], object]


def main() -> None:
    """Loads what the command line says, then runs what the lines say, until they end."""
    kind, file = sys.argv[1], Path(sys.argv[2])
    load = _stock(file) if kind == "stock" else _as_the_host(kind, file)
    before = read_process("self").committed_bytes
    started = time.perf_counter()
    run, inputs = load()
    load_ms = (time.perf_counter() - started) * 1e3
    _say({"load_ms": load_ms, "committed_bytes": read_process("self").committed_bytes - before, "inputs": inputs})
    for line in sys.stdin:
        order = json.loads(line)
        feed = {name: _value(*spec) for name, spec in order["feed"].items()}
        times: list[float] = []
        while not times or sum(times) < order["seconds"]:
            started = time.perf_counter()
            run(feed)
            times.append(time.perf_counter() - started)
        committed_bytes = read_process("self").committed_bytes - before
        _say({"times_ms": [taken * 1e3 for taken in times], "committed_bytes": committed_bytes})


def _stock(file: Path) -> Callable[[], tuple[_Run, dict[str, Any]]]:
    """Returns what loads a session as it comes, on one thread, and says what its inputs are."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1

    def load() -> tuple[_Run, dict[str, Any]]:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        names = [arg.name for arg in session.get_outputs()]
        inputs = {arg.name: [arg.shape, arg.type] for arg in session.get_inputs()}
        return lambda feed: session.run(names, feed), inputs

    return load


def _as_the_host(variant: Any, file: Path) -> Callable[[], tuple[_Run, dict[str, Any]]]:
    """Returns what loads a prepared model (for the variant `heap`, the original) with the host's own runtime."""
    from modelhost.runtime.base import CancelToken, Inspection, LoadPlan
    from modelhost.runtime.ort import OrtRuntime

    runtime = OrtRuntime(activation_ceiling_bytes=_CEILING_BYTES)
    plan = LoadPlan(0, 0, artifact=None if variant == "heap" else file, variant=variant)

    def load() -> tuple[_Run, dict[str, Any]]:
        model = runtime.load(file, plan, Inspection({}, {}, plan, ()), CancelToken())
        names = list(model.outputs)
        return lambda feed: model.run(feed, names, CancelToken()), {}

    return load


def _value(shape: list[int], datatype: str) -> Any:
    """Makes up a value; whole numbers are 1, which is a token, an index and a mask."""
    if datatype == "tensor(float)":
        return np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.ones(shape, {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[datatype])


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
