"""Faults to plant in a process of their own, and operations that have none."""

from __future__ import annotations

import ctypes
import gc
import json
import random
from pathlib import Path
from typing import Any

from modelhost.testing import LeakDetector, Place, allocate, cleanup, compare, take_snapshot

MB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "python list": Place.PYTHON,
    "native buffer": Place.NATIVE,
    "residue": Place.RESIDUE,
    "page cache": Place.FILE_PAGES,
    "shared memory": Place.SHARED,
    "session": Place.HELD_BY_ARRAYS,
}


def plant(fault: str) -> Any:
    match fault:
        case "python list":
            return [bytes(500 + number % 600) for number in range(10_000)]
        case "native buffer":
            libc = ctypes.CDLL(None)
            libc.malloc.restype, libc.memset.argtypes = (
                ctypes.c_void_p,
                (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t),
            )
            block = libc.malloc(8 * MB)
            libc.memset(block, 1, 8 * MB)
            return block
        case "residue":
            held = allocate("16MB", "heap")
            held.leave_holes()
            return held
        case "page cache":
            return allocate("8MB", "page-cache", directory=ROOT)
        case "shared memory":
            return allocate("8MB", "shared")
    return output_of_a_session()


def output_of_a_session() -> Any:
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(next((ROOT / "models" / "digits").rglob("model.onnx"))))
    return session.run(None, {session.get_inputs()[0].name: np.zeros((2000, 1, 8, 8), np.float32)})[0]


def main(fault: str, runs: int) -> None:
    if fault == "session":
        output_of_a_session()
    kept = []
    for _ in range(runs):
        gc.collect()
        cleanup()
        before = take_snapshot(objects=True)
        kept.append(plant(fault))
        found = compare(before, take_snapshot(objects=True))
        assert found.main_place is PLACES[fault], f"{found.main_place}\n{found}"
    print(f"named rightly {len(kept)} of {runs}")


def clean(runs: int) -> None:
    """Work of changing sizes, garbage in cycles, a cache that fills up and ends."""
    source = random.Random(1)

    def work() -> None:
        cache[source.randrange(16)] = bytes(source.randrange(2000))
        cycle: list[Any] = [bytes(source.randrange(20_000)) for _ in range(source.randrange(20))]
        cycle.append(cycle)
        json.loads(json.dumps({str(number): [number] * 3 for number in range(source.randrange(100))}))

    for number in range(runs):
        cache: dict[int, bytes] = {}
        report = LeakDetector(100).run(work)
        assert not report, f"run {number}: {report}"
