"""Faults to plant in a process of their own, and operations that have none."""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelhost.testing import Leak, LeakDetector, Place, allocate, cleanup, compare, take_snapshot

MB = 1 << 20
COUNT = 50
THE_END = threading.Event()

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "python list": Place.PYTHON,
    "native buffer": Place.NATIVE,
    "residue": Place.RESIDUE,
    "page cache": Place.FILE_PAGES,
    "shared memory": Place.SHARED,
    "session": Place.HELD_BY_ARRAYS,
    "anonymous mapping": Place.MAPPED,
    "threads": Place.THREADS,
    "open files": None,  # they are no memory of the process; the difference counts them
}


def plant(fault: str) -> Any:
    match fault:
        case "python list":
            return [bytes(500 + number % 600) for number in range(10_000)]
        case "native buffer":
            block = libc.malloc(8 * MB)
            ctypes.memset(block, 1, 8 * MB)
            return block
        case "residue":
            held = allocate("16MB", "heap")
            held.leave_holes()
            return held
        case "page cache":
            return allocate("8MB", "page-cache", directory=ROOT)
        case "shared memory":
            return allocate("8MB", "shared")
        case "anonymous mapping":
            return allocate("8MB")
        case "threads":
            return [new_thread() for _ in range(COUNT)]
        case "open files":
            return [os.open(__file__, os.O_RDONLY) for _ in range(COUNT)]
    return output_of_a_session()


def new_thread() -> threading.Thread:
    """A thread that waits for the process to end."""
    thread = threading.Thread(target=THE_END.wait, daemon=True)
    thread.start()
    return thread


def output_of_a_session(rows: int = 2000) -> Any:
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(str(next((ROOT / "models" / "digits").rglob("model.onnx"))))
    return session.run(None, {session.get_inputs()[0].name: np.zeros((rows, 1, 8, 8), np.float32)})[0]


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
        assert found.threads == (COUNT if fault == "threads" else 0), found
        assert found.open_files == {"open files": COUNT, "page cache": 1}.get(fault, 0), found
    print(f"named rightly {len(kept)} of {runs}")


#: What stays of each operation, and the word that says where.
LEAKS: dict[str, tuple[Callable[[], Any], set[Leak], str]] = {
    "python list": (lambda: [bytes(90) for _ in range(8)], {Leak.PYTHON}, "faults.py"),
    "native buffer": (lambda: libc.malloc(1024), {Leak.NATIVE}, "native memory"),
    "anonymous mapping": (lambda: mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE), {Leak.MAPPED}, "mmap.mmap"),
    "shared memory": (lambda: mmap.mmap(-1, 4096), {Leak.SHARED}, "/dev/zero"),
    "open files": (lambda: os.open(__file__, os.O_RDONLY), {Leak.FILES}, "faults.py"),
    "threads": (lambda: new_thread(), {Leak.THREADS, Leak.PYTHON}, "(wait)"),
    "session": (lambda: output_of_a_session(rows=10), {Leak.NATIVE}, "views of native memory"),
}


def let_go(kept: list[Any]) -> None:
    """Ends what a process may have only so many of."""
    THE_END.set()
    for thing in kept:
        if isinstance(thing, threading.Thread):
            thing.join()
        elif isinstance(thing, int) and thing < 1 << 20:  # no address
            os.close(thing)
    THE_END.clear()


def leak(fault: str, runs: int, iterations: int) -> None:
    operation, kinds, word = LEAKS[fault]
    for _ in range(runs):
        kept = []
        report = LeakDetector(iterations).run(lambda: kept.append(operation()))  # noqa: B023
        assert report.kinds >= kinds, report
        assert report.kinds <= kinds | {Leak.PYTHON, Leak.NATIVE}, report
        assert word in str(report), report
        assert report.iterations < 500, report
        let_go(kept)
    print(f"named rightly {runs} of {runs}, the last: {report}")


def clean(runs: int, seed: int) -> None:
    """Work of changing sizes, garbage in cycles, a cache that fills up and ends; threads, files and mappings that are
    ended."""
    source = random.Random(seed)

    def work() -> None:
        cache[source.randrange(16)] = bytes(source.randrange(2000))
        cycle: list[Any] = [bytes(source.randrange(20_000)) for _ in range(source.randrange(20))]
        cycle.append(cycle)
        json.loads(json.dumps({str(number): [number] * 3 for number in range(source.randrange(100))}))
        with open(__file__), mmap.mmap(-1, 4096 * source.randrange(1, 20)) as pages:
            pages[0] = 1
        thread = threading.Thread(target=bytes, args=(source.randrange(2000),))
        thread.start()
        thread.join()

    for number in range(runs):
        cache: dict[int, bytes] = {}
        report = LeakDetector(100).run(work)
        assert not report, f"run {number}: {report}"
    print(f"clean {runs} of {runs}")
